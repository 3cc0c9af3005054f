"""The client of a VM's serial console."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from ..errors import ConsoleClosed, ConsoleTimeout
from .escapes import TextFilter
from .log import ConsoleLog
from .shell_protocol import FrameParser, Output, Signal
from .transcript import Found, Transcript

__all__ = ["TAIL_LINES", "Console"]

TAIL_LINES: Final = 30
"""How many lines of console an error shows."""


class Console:
    """The serial console of one VM.

    What the guest shows goes to `transcript` as plain text, to the log file at once (also lines that are not finished),
    and, as signals of the shell protocol, to `on_signal`.

    :param vm: the VM's name, for errors.
    :param log_path: the log file; its directory must exist. What is there already is kept.
    :raises HostError: when the log file cannot be had.
    """

    def __init__(self, connection: ClientConnection, *, vm: str, log_path: Path) -> None:
        self._connection = connection
        self._vm = vm
        self.transcript = Transcript()
        self.on_signal: Callable[[Signal], None] | None = None
        """Called for each signal of the shell protocol that has one of the words given to `heed`."""
        self._parser = FrameParser()
        self._filter = TextFilter()
        self.log = ConsoleLog(log_path)
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def over(cls, connection: ClientConnection, *, vm: str, log_path: Path) -> AsyncIterator[Console]:
        """A console over an open websocket, which it closes."""
        console = cls(connection, vm=vm, log_path=log_path)
        try:
            yield console
        finally:
            await console.aclose()

    async def send(self, data: str | bytes) -> None:
        """Type something: exactly this, without a newline at its end.

        :raises ConsoleClosed: when the VM is gone.
        """
        try:
            await self._connection.send(data.encode() if isinstance(data, str) else data)
        except ConnectionClosed:
            raise self._closed() from None

    async def wait_for(self, pattern: str | re.Pattern[str], *, timeout_s: float) -> Found:
        """Wait until a text, or a match of a regular expression, is shown.

        Text that came after the last match counts too. Any number of waits may be under way at once.

        :raises ConsoleTimeout: when it does not come in time.
        :raises ConsoleClosed: when the VM stops before.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self.transcript.wait_for(pattern)
        except TimeoutError:
            wanted = repr(pattern) if isinstance(pattern, str) else f"a match of {pattern.pattern!r}"
            raise ConsoleTimeout(
                f"{wanted} did not appear on the console",
                vm=self._vm,
                waited_s=timeout_s,
                console_tail=self.tail(),
                log_path=str(self.log.path),
            ) from None

    def heed(self, *words: str) -> None:
        """Take those signals of the shell protocol for signals that carry one of these words, and no others."""
        self._parser.words = words

    @property
    def log_path(self) -> Path:
        return self.log.path

    def tail(self) -> tuple[str, ...]:
        """The last lines shown."""
        return self.transcript.tail(TAIL_LINES)

    def note(self, text: str) -> None:
        """Write a line of our own into the log file, marked as such."""
        self.log.write(f"[propolis] {text}\n")

    async def aclose(self) -> None:
        """Stop following the console. Closing twice is fine."""
        await self._connection.close()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self.log.close()

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self._connection:
                if isinstance(message, bytes):
                    self._feed(message)
        self.transcript.fail(self._closed())

    def _feed(self, data: bytes) -> None:
        for signal in self._parser.feed(data):
            if isinstance(signal, Output):
                text = self._filter.feed(signal.data)
                self.log.write(text)
                self.transcript.append(text)
            if self.on_signal is not None:
                self.on_signal(signal)

    def _closed(self) -> ConsoleClosed:
        return ConsoleClosed(
            "the console closed: the VM has stopped",
            vm=self._vm,
            console_tail=self.tail(),
            log_path=str(self.log.path),
        )
