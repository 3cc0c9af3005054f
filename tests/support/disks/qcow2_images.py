"""qcow2 images that name other files."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["qemu_img", "with_backing_file", "with_data_file"]


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def with_data_file(image: Path, file: Path) -> Path:
    """Make an image of 1 MiB whose data is in another file."""
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={image}.data,data_file_raw=on", image, "1M")
    qemu_img("amend", "-f", "qcow2", "-o", f"data_file={file}", image)
    return image


def with_backing_file(image: Path, name: object, *, backing_format: str = "raw") -> Path:
    """Make an image of 1 MiB that lies over another file."""
    qemu_img("create", "-f", "qcow2", "-u", "-F", backing_format, "-b", name, image, "1M")
    return image
