"""Debian 12 (bookworm): a system of the usual kind, with systemd, that takes its time to boot."""

from __future__ import annotations

from typing import ClassVar, Final

from ..console.console import Console
from ..storage.artifacts import Artifact
from ..storage.debian import DEBIAN_ROOT_LABEL, DebianBuild
from .adapter import GuestAdapter, GuestImage

__all__ = ["Debian"]

BUILD: Final = DebianBuild()


class Debian(GuestAdapter):
    """Debian. Root logs in on ttyS0 without a password; the root file system is ext4, read-write.

    Its image is built on this machine, when it is first wanted or by ``propolis setup debian``.
    """

    name: ClassVar[str] = "debian"
    image: ClassVar[GuestImage] = GuestImage(
        kernel=Artifact("debian-kernel", BUILD.kernel, None, BUILD),
        initrd=Artifact("debian-initrd", BUILD.initrd, None, BUILD),
        command_line=(
            f"console=ttyS0,115200 root=LABEL={DEBIAN_ROOT_LABEL} rw rootfstype=ext4"
            " mitigations=off norandmaps quiet TERM=dumb"
        ),
        disk=Artifact("debian-disk", BUILD.disk, None, BUILD),
    )
    shell: ClassVar[str] = "bash"
    reboot_command: ClassVar[str] = "systemctl reboot"
    minimum_memory_mib: ClassVar[int] = 256

    async def log_in(self, console: Console) -> None:
        await console.transcript.wait_for("debian login: ")
        await console.send("root\n")
        await console.transcript.wait_for("root@debian:~# ")
