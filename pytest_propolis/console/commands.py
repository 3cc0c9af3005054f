"""A command on its way to the guest's shell, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ..errors import CapabilityMissing
from .shell_protocol import Ended

__all__ = ["CommandResult", "PendingCommand", "Sink", "StallTimeout"]

Sink = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended.

    :param status: its exit status; 128 plus the signal's number if a signal ended it.
    :param output: what it wrote to standard output and standard error, in the order of writing, to the byte; of a
        command that was run with ``separate_stderr``, to standard output alone.
    :param errors: what such a command wrote to standard error; None for others.
    """

    command: str
    status: int
    output: bytes
    errors: bytes | None = None

    @property
    def stdout(self) -> bytes:
        """What the command wrote to standard output.

        :raises CapabilityMissing: when it was run without ``separate_stderr``.
        """
        self._separated()
        return self.output

    @property
    def stderr(self) -> bytes:
        """What the command wrote to standard error.

        :raises CapabilityMissing: when it was run without ``separate_stderr``.
        """
        return self._separated()

    def _separated(self) -> bytes:
        if self.errors is None:
            raise CapabilityMissing(
                "standard output and standard error of this command came together, as `output`",
                hint="run it with run_result(..., separate_stderr=True)",
            )
        return self.errors

    @property
    def text(self) -> str:
        """The output as text, without the newlines at its end."""
        return self.output.decode(errors="replace").rstrip("\n")


class PendingCommand(msgspec.Struct, eq=False):
    """A command on its way."""

    nonce: str
    ended: asyncio.Future[Ended]
    acknowledged: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    remaining: int = 0
    """The lines of the command that are still to come when the guest has read what was sent last."""
    began: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    output: bytearray = msgspec.field(default_factory=bytearray)
    errors: bytearray = msgspec.field(default_factory=bytearray)
    """What came as its standard error, if that is apart."""
    errors_began: bool = False
    errors_ended: asyncio.Future[None] | None = None
    """Done when standard error is complete; None if it is not apart."""
    sink: Sink | None = None
    """Takes the output in place of `output`, as it comes."""

    on_output: Sink | None = None
    """Takes the output beside `output`."""

    def take(self, data: bytes) -> None:
        if self.sink is None:
            self.output += data
            if self.on_output is not None and self.began.is_set():
                self.on_output(data)
        elif self.began.is_set():
            self.sink(data)


class StallTimeout(msgspec.Struct, eq=False):
    """A time-out that begins anew whenever something moves."""

    limit: asyncio.Timeout
    stall_s: float | None

    def over(self) -> None:
        if self.stall_s is None:
            return
        with contextlib.suppress(RuntimeError):  # it has expired already
            self.limit.reschedule(asyncio.get_running_loop().time() + self.stall_s)

    def watching(self, sink: Sink) -> Sink:
        def take(data: bytes) -> None:
            self.over()
            sink(data)

        return take
