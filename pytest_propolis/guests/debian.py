"""Debian 12 (bookworm): a typical systemd-based distribution, which boots slowly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final
from uuid import uuid4

from ..console.console import Console
from ..storage.artifacts import Artifact
from ..storage.debian import DEBIAN_ROOT_LABEL, DebianBuild
from .adapter import EMULATED_KERNEL, GuestAdapter, GuestImage
from .prompts import log_in_at_prompts

__all__ = ["Debian"]

BUILD: Final = DebianBuild()
PROMPT: Final = re.compile(r"root@\S+:~# |[#%>] \Z")
"""That of bash, or the end of that of another login shell."""


class Debian(GuestAdapter):
    """Debian. Root logs in on ttyS0 without a password; the root file system is ext4, read-write.

    Its image is built on this machine, on first use or by ``propolis setup debian``.
    """

    name: ClassVar[str] = "debian"
    image: ClassVar[GuestImage] = GuestImage(
        kernel=Artifact("debian-kernel", BUILD.kernel, None, BUILD),
        initrd=Artifact("debian-initrd", BUILD.initrd, None, BUILD),
        command_line=(
            f"console=ttyS0,115200 root=LABEL={DEBIAN_ROOT_LABEL} rw rootfstype=ext4 {EMULATED_KERNEL} quiet TERM=dumb"
        ),
        disk=Artifact("debian-disk", BUILD.disk, None, BUILD),
    )
    shell: ClassVar[str] = "bash"
    reboot_command: ClassVar[str] = "systemctl reboot"
    guest_ports: ClassVar[bool] = True
    minimum_memory_mib: ClassVar[int] = 256
    scratch: ClassVar[str] = "/dev/shm/.propolis-wake"  # noqa: S108 -- in the guest, whose /run takes no programs
    quiet_command: ClassVar[str] = "systemctl is-system-running --wait > /dev/null; sync"

    def identity_command(self, *, name: str) -> str:
        return f"{super().identity_command(name=name)} && echo {uuid4().hex} > /etc/machine-id"

    def await_hotplug_command(self, addresses: Sequence[str]) -> str:
        return f"{super().await_hotplug_command(addresses)}; udevadm settle"

    async def log_in(self, console: Console) -> None:
        await log_in_at_prompts(console, user="root", prompt=PROMPT)
