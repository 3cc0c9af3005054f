"""The guest of a VM that was kept, as commands of a shell drive it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...console.channels.over_console import ConsoleChannel
from ...console.console import Console
from ...console.shell import Shell
from ...errors import ConfigError, ConsoleError, ShellError, ShellLost
from ...propolis_api.client import PropolisClient
from ...vm.files.transfers import FileTransfers
from .places import Place, located

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
async def kept_guest(vm_id: str, hosts: tuple[HostSpec, ...] | None) -> AsyncIterator[tuple[Place, Shell]]:
    """A shell for commands in the guest of a VM that was kept; afterwards the console shows its prompt again.

    :param vm_id: its id, or the beginning of it.
    :raises ConfigError: when there is no such VM, it was not kept, or something like this drives it already.
    :raises ShellLost: when its console shows no prompt of a shell.
    """
    async with located(vm_id, hosts) as (place, endpoint):
        if not place.is_kept:
            raise ConfigError(
                f"VM {place.name!r} ({place.id}) was not kept: its test drives it",
                hint="`propolis console` shows its console; --propolis-keep keeps VMs",
            )
        with _alone(place), _log_directory() as logs:
            async with PropolisClient(endpoint, vm=place.name) as client:
                connection = await client.instance_serial()
                async with Console.over(connection, vm=place.name, log_path=logs / "console.log") as console:
                    shell = Shell(console, vm=place.name)
                    await _start(shell, console)
                    try:
                        yield place, shell
                    finally:
                        await _leave(shell, console)


@contextlib.asynccontextmanager
async def kept_files(vm_id: str, hosts: tuple[HostSpec, ...] | None) -> AsyncIterator[FileTransfers]:
    """Transfers into the guest of a kept VM and out of it, over its console; errors are those of `kept_guest`."""
    async with kept_guest(vm_id, hosts) as (place, shell):
        yield FileTransfers(shell=shell, channel=ConsoleChannel(shell), vm=place.name)


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
def _alone(place: Place) -> Iterator[None]:
    """Refuse a second one at the same console. The kernel takes this lock away with the process."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0propolis-kept-{place.id}")
        except OSError:
            raise ConfigError(
                f"another `propolis exec` or `propolis cp` uses VM {place.name!r}", hint="try again when it has ended"
            ) from None
        yield


@contextlib.contextmanager
def _log_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="propolis-exec-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)  # not after an error, which names the log there
