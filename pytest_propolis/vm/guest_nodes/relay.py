"""The host's side of a guest's commands: requests come in over the second serial port, answers go back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ...console.following import Sent
from ...errors import PropolisError
from ...propolis_api.serial import SerialConsoleMoved, is_reset_notice, migration_notice
from .commands import Answer
from .script import LINE_BYTES

__all__ = ["Relay"]

PIECE_BYTES: Final = LINE_BYTES // 4
"""How much of an output is in a line: each byte may take four."""

UNREAD_LINES: Final = 16
"""How many lines a command of the guest may have been sent that it has not read: its FIFO holds 64 KiB."""

REMINDER_S: Final = 5.0
"""How often a command that waits for its answer is sent a line that says nothing.

A shell that is signalled just before it reads notices it with the next line only: its interrupt would be lost.
"""

_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9./:_=,+@]")

Do = Callable[[list[str], bytes], Awaitable[Answer]]
Follow = Callable[[SerialConsoleMoved], Awaitable[ClientConnection]]


@dataclass(slots=True)
class _Request:
    """The part of a request received so far, in hexadecimal."""

    arguments: list[str] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Relay:
    """Answers the commands of one guest, also where it migrates to.

    :param do: does a command with its words and its input.
    :param follow: opens the port at the server that the guest has migrated to.
    :param on_reset: called when the guest's programs are gone, because it has reset its machine.
    """

    def __init__(
        self, connection: ClientConnection, do: Do, *, follow: Follow, on_reset: Callable[[], None] = lambda: None
    ) -> None:
        self._connection = connection
        self._do = do
        self._follow = follow
        self._on_reset = on_reset
        self._sent = Sent()
        self._rest = b""
        """The part of a line received so far."""
        self._requests: dict[str, _Request] = {}
        self._outgoing: dict[str, deque[str]] = {}
        """Lines for the guest, by request."""
        self._unread: dict[str, int] = {}
        """The number of lines that a request has been sent and has not read."""
        self._has_line = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self.is_up = asyncio.Event()
        """Set when the guest's reader runs."""

    async def run(self) -> str:
        """Answer commands until the VM ends; return why the connection to it has ended."""
        sending = asyncio.create_task(self._send())
        try:
            while moved := await self._read():
                await self._go_with(moved)
        except PropolisError as error:
            return f"the guest has migrated, and its second serial port cannot be followed: {error.message}"
        finally:
            tasks = [sending, *(request.task for request in self._requests.values() if request.task)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._connection.close()
        return self._connection.close_reason or "its VM has ended"

    def reset(self) -> None:
        """Forget the guest's programs: it boots again, and its reader has to be started again."""
        for request in self._requests.values():
            if request.task is not None:
                request.task.cancel()
        self._rest = b""
        self._requests.clear()
        self._outgoing.clear()
        self._unread.clear()
        self.is_up.clear()
        self._acknowledged.set()
        self._on_reset()

    async def _read(self) -> SerialConsoleMoved | None:
        """Read to the end of the connection; return the guest's new address, if it has migrated."""
        with contextlib.suppress(ConnectionClosed):
            async for data in self._connection:
                if isinstance(data, bytes):
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    for line in lines:
                        self._take(line.decode(errors="replace").strip())
                elif moved := migration_notice(data):
                    return moved
                elif is_reset_notice(data):
                    self.reset()
        return None

    async def _go_with(self, moved: SerialConsoleMoved) -> None:
        """Go on at the next server, which also gets what came too late for the guest at the last one."""
        before, self._connection = self._connection, await self._follow(moved)
        sent, self._sent = self._sent, Sent()
        late, _ = sent.beyond(moved.typed or 0)
        await before.close()
        await self._type(late)

    def _take(self, line: str) -> None:
        """Take a line of the guest; a line that is none of its script's is passed over."""
        match line.split(" "):
            case ["0", "h", _]:
                self.is_up.set()
            case ["0", "k", _]:
                self._acknowledged.set()
            case [key, "a", part]:
                self._requests.setdefault(key, _Request()).arguments.append(part)
            case [key, "i", part]:
                self._requests.setdefault(key, _Request()).typed.append(part)
            case [key, "g", _] if (request := self._requests.get(key)) and request.task is None:
                request.task = asyncio.create_task(self._answer(key, request))
            case [key, "k", _] if key in self._unread:
                self._unread[key] -= 1
                self._has_line.set()
            case [key, "c", _]:
                self._outgoing.pop(key, None)
                self._unread.pop(key, None)
                if (request := self._requests.pop(key, None)) and request.task:
                    request.task.cancel()

    async def _answer(self, key: str, request: _Request) -> None:
        reminding = asyncio.create_task(self._remind(key))
        try:
            words = bytes.fromhex("".join(request.arguments)).decode(errors="surrogateescape").split("\0")[:-1]
            answer = await self._do(words, bytes.fromhex("".join(request.typed)))
        except ValueError as error:
            answer = Answer(2, errors=f"propolis: the request was garbled: {error}\n".encode())
        finally:
            reminding.cancel()
        self._requests.pop(key, None)
        for kind, data in (("o", answer.output), ("e", answer.errors)):
            for start in range(0, len(data), PIECE_BYTES):
                self._queue(key, f"{kind} {_octal(data[start : start + PIECE_BYTES])}")
        self._queue(key, f"x {answer.status}")

    async def _remind(self, key: str) -> None:
        """Let the shell of a command look for signals now and then. What it has not read is as good as a new line."""
        while True:
            await asyncio.sleep(REMINDER_S)
            if not self._unread.get(key) and key not in self._outgoing:
                self._queue(key, "w -")

    def _queue(self, key: str, text: str) -> None:
        self._outgoing.setdefault(key, deque()).append(f"{key} {text}\n")
        self._has_line.set()

    def _next_line(self) -> str | None:
        """Return a line for a request that reads; the requests take turns."""
        for key, lines in self._outgoing.items():
            if (unread := self._unread.get(key, 0)) < UNREAD_LINES:
                line = lines.popleft()
                self._unread[key] = unread + 1
                del self._outgoing[key]
                if lines:
                    self._outgoing[key] = lines  # behind the others
                elif key not in self._requests:
                    del self._unread[key]  # the request ends with its last line
                return line
        return None

    async def _send(self) -> None:
        """Send one line at a time: the guest holds no more."""
        while True:
            await self._has_line.wait()
            await self.is_up.wait()
            if (line := self._next_line()) is None:
                self._has_line.clear()
                continue
            self._acknowledged.clear()
            await self._type(line.encode())
            await self._acknowledged.wait()

    async def _type(self, data: bytes) -> None:
        self._sent.append(data)
        with contextlib.suppress(ConnectionClosed):  # the guest has gone, or it gets this where it has migrated to
            await self._connection.send(data)


def _octal(data: bytes) -> str:
    """Encode data for a shell's ``printf``, without blanks."""
    return _UNSAFE.sub(lambda found: b"\\%03o" % found[0][0], data).decode()
