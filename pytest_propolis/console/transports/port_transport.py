"""The line to a read-eval loop over a guest port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from ...agent_api.guest_ports import ERRORS_PORT, INTERRUPT_PORT
from ...errors import PropolisError, ShellError
from ...propolis_api.connection.byte_stream import ByteStream, StreamEnded
from ..commands import CommandResult
from ..console import Console
from ..escapes import TextFilter
from ..kernel.ends import asks_for_an_end
from ..shell_protocol import Acknowledged, Chunk, FrameParser, Output, Signal, new_nonce
from .port_line import PortLine
from .port_loop import (
    ERRORS_DESCRIPTOR,
    INTERRUPT_DESCRIPTOR,
    PORT_DESCRIPTOR,
    encode_for_port,
    port_launch,
    port_preparation,
)

__all__ = ["PortTransport"]

LAUNCH_TIMEOUT_S: Final = 60.0

CLOSED_AFTER_S: Final = 2.0
"""How long after all its shells a guest may take to reset or to stop, which is why they have ended then."""

# An emulated guest needs some 80 us for each octet on its serial line: so all but this is read from the port. There,
# what an earlier boot has left unread comes before the line with the nonce.
_LAUNCH: Final = (
    '(OPEN;until [ "$_l" = NONCE ];do IFS= read -r _l<&9||{ echo "the port is at its end";exit 1;};done;exec sh -s<&9)'
)


class Launcher(Protocol):
    """The shell on the guest's console."""

    async def run_first(self, command: str, *, timeout_s: float, note: str) -> CommandResult:
        """Run a command that may come before the shell's preparation; does not check its status."""
        ...


class PortTransport:
    """The `LoopTransport` of a guest with ports. No terminal is involved, and another port interrupts.

    :param launcher: the shell on the console, which starts the loop.
    """

    may_lose_marks = False
    waits_for_client = True

    def __init__(self, line: PortLine, console: Console, launcher: Launcher, *, vm: str) -> None:
        self._line = line
        self._console = console
        self._launcher = launcher
        self._vm = vm
        self._session = ""
        self._parser = FrameParser()
        self._errors_parser = FrameParser()
        self._filter = TextFilter()
        self._errors_filter = TextFilter()
        self._recorded = True
        self._supervisor_read: asyncio.Future[None] | None = None
        self._closed: asyncio.TimerHandle | None = None
        """Reports that the guest has closed the port, in a moment."""
        self._on_signal: Callable[[Signal], None] | None = None
        self._on_error_signal: Callable[[Signal], None] | None = None
        self.on_failure: Callable[[asyncio.Future[Any]], None] = line.on_failure

    def attach(
        self, *, on_signal: Callable[[Signal], None], on_reset: Callable[[], None], on_closed: Callable[[], None]
    ) -> None:
        self._on_signal = on_signal

        def closed() -> None:
            self._closed = asyncio.get_running_loop().call_later(CLOSED_AFTER_S, on_closed)

        self._line.on_closed = closed
        reset_of_launcher = self._console.on_reset

        def reset() -> None:
            if reset_of_launcher is not None:
                reset_of_launcher()
            on_reset()

        self._console.on_reset = reset

    def listen(self) -> None:
        self._line.listen(self._feed)

    async def launch(self, session: str, *, shell: str, wrapper: str) -> None:
        if self._closed is not None:
            self._closed.cancel()  # that was the loop before, whose user has logged in again
        await self._wake_interrupter()
        read = self._supervisor_read = asyncio.get_running_loop().create_future()
        self.on_failure(read)
        nonce = new_nonce()
        ports = self._line.ports
        others = ports.open_script({INTERRUPT_PORT: INTERRUPT_DESCRIPTOR, ERRORS_PORT: ERRORS_DESCRIPTOR})
        await self._line.send(f"\n{nonce}\n{port_launch(session, open_others=others, shell=shell)}".encode())
        opening = ports.open_script({self._line.number: PORT_DESCRIPTOR})
        launched = await self._launcher.run_first(
            _LAUNCH.replace("OPEN", opening).replace("NONCE", nonce),
            timeout_s=LAUNCH_TIMEOUT_S,
            note="starting the shell on a guest port",
        )
        if launched.status:
            raise ShellError(
                f"the guest cannot take commands over a port: {launched.text}",
                vm=self._vm,
                console_tail=self._console.tail(),
                log_path=str(self._console.log_path),
                hint='VmConfig(channel="console") needs no port',
            )
        await read

    def replacement(self, session: str, *, shell: str) -> bytes | None:
        return None

    async def open_errors(self, on_signal: Callable[[Signal], None]) -> None:
        line = await self._line.companion(ERRORS_PORT)
        if line.on_data != self._feed_errors:
            self._errors_parser = FrameParser(self._parser.words)
            line.listen(self._feed_errors)
        self._on_error_signal = on_signal

    def encode(self, command: str, nonce: str, session: str, *, errors_apart: bool) -> Iterable[Chunk]:
        return encode_for_port(command, nonce, session, errors_apart=errors_apart)

    def preparation(self, session: str, nonce: str, *, shell: str) -> Iterable[Chunk]:
        return (Chunk(port_preparation(session, nonce), 0),)

    def expect_nonces(self, *words: str) -> None:
        self._session = words[0]
        self._parser.words = self._errors_parser.words = words

    async def send(self, data: bytes) -> None:
        if asks_for_an_end(data):
            self._console.ends.allow()
        await self._line.send(data)

    async def interrupt(self) -> None:
        # While the guest migrates this may fail: the next attempt finds it at its new host.
        with contextlib.suppress(StreamEnded, PropolisError):
            async with self._interrupt_port() as connection:
                line = f"{self._session} {new_nonce()}\n".encode()
                await connection.send(b"\n" + line)
                answer = b""
                while line not in answer:
                    answer += await connection.receive()

    async def _wake_interrupter(self) -> None:
        """Let the process that interrupts notice that its supervisor has been killed, which makes it close its port."""
        with contextlib.suppress(StreamEnded):
            async with self._interrupt_port() as connection:
                await connection.send(b"\n")

    @contextlib.asynccontextmanager
    async def _interrupt_port(self) -> AsyncIterator[ByteStream]:
        connection = await self._line.ports.connect(INTERRUPT_PORT)
        try:
            yield connection
        finally:
            connection.abort()

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[None]:
        self._recorded = False
        try:
            yield
        finally:
            self._recorded = True

    def _feed_errors(self, data: bytes) -> None:
        for signal in self._errors_parser.feed(data):
            self._show(signal, self._errors_filter)
            if self._on_error_signal is not None:
                self._on_error_signal(signal)

    def _feed(self, data: bytes) -> None:
        for signal in self._parser.feed(data):
            self._show(signal, self._filter)
            if isinstance(signal, Acknowledged) and self._supervisor_read is not None:
                if not self._supervisor_read.done():
                    self._supervisor_read.set_result(None)
                self._supervisor_read = None
            if self._on_signal is not None:
                self._on_signal(signal)

    def _show(self, signal: Signal, text_filter: TextFilter) -> None:
        """Show output; any other signal ends a sequence that a command has left unfinished."""
        if not isinstance(signal, Output):
            self._console.show_output(text_filter.finish())
        elif self._recorded:
            self._console.show_output(text_filter.feed(signal.data))
