"""``propolis console``: attach this terminal to the serial console of a VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final

import click
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ..console.console import end_reason
from ..console.following import MOVED
from ..console.viewer import Viewer
from ..propolis_api.client import Endpoint, PropolisClient
from ..propolis_api.serial import migration_notice
from .hosts.remote_commands import on_hosts
from .vms.vm_lookup import locate_vm

if TYPE_CHECKING:
    from ..hosts.host import HostSpec

__all__ = ["EscapeKeys", "console"]

HISTORY_BYTES: Final = 64 << 10
QUIET_S: Final = 1.0
"""How long the guest must be silent after the end of standard input before the command exits."""
READ_BYTES: Final = 4096
QUESTIONS: Final = re.compile(rb"\x1b\[[0-9;?>=]*[cn]")
"""Terminal queries, such as the cursor position; nothing awaits the reply to one in the history."""

LEAVE: Final = 0x1D
TILDE: Final = ord("~")
DOT: Final = ord(".")
LINE_ENDS: Final = frozenset(b"\r\n")


@click.command()
@click.argument("vm_id", metavar="ID")
@click.option(
    "--lines", "-n", default=None, type=click.IntRange(0), metavar="N", help="How many lines of history to show."
)
@on_hosts
def console(*, vm_id: str, lines: int | None, hosts: tuple[HostSpec, ...] | None) -> None:
    """Attach to the serial console of a VM. ID is the id shown by `propolis ps` and in reports, or a prefix of it.

    With --hosts or --host, the VM may be on any of these hosts.

    Ctrl-] detaches, and so does "~." at the start of a line. The VM keeps running. If standard input is not a terminal,
    it is sent unchanged, and the command exits once the input has ended and the guest has been silent for a second.
    """
    name, why = asyncio.run(_attach(vm_id, hosts, _screenful() if lines is None else lines))
    click.echo(f"\nleft the console of VM {name!r}: {why}", err=True)


async def _attach(vm_id: str, hosts: tuple[HostSpec, ...] | None, lines: int) -> tuple[str, str]:
    """Attach to a VM's console; return the VM's name and why the console was left."""
    async with locate_vm(vm_id, hosts) as (vm, endpoint):
        with _raw_terminal():
            return vm.name, await _Session(endpoint, vm.name).run(lines)


def _screenful() -> int:
    return max(shutil.get_terminal_size().lines - 2, 1)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Put the terminal into raw mode, so that every key is passed on, Ctrl-C included; restore it afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class EscapeKeys:
    """Detects the keys that detach in typed input. ``~~`` at the start of a line types one tilde."""

    def __init__(self) -> None:
        self.left = False
        """Whether the user has asked to detach."""
        self._at_line_start = True
        self._held = False

    def feed(self, typed: bytes) -> bytes:
        """Return the input meant for the guest. Hold back a tilde at the start of a line until the next key."""
        passed = bytearray()
        for key in typed:
            if key == LEAVE or (self._held and key == DOT):
                self.left = True
                break
            if not self._held and self._at_line_start and key == TILDE:
                self._held = True
                continue
            if self._held and key != TILDE:
                passed.append(TILDE)
            self._held = False
            passed.append(key)
            self._at_line_start = key in LINE_ENDS
        return bytes(passed)


class _Session:
    """One terminal or pipe attached to the console of one VM."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self._endpoint = endpoint
        self._name = name
        self._keys = EscapeKeys() if sys.stdin.isatty() else None
        self._viewer = Viewer(terminal=sys.stdout.isatty())
        self._shown = asyncio.Event()

    async def run(self, lines: int) -> str:
        """Run until the user detaches or the console closes; return which, and why."""
        async with PropolisClient(self._endpoint, vm=self._name) as client:
            offset = await self._show_history(client, lines)
            async with client.instance_serial(from_start=offset) as connection:
                typing = asyncio.create_task(self._type(connection))
                showing = asyncio.create_task(self._show(connection))
                done, waiting = await asyncio.wait([typing, showing], return_when=asyncio.FIRST_COMPLETED)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
                return next(iter(done)).result()

    async def _show_history(self, client: PropolisClient, lines: int) -> int:
        history = await client.instance_serial_history(most_recent=HISTORY_BYTES, max_bytes=HISTORY_BYTES)
        text = QUESTIONS.sub(b"", self._viewer.feed(history.content)).rstrip(b"\r\n")
        _write(b"".join(text.splitlines(keepends=True)[-lines:]) if lines else b"")
        return history.last_byte_offset

    async def _show(self, connection: ClientConnection) -> str:
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                if isinstance(message, bytes):
                    self._shown.set()
                    _write(self._viewer.feed(message))
                elif migration_notice(message):
                    return MOVED
        return end_reason(connection)

    async def _type(self, connection: ClientConnection) -> str:
        with contextlib.suppress(ConnectionClosed):
            async for typed in _standard_input():
                await connection.send(self._keys.feed(typed) if self._keys else typed)
                if self._keys and self._keys.left:
                    return "the VM goes on"
        await self._silence()
        return "end of input, the VM goes on"

    async def _silence(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                self._shown.clear()
                async with asyncio.timeout(QUIET_S):
                    await self._shown.wait()


async def _standard_input() -> AsyncIterator[bytes]:
    """Yield input as it arrives, until its end."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    descriptor = sys.stdin.fileno()
    try:
        # Read in the callback, where it cannot block.
        loop.add_reader(descriptor, lambda: typed.put_nowait(os.read(descriptor, READ_BYTES)))
    except PermissionError:  # a regular file, which is always readable
        while data := os.read(descriptor, READ_BYTES):
            yield data
        return
    try:
        while data := await typed.get():
            yield data
    finally:
        loop.remove_reader(descriptor)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
