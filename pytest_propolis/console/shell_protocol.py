"""The shell protocol without I/O: how commands are framed on their way into the guest, and results on their way out.

After login the guest's shell runs a small program that reads commands from a line and evaluates them, without echo,
line editor or prompt. One command costs one round trip. The line is the guest's serial port; or a guest port, which has
flow control and loses nothing, and into which commands go in another way (`transports/port_loop.py`).

In, for each command::

    NONCE COUNT FIRST-LINE LF            then COUNT times: KIND TEXT LF

Other lines in the place of the first are passed over: what an interrupted command left unread. But ``? NONCE`` of the
last command asks for its end once more: a kernel that writes much to its console makes a UART lose what others write.
KIND says how TEXT continues the command: ``n`` as its next line, ``c`` as more of the same line, ``o`` as more of the
same line, with octal escapes. A capital letter asks for an acknowledgement, because the guest's terminal buffers no
more than 4 KiB of what it has not read. A line that begins with ``?`` asks for it once more.

Out, for each command::

    RS NONCE STX  output, to the byte  RS NONCE ETX STATUS EOT

with ``RS NONCE ACK COUNT EOT`` for each acknowledgement before, COUNT being the lines that are still to come. When a
command ends the shell itself, ``RS SESSION ENQ STATUS EOT`` comes instead, and ``RS SESSION DC1`` when a new shell has
taken its place. Both words are random and new, so that no output can imitate them by accident: not even the recorded
console of another command.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

import msgspec

__all__ = [
    "INTERRUPT",
    "WINDOW_BYTES",
    "WORD_CHARACTERS",
    "Acknowledged",
    "Began",
    "Chunk",
    "Ended",
    "FrameParser",
    "Output",
    "Ready",
    "Signal",
    "TypedCommand",
    "encode",
    "ended_mark",
    "new_nonce",
    "new_session",
    "repeat_request",
    "typed_command",
]

INTERRUPT: Final = b"\x1c"
"""The key that interrupts a command: the terminal is configured to treat it as other terminals treat Ctrl-C."""

WORD_CHARACTERS: Final = 8
"""How many random letters and digits a word has after its kind: an emulator needs some 40 us for each octet."""

LINE_BYTES: Final = 900
WINDOW_BYTES: Final = 2700
"""How much can be typed at a terminal that buffers no more than 4 KiB."""


def repeat_request(nonce: str) -> bytes:
    """Return what asks the loop to say once more that a command has ended, or how much of it is still to come.

    With the word of the session, it asks whether the loop is there. It has no effect while a command runs.
    """
    return f"?{nonce}\n".encode()


def ended_mark(nonce: str, status: int) -> str:
    """Return the mark of a command's end."""
    return f"\x1e{nonce}\x03{status}\x04"


def new_session() -> str:
    """Return a word for one run of the program."""
    return "s" + _random()


def new_nonce(*, interactive: bool = False) -> str:
    """Return a word for one command. Those with a leading ``i`` get the terminal as their standard input."""
    return ("i" if interactive else "r") + _random()


def _random() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(WORD_CHARACTERS))


class Chunk(NamedTuple):
    """As much of a command as can be typed at once.

    :param remaining: how many lines come after it.
    """

    data: bytes
    remaining: int


def encode(command: str, nonce: str) -> Iterator[Chunk]:
    """Yield the chunks to type for a command: after each but the last, wait for `Acknowledged`.

    :raises ValueError: when the command has a NUL, which no shell can hold.
    """
    if "\0" in command:
        raise ValueError("a command cannot contain a NUL character")
    first, *rest = _pieces(command.encode("utf-8", errors="surrogateescape"))
    chunk = [b"%b %d %b" % (nonce.encode(), len(rest), first[1:])]
    for remaining, piece in zip(range(len(rest), 0, -1), rest, strict=True):
        if len(chunk) > 1 and sum(map(len, chunk)) + len(piece) > WINDOW_BYTES:
            yield Chunk(_joined([*chunk[:-1], chunk[-1][:1].upper() + chunk[-1][1:]]), remaining)
            chunk = []
        chunk.append(piece)
    yield Chunk(_joined(chunk), 0)


class TypedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command for another process to type at the read-eval loop.

    :param text: what to type.
    :param succeeded: what the guest shows at the very end of it, if its status is 0.
    """

    nonce: str
    text: str
    succeeded: str


def typed_command(command: str) -> TypedCommand:
    """Return a short command, framed.

    :raises ValueError: when it is too long to be typed without acknowledgements, or has a NUL.
    """
    nonce = new_nonce()
    chunk, *others = encode(command, nonce)
    if others:
        raise ValueError(f"it has {len(command)} characters, and at most {WINDOW_BYTES} can be typed at once")
    return TypedCommand(nonce=nonce, text=chunk.data.decode(), succeeded=ended_mark(nonce, 0))


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
"""What is not typed as it is: a terminal may be configured to act on any of these keys."""


def _pieces(command: bytes) -> Iterator[bytes]:
    """Physical lines: the kind and the text of each."""
    kind = b"n"
    for line in command.split(b"\n"):
        for start in range(0, max(len(line), 1), LINE_BYTES):
            text = line[start : start + LINE_BYTES]
            if _CONTROL.search(text):
                yield from _escaped(kind, text)
            else:
                yield kind + text
            kind = b"c"
        kind = b"n"


def _escaped(kind: bytes, text: bytes) -> Iterator[bytes]:
    yield kind
    for start in range(0, len(text), LINE_BYTES // 5):
        part = text[start : start + LINE_BYTES // 5]
        yield b"o" + b"".join(b"\\0%03o" % byte for byte in part)


class Output(msgspec.Struct, frozen=True):
    """Bytes that are no part of the protocol: a command's output, or what else the console shows."""

    data: bytes


class Ready(msgspec.Struct, frozen=True):
    """The loop waits for commands."""


class Acknowledged(msgspec.Struct, frozen=True):
    """The guest has read a chunk; so many lines of the command are still to come."""

    remaining: int


class Began(msgspec.Struct, frozen=True):
    """The command with this nonce runs: output that follows is its own."""

    nonce: str


class Ended(msgspec.Struct, frozen=True):
    """A command has ended. Without a nonce: the shell that ran it has, and was replaced."""

    nonce: str | None
    status: int


Signal = Output | Ready | Acknowledged | Began | Ended

_MARK: Final = re.compile(
    rb"\x1e(?P<word>[irs][0-9A-Za-z]{8})"
    rb"(?:(?P<began>\x02)|\x03(?P<status>\d{1,3})\x04|\x06(?P<ack>\d{1,9})\x04|\x05(?P<died>\d{1,3})\x04|(?P<ready>\x11))"
)
_PARTIAL: Final = re.compile(rb"\x1e(?:[irs][0-9A-Za-z]{0,8}(?:(?:[\x03\x05]\d{0,3}|\x06\d{0,9}))?)?")
_LONGEST_MARK: Final = 25
_MARK_END: Final = re.compile(rb"[\x02\x04\x11]")
_LONGEST_INTERRUPTION: Final = 1 << 16


class _Found(msgspec.Struct, frozen=True):
    """A mark: its signal, where it ends, and the kernel's lines that came in the middle of it."""

    signal: Signal
    end: int
    interruption: bytes = b""


class FrameParser:
    """Finds the protocol's signals in what the console shows.

    It is fed with bytes as they come. A signal that is cut by the end of a chunk is held back until the rest comes.
    The kernel writes to its console whenever it likes: lines of its own in the middle of a signal are put before it.

    :param words: the session and the nonces that are in use. What only looks like a signal is output. While there are
        none, nothing is held back.
    """

    def __init__(self, words: Collection[str] = ()) -> None:
        self.words = words
        self._rest = b""

    def restart(self) -> Iterator[Signal]:
        """Use no words any more; yield what was held back, which no signal follows."""
        self.words = ()
        data, self._rest = self._rest, b""
        yield from _output(data)

    def feed(self, data: bytes) -> Iterator[Signal]:
        data = self._rest + data
        self._rest = b""
        written = position = 0
        while (start := data.find(b"\x1e", position)) >= 0:
            stop = data.find(b"\x1e", start + 1)
            found = self._whole(data, start) or self._interrupted(data, start, stop)
            if found:
                yield from _output(data[written:start] + found.interruption)
                yield found.signal
                written = position = found.end
            elif self.words and stop < 0 and len(data) - start < _LONGEST_INTERRUPTION and not _MARK.match(data, start):
                self._rest = data[start:]
                data = data[:start]
                break
            else:
                position = start + 1
        yield from _output(data[written:])

    def _whole(self, data: bytes, start: int) -> _Found | None:
        mark = _MARK.match(data, start)
        return _Found(_signal(mark), mark.end()) if mark and mark["word"].decode() in self.words else None

    def _interrupted(self, data: bytes, start: int, stop: int) -> _Found | None:
        """Return a mark in two or three pieces, each but the first behind whole lines, which have no mark in them."""
        limit = start + _LONGEST_INTERRUPTION
        ending = _MARK_END.search(data, start, min(limit, stop) if stop >= 0 else limit)
        if ending is None:
            return None
        first, *lines = data[start : ending.end()].split(b"\n")
        for mark, interruption in _rejoined(first, lines):
            if mark["word"].decode() in self.words:
                return _Found(_signal(mark), ending.end(), interruption)
        return None


def _rejoined(first: bytes, lines: list[bytes]) -> Iterator[tuple[re.Match[bytes], bytes]]:
    """Yield the marks that pieces at the beginnings of lines may be; the last line is a piece and nothing else."""
    begun = _PARTIAL.match(first)
    if begun is None or not lines or len(lines[-1]) > _LONGEST_MARK:
        return
    *between, last = lines
    for cut in range(begun.end(), 0, -1):
        if mark := _MARK.fullmatch(first[:cut] + last):
            yield mark, b"\n".join([first[cut:], *between, b""])
        for index, line in enumerate(between):
            for size in range(min(len(line), _LONGEST_MARK), 0, -1):
                if mark := _MARK.fullmatch(first[:cut] + line[:size] + last):
                    yield mark, b"\n".join([first[cut:], *between[:index], line[size:], *between[index + 1 :], b""])


def _output(data: bytes) -> Iterator[Output]:
    if data:
        yield Output(data)


def _signal(mark: re.Match[bytes]) -> Signal:
    if mark["began"]:
        return Began(mark["word"].decode())
    if mark["status"]:
        return Ended(mark["word"].decode(), int(mark["status"]))
    if mark["died"]:
        return Ended(None, int(mark["died"]))
    return Ready() if mark["ready"] else Acknowledged(int(mark["ack"]))
