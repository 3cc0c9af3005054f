"""The guest OS adapter: all that the framework knows of one kind of guest."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from ..agent_api.image_recipe import ImageRecipe
from ..console.console import Console
from ..console.shell_protocol import program
from ..field_checks import check_fields
from ..storage.artifacts import Artifact
from .fork_identity import PROGRAM, install_command, wait_command, wake_command

__all__ = ["EMULATED_KERNEL", "GuestAdapter", "GuestImage"]

# Without mitigations a guest forks twice as fast. With programs at the same addresses (norandmaps) an emulator need not
# translate each anew whenever it is run, which was two thirds of the time that a boot took. And on a busy machine the
# kernel counts too few ticks of its timer in its first moments, and panics ("IO-APIC + timer doesn't work!").
EMULATED_KERNEL: Final = "mitigations=off norandmaps no_timer_check"
"""Linux parameters for a guest that an emulator runs."""


# A device's directory is there before its driver is, and a disk's before its node. Who opens the disk waits until its
# partitions are known. Alpine loads drivers when it boots, and has to be told to after that. A guest without a driver
# is not waited for longer than some seconds.
PLUGGED: Final = (
    "for _da in {}; do _dd=/sys/bus/pci/devices/$_da; until [ -e $_dd ]; do sleep 0.02; done; _dn=0;"
    " while [ $_dn -lt 250 ]; do _dn=$((_dn+1));"
    " for _db in $_dd/virtio*/block/* $_dd/nvme/nvme*/nvme*n* $_dd/virtio*/net/*; do"
    ' case $_db in */net/*) [ -e "$_db" ];; *) _db=/dev/${{_db##*/}}; [ -b "$_db" ] && : < "$_db";; esac && break 2;'
    " done; sleep 0.02;"
    " [ $((_dn%10)) = 3 ] && [ ! -e $_dd/nvme ] && [ ! -e $_dd/virtio*/driver ] &&"
    " cat $_dd/modalias $_dd/virtio*/modalias 2>/dev/null | xargs modprobe -qa; done; done"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """What a guest boots from.

    :param kernel: the kernel, loaded by the server itself; None for a guest that firmware boots from its disk.
    :param initrd: the kernel's initial RAM disk.
    :param command_line: the kernel's parameters.
    :param disk: the root disk; None for a guest without one.
    :param recipe: how the root disk is prepared from `kernel`, `initrd` and `disk`, if it is not used as it is.
    """

    kernel: Artifact | None = None
    initrd: Artifact | None = None
    command_line: str = ""
    disk: Artifact | None = None
    recipe: ImageRecipe | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject="GuestImage")


class GuestAdapter(ABC):
    """One kind of guest. Make one, and return it from the hook ``pytest_propolis_guests``."""

    name: ClassVar[str]
    """What tests and options call it."""

    image: ClassVar[GuestImage]

    shell: ClassVar[str] = "sh"
    """The POSIX shell that runs commands."""

    shell_wrapper: ClassVar[str] = "{}"
    """How the login shell is to run the read-eval loop. As a job of an interactive shell, the loop has a process group
    of its own, and the key that interrupts a command ends neither that shell nor the login above it."""

    firmware: ClassVar[Literal["bios", "uefi"] | None] = None
    """The firmware that boots its disk by default. None for a guest whose disk has no boot loader, so that it comes up
    with its kernel only, or, without a kernel, for one that the BIOS boots."""

    reboot_command: ClassVar[str] = "reboot"

    minimum_memory_mib: ClassVar[int] = 128
    """With less, the guest is known not to come up."""

    forkable: ClassVar[bool] = True
    """Whether a template may be made of it. As it stands here, that takes Linux on x86-64, a POSIX shell with `printf`
    and `mkfifo`, and a superuser."""

    scratch: ClassVar[str] = "/run/.propolis-wake"
    """Where in the guest, on a RAM disk that programs may be run from, a template keeps a small one."""

    quiet_command: ClassVar[str] = "sync"
    """What makes a guest ready to be frozen: nothing that it wants to keep may be on its way to a disk."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything in the adapter that shapes a template: the source of its class and bases."""
        modules = [inspect.getsourcefile(kind) for kind in type(self).__mro__ if issubclass(kind, GuestAdapter)]
        sources = [Path(module).read_bytes() for module in modules if module]
        protocol = program("", shell=self.shell)
        return hashlib.sha256(b"\0".join([self.name.encode(), protocol.encode(), PROGRAM, *sources])).hexdigest()

    def template_commands(self) -> Iterable[str]:
        """What a guest that is logged in runs so that it can be frozen."""
        return (install_command(self.scratch), self.wait_command())

    def wait_command(self) -> str:
        """What gets a guest that has run its `wake_command` to where it can run another one."""
        return wait_command(self.scratch)

    def wake_command(self, *, name: str) -> str:
        """What every fork runs first, in one round trip, so that it is like no other: its random numbers, its clock,
        its name."""
        return wake_command(self.scratch, name=name)

    def plugged_command(self, addresses: Sequence[str]) -> str:
        """What waits in a fork until its kernel has found the disks and network cards that its template has not.

        :param addresses: where they sit on the PCI bus, as in ``0000:00:05.0``.
        """
        return PLUGGED.format(" ".join(addresses))

    @abstractmethod
    async def log_in(self, console: Console) -> None:
        """Wait for the guest to come up, and get to a shell prompt of the superuser.

        Waits have no time limits of their own: the boot as a whole has one, and is cancelled when it is over.
        """
