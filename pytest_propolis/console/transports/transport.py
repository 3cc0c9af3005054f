"""What the client of a read-eval loop needs of the line to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..shell_protocol import Chunk, Signal

__all__ = ["LoopTransport"]


class LoopTransport(Protocol):
    """A line to the read-eval loop of one guest: bytes there, signals of the shell protocol back."""

    may_lose_marks: bool
    """Whether a mark may get lost, so that the client has to request it again."""

    waits_for_client: bool
    """Whether a new shell takes nothing, and says nothing, until the client sends its `preparation`."""

    def attach(
        self, *, on_signal: Callable[[Signal], None], on_reset: Callable[[], None], on_closed: Callable[[], None]
    ) -> None:
        """Give signals and news to a client; to no other from now on.

        :param on_reset: called when the guest has reset its machine.
        :param on_closed: called when nothing in the guest has the line open any more: `launch` starts a new loop.
        """
        ...

    def listen(self) -> None:
        """Pass on what the guest writes, from now on at the latest. What it wrote before is not lost."""
        ...

    async def launch(self, session: str, *, shell: str, wrapper: str) -> None:
        """Start the read-eval loop in the guest; does not wait for it.

        :param wrapper: how the shell at the guest's prompt runs the loop, ``{}`` standing for its command.
        :raises ShellError: when the guest lacks what that needs.
        """
        ...

    def replacement(self, session: str, *, shell: str) -> bytes | None:
        """Return what replaces the loop that `launch` has started by a whole one; None when it is one.

        The whole one says when it is ready.
        """
        ...

    async def open_errors(self, on_signal: Callable[[Signal], None]) -> None:
        """Have a way for standard error alone, and pass its signals on: those with the words of `expect_nonces`.

        :raises CapabilityMissing: when there is none.
        """
        ...

    def encode(self, command: str, nonce: str, session: str, *, errors_apart: bool) -> Iterable[Chunk]:
        """Return the chunks to send for a command: after each but the last, wait for `Acknowledged`.

        :param errors_apart: whether its standard error goes the way of `open_errors`.
        :raises ValueError: when the command contains a NUL.
        """
        ...

    def preparation(self, session: str, nonce: str, *, shell: str) -> Iterable[Chunk]:
        """Return the chunks to send to a new shell first."""
        ...

    def expect_nonces(self, *words: str) -> None:
        """Take those signals of the shell protocol for signals that carry one of these words, and no others."""
        ...

    async def send(self, data: bytes) -> None:
        """Send exactly this.

        :raises ConsoleClosed: when the VM is gone.
        :raises ShellLost: when the line is.
        """
        ...

    async def interrupt(self) -> None:
        """Interrupt what runs in the loop, as Ctrl-C would.

        What is sent when this has returned cannot be hit by it any more.
        """
        ...

    def on_failure(self, future: asyncio.Future[Any]) -> None:
        """Have a future fail with the line, if it is not done by then."""
        ...

    def unrecorded(self) -> AbstractContextManager[None]:
        """Keep what comes meanwhile out of the log: it is binary."""
        ...
