"""The program that a guest's shell runs to take commands from a port.

A shell reads its own input in blocks, where `read` makes a system call or two per byte. So the shell of a port has the
port as its standard input, and the client sends it lines to execute: there is no loop in the guest. What a command
writes is marked as `shell_protocol` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ..read_eval_loop import BASH_AFTER, BASH_BEFORE, BASH_START, named, quoted
from ..shell_protocol import Chunk, TypedCommand, ended_mark, new_nonce

__all__ = [
    "ERRORS_DESCRIPTOR",
    "INTERRUPT_DESCRIPTOR",
    "PORT_DESCRIPTOR",
    "encode_for_port",
    "framed_command_for_port",
    "port_launch",
    "port_preparation",
    "port_supervisor",
    "typed_command_for_port",
]

PORT_DESCRIPTOR: Final = 9
INTERRUPT_DESCRIPTOR: Final = 8
ERRORS_DESCRIPTOR: Final = 7

CHUNK_BYTES: Final = 1 << 16
"""How much of a command is sent before the guest acknowledges that it has read it."""

# What an earlier boot or an interrupted shell has left in the port is no line with the session, and is skipped before
# each new shell: no half of a command is executed. A signal ends `read` as the end of the file does, which a port has
# only while its machine has no other side.
#
# The shells have a process group of their own, as on a terminal: an interrupt is sent to the group. Each is answered:
# it cannot hit what the client sends after that.
#
# Commands write to pipes, and `cat` to the ports: a port can be opened only once, so it cannot be /dev/stdout. When the
# shells have ended, everything ends, which closes the ports. When a `cat` has been killed, the shells are hung up on,
# as those of a terminal that goes away: one that waits for a command would not notice, and its output would be lost.
#
# What it says first is that the shell which has read it from the port, in blocks, lets go of the port: nothing of what
# follows is lost.
_SUPERVISOR: Final = r"""printf "\036SESSION\0060\004" >&9
trap : 2 3
(trap '' 2 3
exec 9>&- 7>&-
while IFS= read -r _l <&8; do
kill -0 $$ || exit
case $_l in SESSION\ *) kill -INT -$$; printf '%s\n' "$_l" >&8; esac
done) &
exec 8<&9
_r() { trap '' 2 3; exec 7>&- 8<&- 9>&-; cat; kill -HUP -$$; }
{ (
trap : 2 3
_k=0
while :; do
_l=
until [ "$_l" = SESSION ]; do
if IFS= read -r _l <&8; then _k=0
else _l= _k=$((_k+1)); [ "$_k" -lt 100 ] || exit; fi
done
printf "\036SESSION\021" >&9
SHELL -s <&8 >&9 2>&9
_l=$?
printf "\036SESSION\005%d\004" $_l >&7
printf "\036SESSION\005%d\004" $_l >&9 || exit
done
) 9>&1 >/dev/null | _r >&9; } 7>&1 | _r >&7
"""

# Only the end of the braces makes the shell begin. setsid forks where it leads a process group already: so the loop
# does not stay a job of the shell on the console.
_LAUNCH: Final = """{
OPEN
exec setsid setsid sh -c SUPERVISOR </dev/null >/dev/null 2>&1
}
"""

# @ begins the name of each variable and function, so that no command has one of that name. The functions are made for
# options, traps, IFS, functions and aliases that a command may have left behind.
_FUNCTIONS: Final = r"""export LS_COLORS= COLUMNS=1000 PAGER=cat
@o= @u= @q=1
START
@r() { command return "$@s"; }
@f() {
unset -f command >/dev/null 2>&1
command set +ax
AFTER
@s=$1 @o=$2
command kill -0 "$PPID" || command exit
case ${3-} in ?*) command printf "\036$@n\003$1\004" >&7; esac
command printf "\036$@n\003$1\004" >&9
}
@b() {
BEFORE
case ${3-} in ?*) command printf "\036$@n\002" >&7; esac
command printf "\036$@n\002" >&9
case $2 in *a*) command set -a; esac
case $2 in *x*) command set -x; esac
}
"""

_ANY_SHELL: Final = {"START\n": "", "AFTER\n": "", "BEFORE\n": ""}
_BASH: Final = {"START\n": BASH_START, "AFTER\n": BASH_AFTER, "BEFORE\n": BASH_BEFORE}

_PREPARATION: Final = r"""
SESSION
case ${BASH_VERSION-} in ?*) eval FOR_BASH;; *) eval FOR_OTHERS; esac
@n=NONCE; @f 0 ''
"""

# A command gets none of the descriptors of the ports, and so can neither close nor hold them. It is evaluated here and
# not in a function, where `set --`, `local` and `return` have another meaning; twice, because only the branches of an
# `if` begin with a status that can be chosen. ERRORS is 1 or 7; bash sets PIPESTATUS while it expands it.
_COMMAND: Final = r"""BEFORE{ @b - "$@o" APART; if @r "$@u"
then \command eval "$@c" >&9 2>&"$((@q*ERRORS))" 7>&- 8<&- 9>&-
else \command eval "$@c" >&9 2>&"$((@q*ERRORS))" 7>&- 8<&- 9>&-; fi
@f "$?" "$-" APART; } </dev/null >/dev/null 2>&1AFTER
"""

# A shell that executes nothing any more still reads. So such a command gets an empty input, which the shell replaces by
# the port afterwards, or at whose end it exits.
_MAY_STOP_EXECUTING: Final = re.compile(r"noexec|\bset\b.*-[a-zA-Z]*n")
_WITH_EMPTY_INPUT: Final = {"BEFORE": r"\command exec </dev/null; ", "AFTER": r"; \command exec <&8"}


def port_launch(session: str, *, open_others: str, shell: str = "sh") -> str:
    """Return the script that starts a `port_supervisor`, for ``sh -s`` with its port as input and as descriptor 9.

    :param open_others: a line that opens the other ports, or says why it cannot and ends the script.
    """
    supervisor = quoted(port_supervisor(session, shell=shell))
    return _LAUNCH.replace("OPEN", open_others).replace("SUPERVISOR", supervisor)


def port_supervisor(session: str, *, shell: str = "sh") -> str:
    """Return the script that starts shells, with three open ports.

    It acknowledges the session first. Descriptor 9 is the port of the shells, 7 that of
    standard error apart, 8 that of interrupts. A shell starts when a line from descriptor 9 is the session. A line on
    descriptor 8 that begins with the session and a space interrupts the commands; the answer is the same line. The
    script must lead a process group of its own.

    For the shells, descriptor 8 is the port to read from, and 9 and 7 are pipes to the ports.

    :param shell: the POSIX shell that evaluates commands.
    """
    return _SUPERVISOR.replace("SESSION", session).replace("SHELL", shell)


def port_preparation(session: str, nonce: str) -> bytes:
    """Return what starts a shell, and what that executes first. It reports the end of a command with this nonce."""
    text = _PREPARATION.replace("SESSION", session).replace("NONCE", nonce)
    text = text.replace("FOR_BASH", quoted(_functions(_BASH))).replace("FOR_OTHERS", quoted(_functions(_ANY_SHELL)))
    return named(text, session).encode()


def encode_for_port(command: str, nonce: str, session: str, *, errors_apart: bool = False) -> Iterator[Chunk]:
    """Yield the chunks to send for a command: after each but the last, wait for `Acknowledged`.

    :param errors_apart: whether standard error goes to the port of descriptor 7.
    :raises ValueError: when the command has a NUL, which no shell can hold.
    """
    if "\0" in command:
        raise ValueError("a command cannot contain a NUL character")
    first, *rest = _pieces(command.encode("utf-8", errors="surrogateescape"))
    line = named(f"@n={nonce} @c=", session).encode() + _quoted(first)
    for remaining, piece in zip(range(len(rest), 0, -1), rest, strict=True):
        yield Chunk(line + rb"; command printf '\036%b\006%d\004' >&9" % (nonce.encode(), remaining) + b"\n", remaining)
        line = named("@c=$@c", session).encode() + _quoted(piece)
    last = _COMMAND.replace("ERRORS", str(ERRORS_DESCRIPTOR if errors_apart else 1))
    last = last.replace(" APART", " apart" if errors_apart else "")
    for place, text in _WITH_EMPTY_INPUT.items():
        last = last.replace(place, text if _MAY_STOP_EXECUTING.search(command) else "")
    yield Chunk(line + b"; " + named(last, session).encode(), 0)


def framed_command_for_port(command: str, session: str) -> TypedCommand:
    """Return a short command, framed, for another process to send to a shell of this session.

    :raises ValueError: when it is too long to be sent without acknowledgements, or has a NUL.
    """
    nonce = new_nonce()
    chunk, *others = encode_for_port(command, nonce, session)
    if others:
        raise ValueError(f"it has {len(command)} characters, and at most {CHUNK_BYTES} bytes can be sent at once")
    return TypedCommand(nonce=nonce, text=chunk.data.decode(), succeeded=ended_mark(nonce, 0))


def typed_command_for_port(command: str) -> TypedCommand:
    """Return a command, framed, for another process to send: to a shell of any session.

    :raises ValueError: when it has a NUL.
    """
    if "\0" in command:
        raise ValueError("a command cannot contain a NUL character")
    nonce = new_nonce()
    text = rf"printf '\036{nonce}\002' >&9; \command eval {quoted(command)} </dev/null >&9 2>&1 7>&- 8<&- 9>&-"
    text += rf"; printf '\036{nonce}\003%d\004' $? >&9" + "\n"
    return TypedCommand(nonce=nonce, text=text, succeeded=ended_mark(nonce, 0))


def _functions(parts: dict[str, str]) -> str:
    text = _FUNCTIONS
    for place, part in parts.items():
        text = text.replace(place, part)
    return text


def _pieces(command: bytes) -> Iterator[bytes]:
    """Yield parts of a command that end between characters."""
    start = 0
    while len(command) - start > CHUNK_BYTES:
        end = start + CHUNK_BYTES
        while end > start + CHUNK_BYTES - 3 and command[end] & 0xC0 == 0x80:
            end -= 1
        yield command[start:end]
        start = end
    yield command[start:]


def _quoted(text: bytes) -> bytes:
    return b"'" + text.replace(b"'", rb"'\''") + b"'"
