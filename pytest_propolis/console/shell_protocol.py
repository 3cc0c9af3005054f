"""The shell protocol without I/O: how commands are framed on their way into the guest, and results on their way out.

After login the guest's shell runs a small program that reads commands from the serial line and evaluates them, without
echo, line editor or prompt. One command costs one round trip.

In, for each command::

    NONCE COUNT FIRST-LINE LF            then COUNT times: KIND TEXT LF

Other lines in the place of the first are passed over: what an interrupted command left unread.
KIND says how TEXT continues the command: ``n`` as its next line, ``c`` as more of the same line, ``o`` as more of the
same line, with octal escapes. A capital letter asks for an acknowledgement, because the guest's terminal buffers no
more than 4 KiB of what it has not read.

Out, for each command::

    RS NONCE STX  output, to the byte  RS NONCE ETX STATUS EOT

with ``RS NONCE ACK`` for each acknowledgement before. When a command ends the shell itself, ``RS SESSION ENQ STATUS
EOT`` comes instead, and ``RS SESSION DC1`` when a new shell has taken its place. Both words are random and new, so that
no output can imitate them by accident: not even the recorded console of another command.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = [
    "INTERRUPT",
    "Acknowledged",
    "Began",
    "Ended",
    "FrameParser",
    "Output",
    "Ready",
    "Signal",
    "TypedCommand",
    "encode",
    "hand_over_command",
    "interactive_command",
    "new_nonce",
    "new_session",
    "program",
    "typed_command",
]

INTERRUPT: Final = b"\x1c"
"""The key that interrupts a command: the terminal is told to treat it as other terminals treat Ctrl-C."""

LINE_BYTES: Final = 900
WINDOW_BYTES: Final = 2700

# Busybox colours what ls shows on a terminal, unless this is set and empty.
_LOOP: Final = r"""
export LS_COLORS=
while IFS= read -r _ph; do
case $_ph in [ir]%(word)s\ *);; *) continue;; esac
_pn=${_ph%% *}; _ph=${_ph#* }; _pk=${_ph%% *}; _pc=${_ph#* }
while [ "$_pk" -gt 0 ]; do
IFS= read -r _pl || exit; _pk=$((_pk-1))
case $_pl in
[nN]*) _pc="$_pc
${_pl#?}";;
[cC]*) _pc=$_pc${_pl#?};;
[oO]*) _pt=$(printf "%b." "${_pl#?}"); _pc=$_pc${_pt%.};;
esac
case $_pl in [NCO]*) printf "\036%s\006" "$_pn";; esac
done
printf "\036%s\002" "$_pn"
case $_pn in
i*) command eval "$_pc";;
*) command eval "$_pc" </dev/null;;
esac
printf "\036%s\003%d\004" "$_pn" $?
done
"""

_SUPERVISOR: Final = r"""
trap : INT
raw() { stty raw -echo && stty isig intr %(interrupt)s; }
while raw || raw; do
printf "\036%(session)s\021"
%(shell)s -c %(loop)s
printf "\036%(session)s\005%%d\004" $?
done
"""

INTERACTIVE: Final = 'stty sane; "${SHELL:-/bin/sh}" -i; stty raw -echo; stty isig intr %s'

HAND_OVER: Final = 'while :; do stty sane; "${SHELL:-/bin/sh}" -i || sleep 1; done'


def program(session: str, *, shell: str = "sh") -> str:
    """The read-eval loop as one command for a POSIX shell, to be typed at its prompt.

    Two levels: the inner shell evaluates commands, and keeps their variables and directory from one to the next; the
    outer one starts it again when a command ends it.
    """
    supervisor = _SUPERVISOR % {
        "session": session,
        "interrupt": _quote("^\\"),
        "shell": shell,
        "loop": _quote(_LOOP.strip().replace("%(word)s", "[0-9a-f]" * 12)),
    }
    return f"{shell} -c {_quote(supervisor.strip())}"


def interactive_command() -> str:
    """A command that puts the user's own shell on the terminal, and the loop back when that ends."""
    return INTERACTIVE % _quote("^\\")


def hand_over_command() -> str:
    """A command that puts the user's own shell on the terminal for good: when that ends, another one comes."""
    return HAND_OVER


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def new_session() -> str:
    """A word for one run of the program."""
    return "s" + secrets.token_hex(6)


def new_nonce(*, interactive: bool = False) -> str:
    """A word for one command. Those with a leading ``i`` get the terminal as their standard input."""
    return ("i" if interactive else "r") + secrets.token_hex(6)


def encode(command: str, nonce: str) -> Iterator[bytes]:
    """The chunks to send for a command: after each but the last, wait for `Acknowledged`.

    :raises ValueError: when the command has a NUL, which no shell can hold.
    """
    if "\0" in command:
        raise ValueError("a command cannot contain a NUL character")
    first, *rest = _pieces(command.encode("utf-8", errors="surrogateescape"))
    chunk = [b"%b %d %b" % (nonce.encode(), len(rest), first[1:])]
    for piece in rest:
        if len(chunk) > 1 and sum(map(len, chunk)) + len(piece) > WINDOW_BYTES:
            yield _chunk([*chunk[:-1], chunk[-1][:1].upper() + chunk[-1][1:]])
            chunk = []
        chunk.append(piece)
    yield _chunk(chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedCommand:
    """A command for somebody else to type at the read-eval loop.

    :param text: what to type.
    :param succeeded: what the guest shows at the very end of it, if its status is 0.
    """

    nonce: str
    text: str
    succeeded: str


def typed_command(command: str) -> TypedCommand:
    """A short command, framed.

    :raises ValueError: when it is too long to be typed without acknowledgements, or has a NUL.
    """
    nonce = new_nonce()
    chunk, *others = encode(command, nonce)
    if others:
        raise ValueError(f"it has {len(command)} characters, and at most {WINDOW_BYTES} can be typed at once")
    return TypedCommand(nonce=nonce, text=chunk.decode(), succeeded=f"\x1e{nonce}\x030\x04")


def _chunk(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _pieces(command: bytes) -> Iterator[bytes]:
    """Physical lines: the kind and the text of each."""
    kind = b"n"
    for line in command.split(b"\n"):
        for start in range(0, max(len(line), 1), LINE_BYTES):
            text = line[start : start + LINE_BYTES]
            if INTERRUPT in text:
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


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that are no part of the protocol: a command's output, or what else the console shows."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """The loop waits for commands."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The guest has read a chunk."""


@dataclass(frozen=True, slots=True)
class Began:
    """The command with this nonce runs: output that follows is its own."""

    nonce: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A command has ended. Without a nonce: the shell that ran it has, and was replaced."""

    nonce: str | None
    status: int


Signal = Output | Ready | Acknowledged | Began | Ended

_MARK: Final = re.compile(
    rb"\x1e(?P<word>[irs][0-9a-f]{12})"
    rb"(?:(?P<began>\x02)|\x03(?P<status>\d{1,3})\x04|(?P<ack>\x06)|\x05(?P<died>\d{1,3})\x04|(?P<ready>\x11))"
)
_PARTIAL: Final = re.compile(rb"\x1e(?:[irs][0-9a-f]{0,12}(?:[\x03\x05]\d{0,3})?)?\Z")
_LONGEST_MARK: Final = 20


class FrameParser:
    """Finds the protocol's signals in what the console shows.

    It is fed with bytes as they come. A signal that is cut by the end of a chunk is held back until the rest comes.

    :param words: the session and the nonces that are in use. What only looks like a signal is output.
    """

    def __init__(self, words: Collection[str] = ()) -> None:
        self.words = words
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Signal]:
        data = self._rest + data
        partial = _PARTIAL.search(data, max(0, len(data) - _LONGEST_MARK))
        end = partial.start() if partial else len(data)
        self._rest = data[end:]
        position = 0
        for mark in _MARK.finditer(data, 0, end):
            if mark["word"].decode() not in self.words:
                continue
            if mark.start() > position:
                yield Output(data[position : mark.start()])
            yield _signal(mark)
            position = mark.end()
        if position < end:
            yield Output(data[position:end])


def _signal(mark: re.Match[bytes]) -> Signal:
    if mark["began"]:
        return Began(mark["word"].decode())
    if mark["status"]:
        return Ended(mark["word"].decode(), int(mark["status"]))
    if mark["died"]:
        return Ended(None, int(mark["died"]))
    return Ready() if mark["ready"] else Acknowledged()
