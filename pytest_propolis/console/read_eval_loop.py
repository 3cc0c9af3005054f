"""The program that a guest's shell runs to take commands from the serial line.

`shell_protocol` says what it reads and writes. It is typed at a prompt, and so has to be short.
bash keeps more from one command to the next than other shells do, and has ways of its own to read and to set it:
`preparation` makes bash go on with a longer program.
"""

from __future__ import annotations

import base64
import gzip
from typing import Final

from .shell_protocol import WORD_CHARACTERS

__all__ = [
    "BASH_AFTER",
    "BASH_BEFORE",
    "BASH_START",
    "hand_over_command",
    "interactive_command",
    "named",
    "preparation",
    "program",
    "quoted",
    "starting_program",
    "whole_program_command",
]

TERMINAL: Final = "sane raw -echo isig intr ^\\\\ quit ^- susp ^- rows 99 cols 1000"
"""The terminal's settings while commands run. One key interrupts, and no other byte has a meaning."""

# @ stands for _ and two letters of the session, so that no command's variable or function has the name of one of these.
# Descriptors 0 to 2 are redirected for each command, and the terminal is opened by its name, once for all that lies
# between two commands: whatever a command does to its descriptors ends with it. A command that sets -n ends the loops,
# because any condition of a shell that executes nothing is true. A command that consists of `break` leaves the inner
# loop only.
# Each step is made for options, traps, IFS, TMOUT, functions and aliases that a command may have left behind.
#
# Terminal settings are restored behind a command that has started a process: no other one can have changed them.
# The fifth word of /proc/loadavg is the last process id that was given out; reading it costs no process. bash loses
# lines that it has read ahead when it reads a file: none may be waiting then.
#
# Busybox colours what ls shows on a terminal, unless LS_COLORS is set and empty.
_LOOP: Final = r"""
export LS_COLORS= COLUMNS=1000 PAGER=cat
@t=$1 @y=$2 @n=$3 @k=
shift 3
START
@r() { command return "$@s"; }
@l() { command eval "IFS=\  command read -r @k @k @k @k @k" </proc/loadavg; }
@g() { IFS= TMOUT= command read -r @h || exit; }
@f() {
unset -f command >/dev/null 2>&1
command set +ax
AFTER
@s=$1
command kill -0 "$PPID" || command exit
command printf "\036$@n\003$1\004"
@h=$@k
@l || @h=-
case $@k in $@h) ;; *) "$@y" TERMINAL; @l; esac
@g
while case $@h in
?$@n) command printf "\036$@n\003$1\004";; [ir]WORD\ *) ! :; esac do @g
done
@n=${@h%% *} @h=${@h#* }
@i=${@h%% *} @c=${@h#* }
while case $@i in 0) ! :; esac do
@g
@i=$((@i-1))
case $@h in
\?*) @i=$((@i+1));;
[nN]*) @c="$@c
${@h#?}";;
[cC]*) @c=$@c${@h#?};;
*) @d=$(command printf "%b." "${@h#?}"); @c=$@c${@d%.};;
esac
case $@h in [NCO?]*) command printf "\036$@n\006$@i\004"; esac
done
BEFORE
@i=/dev/null
case $@n in i*) @i=$@t; esac
command printf "\036$@n\002"
case $2 in *a*) command set -a; esac
case $2 in *x*) command set -x; esac
}
until ! :; do until ! @f "$?" "$-" <>"$@t" >&0; do
if @r LAST; then command eval "$@c" <"$@i" >"$@t" 2>&ERRORS
else command eval "$@c" <"$@i" >"$@t" 2>&ERRORS; fi
done; done </dev/null >/dev/null 2>&1
"""

# An assignment to a constant ends dash and busybox, but not one that is evaluated. So where a command has made IFS
# constant, a new shell reads.
#
# Busybox's `read` begins again when a child of the shell ends meanwhile, and forgets what it has read of the line. So
# while a job in the background has not ended, a process that has no children reads for the shell. It is no reason to
# restore the terminal's settings.
_CAREFUL_READ: Final = r"""@j() {
@h=-
command eval "IFS=\  command read -r @h @d" </proc/$$/task/$$/children
case $@h in '') return 1;; *[!0-9]*) return; esac
case $@d in ?*) return; esac
{ command read -r @d; command read -r @d; command read -r @d; } </proc/$@h/status
case $@d in *Z*) return 1; esac
}
@w() {
command eval "IFS= command read -r @h" && command printf %s "$@h" ||
/bin/sh -c "IFS= read -r h && printf %s \"\$h\""
}
@g() {
if case ${!-} in '') ! :; esac && @j; then
@k=$((@k+1))
@h=$(@w)
else command eval "IFS= command read -r @h" || @h=$(@w)
fi || exit
}"""

_ANY_SHELL: Final = {"START\n": "", "AFTER\n": "", "BEFORE\n": "", " LAST": "", "ERRORS": "1"}

# bash's `eval` replaces PIPESTATUS, `$?` and `$_` when it ends. So the command itself gets a last line that saves them.
# It does not get one where that would become a part of it, as after an open here-document or a backslash: such a text
# is no complete list between `then` and `fi` either. Nor under `set -v`, which would show the line. The line succeeds,
# and so does `eval`: a command's failure meets an ERR trap and `set -e` once.
#
# PIPESTATUS cannot be assigned to: the assignment is a pipeline itself. But an arithmetic expansion can set its
# elements while the words of `eval` are expanded. `$_` is the last argument of the command before.
#
# bash expands aliases, and goes on after an `exec` that fails, by itself only when it is interactive.
BASH_START: Final = "shopt -s expand_aliases execfail\n@p=() @u=\n"
"""What bash runs first. `named` gives the variables their names."""

BASH_AFTER: Final = r"""case $2 in *v*) command set +v; esac
@q=1
case ${#@p[ALL]} in 0) ;; *)
command set -- "${@p[0]}" "$2" "${3-}"
@u=${@p[1]} @q=
case ${#@p[ALL]} in 3) ;; *)
for @i in "${!@p[ALL]}"; do
case $@i in 0|1) ;; *) @q+=PIPESTATUS[$((@i-2))]=${@p[@i]},; esac
done
esac
@q+=1
esac
"""
"""What bash runs after each command, with its status as $1 and its options as $2."""

BASH_BEFORE: Final = r"""command unset @p
@p=()
@i=
case $2 in *v*) @i=no; esac
case $@c in *set\ -v*|*set\ -[a-z]v*|*set\ -[a-z][a-z]v*|*verbose*) @i=no; esac
case $@i in no) ;; *)
if command eval "if false; then
$@c
fi"; then @c+='
{ @p=("$?" "${_-}" "${PIPESTATUS[ALL]}"); } >/dev/null 2>&1'; fi
esac
case $2 in *v*) command set -v; esac
"""
"""What bash runs before each command."""

_BASH: Final = {
    "START\n": BASH_START,
    "AFTER\n": BASH_AFTER,
    "BEFORE\n": BASH_BEFORE,
    "LAST": '"$@u"',
    "ERRORS": '"$((@q))"',
}

# The terminal is opened by its own name, because a shell that is a guest's first process has no controlling terminal.
_SUPERVISOR: Final = r"""
trap : 2 3
while stty TERMINAL || stty TERMINAL; do
printf "\036SESSION\021"
SHELL -c LOOP sh $(tty) $(command -v stty) SESSION
printf "\036SESSION\005%d\004" $?
done
"""

# Where commands go over a port, the console's loop starts that of the port, and is seldom used for anything else. A
# serial line takes some 80 us per octet of an emulated guest: this one takes commands of one line, and is typed in a
# tenth of a second less. No quotes, no `!`, and no doubled backslash: it is for any login shell, too.
_STARTING: Final = (
    "trap : 2 3;stty raw -echo isig intr 28 quit ^- susp ^-;_n=SESSION _s=0;"
    r'printf "\036$_n\021";while IFS= read -r _l||IFS= read -r _l;do case $_l in \?$_n);;'
    r' [ir]????????\ 0\ *)_n=${_l%% *};printf "\036$_n\002";eval "${_l#* 0 }";_s=$?;;*)continue;esac;'
    r'printf "\036$_n\003$_s\004";done'
)

INTERACTIVE: Final = 'stty sane rows 24 cols 80; (unset COLUMNS PAGER; exec "${SHELL:-/bin/sh}" -i)'

HAND_OVER: Final = f"while :; do {INTERACTIVE} || sleep 1; done"


def program(session: str, *, shell: str = "sh") -> str:
    """Return the read-eval loop as one command, to be typed at the prompt of any login shell: POSIX, csh or fish.

    It is packed, because a line editor may take no more than 1,023 characters (busybox), and because no two kinds of
    shell quote alike. The guest needs `base64` and `gzip`.
    Two levels: the inner shell evaluates commands, and keeps their variables and directory from one to the next; the
    outer one starts it again when a command ends it.

    :param shell: the POSIX shell that evaluates commands.
    """
    loop = quoted(_loop(session, _ANY_SHELL))
    supervisor = _SUPERVISOR.strip().replace("SESSION", session).replace("SHELL", shell).replace("LOOP", loop)
    supervisor = supervisor.replace("TERMINAL", TERMINAL)
    packed = base64.b64encode(gzip.compress(supervisor.encode(), mtime=0)).decode()
    # Not by the same shell: bash leaves a loop when an interrupt ends one of its programs.
    return f"""sh -c 'eval "$(echo {packed}|base64 -d|gzip -d)"'"""


def starting_program(session: str) -> str:
    """Return a small read-eval loop as one command, to be typed as `program` is.

    It takes a command of one line at a time, which must end in a second and leave no child, and interrupts it as the
    whole loop does. `whole_program_command` replaces it.
    """
    return f"sh -c '{_STARTING.replace('SESSION', session)}'"


def whole_program_command(session: str, *, shell: str = "sh") -> str:
    """Return the command that replaces the loop of `starting_program`, or the shell of a whole one, by a whole one.

    It needs the terminal as its standard input.
    """
    return f"exec {program(session, shell=shell)}"


def preparation(session: str, nonce: str, *, shell: str = "sh") -> str:
    """Return the first command of a shell that has just begun to take commands.

    bash is replaced by one with a loop of its own; others get a `read` that loses nothing.

    :param nonce: this command's own word. The new loop reports the command's end.
    """
    loop = quoted(_loop(session, _BASH).replace("TERMINAL", TERMINAL))
    terminal, stty = named("$@t", session), named("$@y", session)
    bash = f'exec {shell} -c {loop} sh "{terminal}" "{stty}" {nonce}'
    return f"case ${{BASH_VERSION-}} in ?*) {bash};; *) {named(_CAREFUL_READ, session)}\nesac"


def _loop(session: str, parts: dict[str, str]) -> str:
    loop = _LOOP.strip()
    for place, part in parts.items():
        loop = loop.replace(place, part)
    return named(loop, session).replace("WORD", "[0-9A-Za-z]" * WORD_CHARACTERS)


def named(text: str, session: str) -> str:
    """Return lines of a script with the names of one session: each ``@`` begins one, and ``[ALL]`` is every element."""
    return text.replace("@", f"_{session[1:3]}").replace("[ALL]", "[@]")


def interactive_command() -> str:
    """Return a command that puts the user's own shell on the terminal, and the loop back when that ends."""
    return INTERACTIVE


def hand_over_command() -> str:
    """Return a command that puts the user's own shell on the terminal for good: when that ends, another one comes."""
    return HAND_OVER


def quoted(text: str) -> str:
    """Return a text as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"
