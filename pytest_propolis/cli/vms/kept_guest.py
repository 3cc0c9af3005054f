"""The guest of a VM that was kept, as commands of a shell drive it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final

from ...console.channels.over_console import ConsoleChannel
from ...console.console import Console
from ...console.shell import Shell
from ...errors import ConfigError, ConsoleError, ShellError, ShellLost
from ...propolis_api.client import PropolisClient
from ...vm.files.transfers import FileTransfers
from .guest_command import log_directory
from .vm_lookup import LocatedVm, locate_vm

if TYPE_CHECKING:
    from ...hosts.host import HostSpec

__all__ = ["kept_files", "kept_guest"]

START_TIMEOUT_S: Final = 20.0
LEAVE_TIMEOUT_S: Final = 10.0

ERASE_LINE: Final = b"\x15"
"""Takes back what a person may have typed at the prompt."""

# The parent of the shell that runs commands starts it again when it ends.
LEAVE: Final = 'stty sane rows 24 cols 80 </dev/tty; kill -KILL "$PPID"; exit'


PROMPT: Final = re.compile(r"[#$%>] \Z")


@contextlib.asynccontextmanager
async def kept_guest(vm_id: str, hosts: tuple[HostSpec, ...] | None) -> AsyncIterator[tuple[LocatedVm, Shell]]:
    """A shell for commands in the guest of a VM that was kept; afterwards the console shows its prompt again.

    :param vm_id: its id, or the beginning of it.
    :raises ConfigError: when there is no such VM, it was not kept, or something like this drives it already.
    :raises ShellLost: when its console shows no prompt of a shell.
    """
    async with locate_vm(vm_id, hosts) as (vm, endpoint):
        if not vm.is_kept:
            raise ConfigError(
                f"VM {vm.name!r} ({vm.id}) was not kept: its test drives it",
                hint="`propolis console` shows its console; --propolis-keep keeps VMs",
            )
        with _alone(vm), log_directory("exec") as logs:
            async with PropolisClient(endpoint, vm=vm.name) as client:
                connection = await client.instance_serial()
                async with Console.over(connection, vm=vm.name, log_path=logs / "console.log") as console:
                    shell = Shell(console, vm=vm.name)
                    await _start(shell, console)
                    try:
                        yield vm, shell
                    finally:
                        await _leave(shell, console)


@contextlib.asynccontextmanager
async def kept_files(vm_id: str, hosts: tuple[HostSpec, ...] | None) -> AsyncIterator[FileTransfers]:
    """Open file transfers with the guest of a kept VM, over its console. Errors are those of `kept_guest`."""
    async with kept_guest(vm_id, hosts) as (vm, shell):
        yield FileTransfers(shell=shell, channel=ConsoleChannel(shell), vm=vm.name)


async def _start(shell: Shell, console: Console) -> None:
    await console.send(ERASE_LINE)
    try:
        await shell.start(shell="sh", timeout_s=START_TIMEOUT_S)  # noqa: S604 # in the guest
    except ShellLost as error:
        raise ShellLost(
            error.message,
            vm=error.vm,
            waited_s=error.waited_s,
            console_tail=error.console_tail,
            hint="its console must show the prompt of a superuser's shell: see `propolis console`",
        ) from None


async def _leave(shell: Shell, console: Console) -> None:
    """End the read-eval loop: the shell of the prompt gets the terminal back."""
    with contextlib.suppress(ConsoleError, ShellError, TimeoutError):
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            await shell.run_detached(LEAVE)
            console.transcript.skip()
            await console.wait_for(PROMPT, timeout_s=LEAVE_TIMEOUT_S)


@contextlib.contextmanager
def _alone(vm: LocatedVm) -> Iterator[None]:
    """Hold a lock on the console, and refuse a second user. The kernel releases the lock with the process."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0propolis-kept-{vm.id}")
        except OSError:
            raise ConfigError(
                f"another `propolis exec` or `propolis cp` uses VM {vm.name!r}", hint="try again when it has ended"
            ) from None
        yield
