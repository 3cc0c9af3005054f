"""The guest's side: a POSIX shell script that is the command ``propolis``, and its reader of the second serial port.

A command writes its request in lines of less than 1 KiB, each by one ``write``, which the kernel does not mix with
others: ``ID a HEX`` for a part of its arguments, ``ID i HEX`` for a part of its input, then ``ID g -``. The reader
takes the lines of the answer, hands each to the FIFO of its command, and acknowledges it (``0 k -``), so that the
guest's terminal layer, which holds 4 KiB, is never given more than one line. The command acknowledges each line that it
has read, too (``ID k -``): a command that reads no further must not fill its FIFO, or the reader would wait for it. A
line of another kind than those of the answer (``ID w -``) only wakes the command.

The reader begins a line of its own: a reset may have cut off the one before.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COMMANDS", "LINE_BYTES", "SCRIPT", "install_command", "remove_command"]

COMMANDS: Final = ("barrier", "baton", "kv", "lock", "node")
"""Commands that are links to the script."""

LINE_BYTES: Final = 800

SCRIPT: Final = r"""#!/bin/sh
port=/dev/ttyS1 place=/tmp/.propolis-nodes
send() {
    fold -w 700 | while IFS= read -r part || [ -n "$part" ]; do printf '%s %s %s\n' "$id" "$1" "$part" >$port; done
}
hex() {
    od -An -v -tx1 | tr -d ' \n'
}
ask() (
    id=$$.$1
    shift
    fifo=$place/$id
    mkfifo "$fifo" || exit 5
    trap 'rm -f "$fifo"' EXIT
    trap 'printf "%s c -\n" "$id" >$port; exit 130' INT TERM HUP
    exec 3<>"$fifo"
    printf '%s\0' "$@" | hex | send a
    count=0
    for word; do [ "$word" = --json ] || count=$((count + 1)); done
    case "$1 $2 $count" in 'kv put 3' | 'kv add 3') hex | send i ;; esac
    printf '%s g -\n' "$id" >$port
    while IFS=' ' read -r kind data <&3; do
        case $kind in
            o) printf "$data" ;;
            e) printf "$data" >&2 ;;
            x) exit "$data" ;;
        esac
        printf '%s k -\n' "$id" >$port
    done
    exit 5
)
serve() {
    exec 3<>$port
    stty raw -echo clocal <&3
    printf '\n0 h -\n' >&3
    while IFS=' ' read -r id rest <&3; do
        [ ! -p "$place/$id" ] || printf '%s\n' "$rest" 1<>"$place/$id"
        printf '0 k -\n' >&3
    done
}
case ${0##*/} in propolis) ;; *) set -- "${0##*/}" "$@" ;; esac
case $1 in
    serve) serve ;;
    lock)
        shift
        name='' options='' json=''
        while [ $# -gt 0 ]; do
            case $1 in
                --permits | --timeout) options="$options $1 ${2-}" && shift ;;
                --json) json=--json ;;
                --) shift && break ;;
                *) [ -z "$name" ] || break && name=$1 ;;
            esac
            [ $# -eq 0 ] || shift
        done
        [ $# -gt 0 ] && [ -n "$name" ] || { ask l lock; exit; }
        ask l lock acquire "$name" $options $json || exit
        "$@"
        status=$?
        ask l lock release "$name" $status $json
        exit $status
        ;;
    *) ask r "$@" ;;
esac
"""


def install_command(script: str = SCRIPT) -> str:
    """Return the command that installs the script, and starts its reader.

    The reader is no child of the guest's shell, which may ``wait`` for all that it has.
    """
    links = " ".join(COMMANDS)
    return f"""kill $(cat /tmp/.propolis-nodes/pid 2>/dev/null) 2>/dev/null
d=/usr/local/bin; case :$PATH: in *:$d:*) mkdir -p $d;; *) d=/usr/bin;; esac
rm -rf /tmp/.propolis-nodes && mkdir -m 700 /tmp/.propolis-nodes
cat >$d/propolis <<'PROPOLIS_END'
{script}PROPOLIS_END
chmod 755 $d/propolis && for name in {links}; do ln -sf propolis $d/$name; done
(trap '' HUP; propolis serve </dev/null >/dev/null 2>&1 & echo $! >/tmp/.propolis-nodes/pid)"""


def remove_command() -> str:
    """Return the command that undoes what `install_command` did."""
    links = " ".join(("propolis", *COMMANDS))
    return f"""kill $(cat /tmp/.propolis-nodes/pid); rm -rf /tmp/.propolis-nodes
d=/usr/local/bin; [ -f $d/propolis ] || d=/usr/bin; for name in {links}; do rm -f $d/$name; done; :"""
