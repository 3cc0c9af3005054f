"""Raw disks, which every server reads, made without QEMU's tools, for hosts without the engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ...agent_api.disks import CreateDisk, ForkImage
from ...errors import CapabilityMissing
from ...storage.forks.choice import PROVIDERS
from ...storage.images.overlays import presumed_format

__all__ = ["RAW_PROVIDERS", "fill_last_block", "make_blank", "raw_fork", "require_raw"]

RAW_PROVIDERS: Final = tuple(provider.name for provider in PROVIDERS if provider.keeps_format)
"""The fork providers that make raw forks of raw images."""


def raw_fork(request: CreateDisk) -> ForkImage:
    """Return the request for a raw fork of the image of a disk.

    :raises CapabilityMissing: when the image is not raw.
    :raises ArtifactError: when its format was not stated, and it looks like a container.
    """
    assert request.image is not None
    image_format = request.image_format or presumed_format(Path(request.image))
    require_raw(request.image, image_format)
    return ForkImage(image=request.image, image_format=image_format, providers=RAW_PROVIDERS)


def require_raw(image: str, image_format: str) -> None:
    """
    :raises CapabilityMissing: when an image is not raw.
    """
    if image_format != "raw":
        raise CapabilityMissing(
            f"the disk image {image} is {image_format}, and without the engine disks are raw",
            hint=f"convert it where there is QEMU: qemu-img convert -O raw {image} {Path(image).stem}.raw",
        )


def make_blank(path: Path, size_bytes: int) -> None:
    """Create the sparse file of a disk that reads as zeros."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def fill_last_block(path: Path, block_size: int) -> None:
    """Extend a file to whole blocks. A volume consists of such blocks."""
    if path.is_file() and (rest := path.stat().st_size % block_size):
        os.truncate(path, path.stat().st_size + block_size - rest)
