"""The line to a read-eval loop on the serial console's terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from ...errors import CapabilityMissing
from ..console import Console
from ..read_eval_loop import preparation, program, starting_program, whole_program_command
from ..shell_protocol import INTERRUPT, Chunk, Signal, encode, new_nonce

__all__ = ["ConsoleTransport"]


class ConsoleTransport:
    """The `LoopTransport` that every guest has. A key of the terminal interrupts.

    :param starts_another: whether the loop is there to start that of a port: it is a small one at first.
    """

    may_lose_marks = True
    waits_for_client = False

    def __init__(self, console: Console, *, starts_another: bool = False) -> None:
        self._console = console
        self._starts_another = starts_another
        self.expect_nonces = console.expect_nonces
        self.on_failure: Callable[[asyncio.Future[Any]], None] = console.transcript.on_failure
        self.unrecorded: Callable[[], AbstractContextManager[None]] = console.unrecorded

    def attach(
        self, *, on_signal: Callable[[Signal], None], on_reset: Callable[[], None], on_closed: Callable[[], None]
    ) -> None:
        self._console.on_signal = on_signal
        self._console.on_reset = on_reset

    def listen(self) -> None:
        pass  # it is listened to from the start

    async def launch(self, session: str, *, shell: str, wrapper: str) -> None:
        loop = starting_program(session) if self._starts_another else program(session, shell=shell)
        await self._console.send(wrapper.replace("{}", loop) + "\n")

    def replacement(self, session: str, *, shell: str) -> bytes | None:
        if not self._starts_another:
            return None
        # A whole loop gives its terminal to commands with such a nonce.
        nonce = new_nonce(interactive=True)
        return f"{nonce} 0 {whole_program_command(session, shell=shell)}\n".encode()

    async def open_errors(self, on_signal: Callable[[Signal], None]) -> None:
        raise CapabilityMissing(
            "the serial console does not separate standard error from standard output",
            vm=self._console.vm,
            hint='VmConfig(channel="port") does; or redirect one of them to a file',
        )

    def encode(self, command: str, nonce: str, session: str, *, errors_apart: bool) -> Iterable[Chunk]:
        return encode(command, nonce)

    def preparation(self, session: str, nonce: str, *, shell: str) -> Iterable[Chunk]:
        return encode(preparation(session, nonce, shell=shell), nonce)

    async def send(self, data: bytes) -> None:
        await self._console.send(data)

    async def interrupt(self) -> None:
        # The newline ends what may have been typed half.
        await self._console.send(INTERRUPT + b"\n")
