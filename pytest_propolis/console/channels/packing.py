"""How streams are packed for a serial line: compressed, and on the way in also printable. Without I/O.

The line is slow (some 100 KB/s under emulation), so streams cross it compressed. On the way out they are binary. On the
way in they are base64, because one byte is the key that interrupts a command::

    COUNT LF  COUNT bytes of base64, in lines    (then the guest acknowledges)    …    0 LF  (and again)

gzip's checksum finds what the line has lost, and what the kernel has written in between.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from .channel import Exchanged, Garbled

__all__ = ["Unpacker", "packed", "receiving_command", "sending_command", "unpacked_end"]

GZIP: Final = 31
"""zlib's name for the format."""
WINDOW_BYTES: Final = 12_000
"""What a window holds before base64. A Linux terminal takes 4 KiB that are not read yet, and its driver 64 KiB more,
where each takes two."""
PIECE_BYTES: Final = 1 << 20
"""How much is expanded at once."""
GARBLED: Final = "propolis-garbled"

# bash's `read` takes more from a terminal than the line.
_RECEIVE: Final = r"""
(_g=$( { while case ${BASH_VERSION-} in ?*) _n=$(command dd bs=1 count=8 2>/dev/null);; *) IFS= command read -r _n; esac
[ "$_n" ] && command head -c "$_n" && command printf '\036%s\0060\004' NONCE >&2 && [ "$_n" != 0000000 ]
do :; done | base64 -d 2>/dev/null | { gzip -dc 2>/dev/null || command echo GARBLED >&3; } | {
COMMAND
} 3>&- >&2; } 3>&1 )
_s=$?
command printf %s "$_g"
exit "$_s")
"""

# The status goes to standard error, which is shown behind the stream: a pipeline has that of its last command. GNU gzip
# writes to no terminal without -f.
_SEND: Final = r"""
( { _e=$( { { {
COMMAND
} 3>&-
command echo "$?" >&2; } | gzip -cf >&3; } 2>&1 ); } 3>&1
command printf %s "$_e")
"""


def receiving_command(command: str, nonce: str) -> str:
    """Return a command whose terminal brings the standard input of another.

    :param nonce: the word in the marks by which the guest acknowledges.
    """
    return _RECEIVE.strip().replace("NONCE", nonce).replace("GARBLED", GARBLED).replace("COMMAND", command)


def sending_command(command: str) -> str:
    """Return a command that writes the packed standard output of another, and then its errors and its status."""
    return _SEND.strip().replace("COMMAND", command)


async def packed(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the windows to type for a stream: after each, wait for the acknowledgement."""
    compressor = zlib.compressobj(wbits=GZIP)
    rest = b""
    async for data in source:
        rest += compressor.compress(data)
        while len(rest) >= WINDOW_BYTES:
            yield _window(rest[:WINDOW_BYTES])
            rest = rest[WINDOW_BYTES:]
    rest += compressor.flush()
    for start in range(0, len(rest), WINDOW_BYTES):
        yield _window(rest[start : start + WINDOW_BYTES])
    yield b"%07d\n" % 0


def _window(data: bytes) -> bytes:
    text = base64.encodebytes(data)
    return b"%07d\n%b" % (len(text), text)


def unpacked_end(output: bytes, status: int) -> Exchanged:
    """Return how a receiving command ended.

    :raises Garbled: when the guest could not unpack the stream, though the command has taken what there was of it.
    """
    errors, garbled, _ = output.decode(errors="replace").partition(GARBLED)
    if garbled and not status:
        raise Garbled("it reached the guest damaged")
    return Exchanged(status=status, errors=errors.strip())


class Unpacker:
    """Takes what a sending command writes, and gives the stream to a sink."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._expand = zlib.decompressobj(wbits=GZIP)
        self._damaged: zlib.error | None = None
        self._trailer = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece. What is damaged is known at the end."""
        if self._damaged is not None:
            return
        if self._expand.eof:
            self._trailer += data
            return
        try:
            while data and not self._expand.eof:
                if expanded := self._expand.decompress(data, PIECE_BYTES):
                    self._sink(expanded)
                data = self._expand.unconsumed_tail
        except zlib.error as error:
            self._damaged = error

    def end(self) -> Exchanged:
        """Return how the command ended.

        :raises Garbled: when what came is not what was sent.
        """
        if self._damaged is not None or not self._expand.eof:
            raise Garbled(f"it came damaged: {self._damaged or 'a part of it is missing'}")
        *errors, status = (self._expand.unused_data + self._trailer).decode(errors="replace").rstrip("\n").split("\n")
        if not status.isdecimal():
            raise Garbled(f"its status came damaged: {status!r}")
        return Exchanged(status=int(status), errors="\n".join(errors).strip())
