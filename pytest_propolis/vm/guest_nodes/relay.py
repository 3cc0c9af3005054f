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

from .commands import Answer
from .script import LINE_BYTES

__all__ = ["Relay"]

PIECE_BYTES: Final = LINE_BYTES // 4
"""How much of an output is in a line: each byte may take four."""

_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9./:_=,+@]")

Do = Callable[[list[str], bytes], Awaitable[Answer]]


@dataclass(slots=True)
class _Request:
    """What has come of a request so far, in hexadecimal."""

    arguments: list[str] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Relay:
    """Answers the commands of one guest.

    :param do: does a command with its words and its input.
    """

    def __init__(self, connection: ClientConnection, do: Do) -> None:
        self._connection = connection
        self._do = do
        self._requests: dict[str, _Request] = {}
        self._outgoing: deque[str] = deque()
        self._has_line = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self.is_up = asyncio.Event()
        """Set when the guest's reader runs."""

    async def run(self) -> str:
        """Answer commands until the connection ends; return why it has ended."""
        sending = asyncio.create_task(self._send())
        rest = b""
        try:
            async for data in self._connection:
                if isinstance(data, bytes):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._take(line.decode(errors="replace").strip())
        except ConnectionClosed:
            pass
        finally:
            tasks = [sending, *(request.task for request in self._requests.values() if request.task)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._connection.close_reason or "its VM has ended"

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
            case [key, "c", _] if (request := self._requests.pop(key, None)) and request.task:
                request.task.cancel()

    async def _answer(self, key: str, request: _Request) -> None:
        try:
            words = bytes.fromhex("".join(request.arguments)).decode(errors="surrogateescape").split("\0")[:-1]
            answer = await self._do(words, bytes.fromhex("".join(request.typed)))
        except ValueError as error:
            answer = Answer(2, errors=f"propolis: the request was garbled: {error}\n".encode())
        self._requests.pop(key, None)
        for kind, data in (("o", answer.output), ("e", answer.errors)):
            for start in range(0, len(data), PIECE_BYTES):
                self._queue(f"{key} {kind} {_octal(data[start : start + PIECE_BYTES])}")
        self._queue(f"{key} x {answer.status}")

    def _queue(self, line: str) -> None:
        self._outgoing.append(line)
        self._has_line.set()

    async def _send(self) -> None:
        """Send one line at a time: the guest holds no more."""
        await self.is_up.wait()
        with contextlib.suppress(ConnectionClosed):
            while True:
                self._has_line.clear()
                while self._outgoing:
                    self._acknowledged.clear()
                    await self._connection.send(self._outgoing.popleft().encode() + b"\n")
                    await self._acknowledged.wait()
                await self._has_line.wait()


def _octal(data: bytes) -> str:
    """Return data as ``printf`` of a shell takes it, without blanks."""
    return _UNSAFE.sub(lambda found: b"\\%03o" % found[0][0], data).decode()
