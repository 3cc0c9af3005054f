"""The guest OS adapter: everything that the framework knows about a guest operating system."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from ..agent_api.image_recipe import ImageRecipe
from ..console.console import Console
from ..console.read_eval_loop import preparation, program, starting_program
from ..console.transports.port_loop import encode_for_port, port_preparation, port_supervisor
from ..field_checks import check_fields
from ..storage.artifacts import Artifact
from .fork_identity import PROGRAM, await_identity_command, identity_command, install_command

__all__ = ["EMULATED_KERNEL", "GuestAdapter", "GuestImage"]

# Without mitigations a guest forks twice as fast. With programs at the same addresses (norandmaps) an emulator need not
# translate each anew whenever it is run, which was two thirds of the time that a boot took. And on a busy machine the
# kernel counts too few ticks of its timer in its first moments, and panics ("IO-APIC + timer doesn't work!").
_BOOTED_FAST: Final = "mitigations=off norandmaps no_timer_check"

# What wakes an idle guest: KFENCE patches the kernel's text ten times per second, which an emulator translates anew
# each time; the clock and the fragmentation of memory are checked twice, and statistics of memory gathered once.
_IDLE: Final = "kfence.sample_interval=0 tsc=nowatchdog sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=10"

EMULATED_KERNEL: Final = f"{_BOOTED_FAST} {_IDLE}"
"""Kernel parameters for a Linux guest under emulation."""


# A device's directory is there before its driver is, and a disk's before its node. Opening the disk waits until its
# partitions are known. Alpine loads drivers when it boots, and has to be told to after that. A guest without a driver
# is not waited for longer than some seconds.
AWAIT_HOTPLUG: Final = (
    "for _da in {}; do _dd=/sys/bus/pci/devices/$_da; until [ -e $_dd ]; do sleep 0.02; done; _dn=0;"
    " while [ $_dn -lt 250 ]; do _dn=$((_dn+1));"
    " for _db in $_dd/virtio*/block/* $_dd/nvme/nvme*/nvme*n* $_dd/virtio*/net/*; do"
    ' case $_db in */net/*) [ -e "$_db" ];; *) _db=/dev/${{_db##*/}}; [ -b "$_db" ] && : < "$_db";; esac && break 2;'
    " done; sleep 0.02;"
    " [ $((_dn%10)) = 3 ] && [ ! -e $_dd/nvme ] && [ ! -e $_dd/virtio*/driver ] &&"
    " cat $_dd/modalias $_dd/virtio*/modalias 2>/dev/null | xargs modprobe -qa; done; done"
)

NETWORK: Final = (
    "_nd=/sys/bus/pci/devices/{device}; _nn=0;"
    ' until _ni=$(ls $_nd/virtio*/net 2>/dev/null) && [ -n "$_ni" ] || [ $_nn -ge 500 ]; do'
    " [ $((_nn%50)) = 0 ] && modprobe -q virtio_net; _nn=$((_nn+1)); sleep 0.02; done;"
    ' ip link set "$_ni" up && ip addr add {address} dev "$_ni"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """The files from which a guest boots.

    :param kernel: the kernel, loaded by the server itself; None for a guest that firmware boots from its disk.
    :param initrd: the kernel's initial RAM disk.
    :param command_line: the kernel's parameters.
    :param disk: the root disk; None for a guest without one.
    :param recipe: how to prepare the root disk from `kernel`, `initrd` and `disk`; None to use it unchanged.
    """

    kernel: Artifact | None = None
    initrd: Artifact | None = None
    command_line: str = ""
    disk: Artifact | None = None
    recipe: ImageRecipe | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject="GuestImage")


class GuestAdapter(ABC):
    """One guest operating system. Subclass it, and return an instance from the hook ``pytest_propolis_guests``."""

    name: ClassVar[str]
    """The name used in tests and options."""

    image: ClassVar[GuestImage]

    shell: ClassVar[str] = "sh"
    """The POSIX shell that runs commands."""

    shell_wrapper: ClassVar[str] = "{}"
    """How the login shell runs the read-eval loop. As a job of an interactive shell, the loop has a process group
    of its own, and the key that interrupts a command ends neither that shell nor the login above it."""

    firmware: ClassVar[Literal["bios", "uefi"] | None] = None
    """The firmware that boots its disk by default. None for a guest whose disk has no boot loader, so that it comes up
    with its kernel only, or, without a kernel, for one that the BIOS boots."""

    reboot_command: ClassVar[str] = "reboot"

    guest_ports: ClassVar[bool] = False
    """Whether its kernel has the driver ``virtio_console``, built in or as a module. Commands and files go over guest
    ports then, unless the test or the settings request the console."""

    minimum_memory_mib: ClassVar[int] = 128
    """The guest is known not to boot with less memory than this."""

    forkable: ClassVar[bool] = True
    """Whether templates may be created from it. The default commands need Linux on x86-64, a POSIX shell with `printf`
    and `mkfifo`, and a superuser."""

    scratch: ClassVar[str] = "/run/.propolis-wake"
    """Path in the guest for the helper program of a template, on a RAM disk that is not mounted noexec."""

    quiet_command: ClassVar[str] = "sync"
    """Command that prepares a guest for being saved: all data must have been written to disk."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything in the adapter that affects a template: the source of its class and bases."""
        sources = [_module_source(kind) for kind in type(self).__mro__ if issubclass(kind, GuestAdapter)]
        protocol = program("", shell=self.shell) + preparation("", "", shell=self.shell)
        protocol += starting_program("") + port_supervisor("", shell=self.shell) + port_preparation("", "").decode()
        protocol += "".join(chunk.data.decode() for chunk in encode_for_port("", "", ""))
        return hashlib.sha256(b"\0".join([self.name.encode(), protocol.encode(), PROGRAM, *sources])).hexdigest()

    def template_commands(self) -> Iterable[str]:
        """Return the commands that a logged-in guest runs before it is saved."""
        return (install_command(self.scratch), self.await_identity_command())

    def await_identity_command(self) -> str:
        """Return the command that re-arms the wake helper after an `identity_command` has used it."""
        return await_identity_command(self.scratch)

    def identity_command(self, *, name: str) -> str:
        """Return the command that every fork runs first, in one round trip, to make it unique: it sets random numbers,
        clock and host name."""
        return identity_command(self.scratch, name=name)

    def await_hotplug_command(self, addresses: Sequence[str]) -> str:
        """Return the command that waits until the fork's kernel has detected hot-plugged disks and network cards.

        :param addresses: their PCI addresses, such as ``0000:00:05.0``.
        """
        return AWAIT_HOTPLUG.format(" ".join(addresses))

    def network_command(self, pci_address: str, address: str) -> str:
        """Return the command that gives a network card an address.

        :param pci_address: the card's PCI address, such as ``0000:00:10.0``.
        :param address: the address with the length of its prefix, such as ``10.100.0.1/24``.
        """
        return NETWORK.format(device=pci_address, address=address)

    @abstractmethod
    async def log_in(self, console: Console) -> None:
        """Wait for the guest to boot, and log in to reach a superuser's shell prompt.

        Waits need no time limits of their own: the boot as a whole has one, and is cancelled when it expires.
        """


def _module_source(kind: type) -> bytes:
    """Return the source of a class's module, which may be in a zip; empty if there is none."""
    module = inspect.getmodule(kind)
    if module is None or inspect.getsourcefile(module) is None:
        return b""
    return inspect.getsource(module).encode()
