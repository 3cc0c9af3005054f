"""The disks of a VM that migrates: their locations at the source, and how each is transferred."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from ..qemu.devices.host_file import HostFile

__all__ = ["DiskFacts", "Layer", "copy_timeout_s"]

COPY_S_PER_GIB: Final = 90.0
COPY_TIMEOUT_S: Final = 60.0


def copy_timeout_s(size_bytes: int) -> float:
    """Return the time limit for copying disks of a total size: 90 s per GiB, at least 60 s."""
    return max(COPY_S_PER_GIB * size_bytes / (1 << 30), COPY_TIMEOUT_S)


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """An image file.

    :param format: QEMU's name of its format.
    """

    file: HostFile
    format: str


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of the source.

    :param size_bytes: as the guest sees it.
    :param layers: its file, followed by the images that it is an overlay on.
    """

    size_bytes: int
    layers: tuple[Layer, ...]

    def is_here(self, *, readonly: bool) -> bool:
        """Return whether this process's user can use it in place."""
        top, *below = self.layers
        return top.file.can_be_opened(os.O_RDONLY if readonly else os.O_RDWR) and _are_here(below)

    @property
    def image(self) -> Layer | None:
        """The image that it is an overlay on, if that exists here, too."""
        below = self.layers[1:]
        return below[0] if below and _are_here(below) else None


def _are_here(layers: tuple[Layer, ...] | list[Layer]) -> bool:
    return all(layer.file.can_be_opened(os.O_RDONLY) for layer in layers)
