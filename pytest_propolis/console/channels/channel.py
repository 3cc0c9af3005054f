"""A channel to a guest: what carries streams of bytes to and from commands that run there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

__all__ = ["ByteChannel", "Exchanged", "Garbled"]


class Garbled(Exception):
    """Raised when a stream did not arrive as it was sent. The caller can ask for it once more."""


class Exchanged(msgspec.Struct, frozen=True, kw_only=True):
    """How a command with a stream ended.

    :param status: its exit status.
    :param errors: what it wrote to standard error; for an upload, also to standard output.
    """

    status: int
    errors: str


class ByteChannel(Protocol):
    """Runs commands of a POSIX shell in the guest, with a stream of bytes as their input or their output.

    Commands run in a shell of their own. Memory is bounded: a stream is read and delivered in pieces.
    """

    block_bytes: int | None
    """How much to request at once, because damaged data is requested again; None if nothing can be damaged."""

    async def upload(self, command: str, source: AsyncIterator[bytes], *, note: str) -> Exchanged:
        """Run a command with a stream as its standard input.

        :param note: the text the log shows for it.
        :raises Garbled: when the stream arrived damaged; the command has seen the damaged stream then.
        :raises CommandTimeout: when nothing moves any more.
        """
        ...

    async def download(self, command: str, sink: Callable[[bytes], None], *, note: str) -> Exchanged:
        """Run a command, and give its standard output to `sink` as it comes.

        :param note: the text the log shows for it.
        :raises Garbled: when the stream arrived damaged; `sink` has had a part of it then.
        :raises CommandTimeout: when nothing moves any more.
        """
        ...
