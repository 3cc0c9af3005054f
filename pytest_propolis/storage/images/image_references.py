"""Restrict the host files that a disk image may reference: files next to it, and in directories that the user allows.

An untrusted image must not choose what a guest reads: QEMU opens a backing file or an external data file at any path,
and accepts network addresses, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...errors import ArtifactError
from .image_headers import Qcow2Header

__all__ = ["require_contained"]

DEEPEST: Final = 64
"""The longest allowed chain of backing files; QEMU itself has no limit."""

_PROTOCOL: Final = re.compile(r"[^:/]*:")


def require_contained(image: Path, image_format: str, *, allowed: Sequence[Path] = ()) -> None:
    """Reject an image that references files outside its directory, directly or through its backing files.

    :param image_format: only ``qcow2`` images name other files.
    :param allowed: further directories in which such files may lie.
    :raises ArtifactError: naming the image and the file.

    An unreadable image passes; opening it later fails with the reason.
    """
    homes = [directory.resolve() for directory in allowed]
    _require_contained(image, image_format, homes, depth=0)


def _require_contained(image: Path, image_format: str, homes: Sequence[Path], *, depth: int) -> None:
    header = _header(image) if image_format == "qcow2" else None
    if header is None:
        return
    if depth == DEEPEST:
        raise ArtifactError(f"disk image {image} has more than {DEEPEST} backing files", hint="flatten it")
    for name in header.references:
        file = _located(image, name, homes)
        if name == header.backing and file.is_file():
            _require_contained(file, "qcow2", homes, depth=depth + 1)


def _header(image: Path) -> Qcow2Header | None:
    try:
        return Qcow2Header.read(image)
    except OSError:
        return None


def _located(image: Path, name: str, homes: Sequence[Path]) -> Path:
    if not name or _PROTOCOL.match(name):
        raise _refusal(image, name or "a data file without a name")
    file = (image.absolute().parent / name).resolve()
    own = (image.absolute().parent.resolve(), image.resolve().parent)
    if not any(file.is_relative_to(home) for home in (*own, *homes)):
        raise _refusal(image, str(file))
    return file


def _refusal(image: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"disk image {image} names {what}, which is outside of its directory",
        hint="if you trust the image, allow that file's directory with --propolis-image-dirs, or flatten the image:"
        " qemu-img convert -O qcow2",
    )
