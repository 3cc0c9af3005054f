"""The smallest Linux guest: Alpine's kernel and initial RAM disk, a shell as the first process, and no disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from ..console.console import Console
from ..storage.alpine import ALPINE_KERNEL, ALPINE_UNPACKED_INITRD
from .adapter import EMULATED_KERNEL, GuestAdapter, GuestImage

__all__ = ["Micro"]

# Nothing is mounted and only the shell's builtins are available yet. The first command also proves that the prompt was
# the shell's, and not a line from the kernel.
SET_UP: Final = (
    "/bin/busybox --install -s; mkdir -p /proc /sys /dev/pts /tmp /root /run;"
    " mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mkdir -p /dev/pts /dev/shm;"
    " mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; ln -s /proc/self/fd /dev/fd;"
    " ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr; ifconfig lo up; hostname micro;"
    " export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin; cd /root; echo micro-is'-'up\n"
)

# The virtio device of a PCI device comes later. A driver that was loaded before that would find no device.
AWAIT_DEVICE: Final = (
    "_dd=/sys/bus/pci/devices/{}; _dn=0;"
    " until read -r _dv 2>/dev/null < $_dd/vendor &&"
    " for _db in $_dd/virtio*; do case $_dv in 0x1af4) [ -e $_db ];; esac; done || [ $_dn -ge 250 ];"
    " do _dn=$((_dn+1)); sleep 0.02; done"
)


# A fork's first command renews the kernel's random numbers, and until then no program draws any. So the kernel need not
# be told before it that it is a copy (by the event 5 of QEMU's ACPI tables): to evaluate that is an eighth of what a
# fork's processor does up to its first command.
NO_GENERATION_EVENT: Final = "acpi_mask_gpe=0x05"


# The kernel passes parameters that it does not recognise to init: with -s, they become the shell's positional
# parameters.
class Micro(GuestAdapter):
    """A guest for tests that do not depend on a particular one: boots fast and runs entirely in RAM."""

    name: ClassVar[str] = "micro"
    image: ClassVar[GuestImage] = GuestImage(
        kernel=ALPINE_KERNEL,
        initrd=ALPINE_UNPACKED_INITRD,
        command_line=f"console=ttyS0,115200 rdinit=/bin/sh -s {EMULATED_KERNEL} {NO_GENERATION_EVENT} quiet",
    )
    # The first process has no controlling terminal, and must not end: the loop gets a session of its own.
    shell_wrapper: ClassVar[str] = "while :; do setsid -c {} </dev/ttyS0 >/dev/ttyS0 2>&1; done"
    reboot_command: ClassVar[str] = "reboot -f"
    guest_ports: ClassVar[bool] = True

    def await_hotplug_command(self, addresses: Sequence[str]) -> str:
        """Wait only for the devices: this guest has loaded no drivers."""
        return "; ".join(AWAIT_DEVICE.format(address) for address in addresses)

    async def log_in(self, console: Console) -> None:
        await console.transcript.wait_for("~ # ")
        typed_at = console.transcript.end
        await console.send(SET_UP)
        await console.transcript.wait_for("micro-is-up\n")
        console.transcript.hide(typed_at)
