"""State that commands change in their shell: what persists, and what must not reach the read-eval loop."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DIFFERENT", "KEPT", "LEFT_BEHIND", "SPECIAL", "Kept"]

ALL = ("dash", "bash", "busybox")
BASH = ("bash",)


class Kept(NamedTuple):
    """Commands that are run in order, and the output of the last one.

    :param shells: the kinds of shell that have it.
    """

    shells: tuple[str, ...]
    commands: tuple[str, ...]
    shows: str


KEPT = {
    "the status": Kept(ALL, ("(exit 7)", "echo $?"), "7"),
    "the status of a pipeline": Kept(ALL, ("false | true", "echo $?"), "0"),
    "PIPESTATUS": Kept(BASH, ("false | true", 'echo "${PIPESTATUS[*]}"'), "1 0"),
    "PIPESTATUS of three": Kept(BASH, ("(exit 3) | (exit 4) | (exit 5)", 'echo "${PIPESTATUS[*]} $?"'), "3 4 5 5"),
    "PIPESTATUS of one": Kept(BASH, ("(exit 5)", 'echo "${#PIPESTATUS[@]} ${PIPESTATUS[0]}"'), "1 5"),
    "PIPESTATUS of a shorter pipeline": Kept(BASH, ("true | true", "false", 'echo "${PIPESTATUS[*]}"'), "1"),
    "PIPESTATUS under IFS": Kept(BASH, ("IFS=0123456789", "false | true", "printf '%s,' \"${PIPESTATUS[@]}\""), "1,0,"),
    "PIPESTATUS under set -u": Kept(BASH, ("set -u", "false | true", 'echo "${PIPESTATUS[*]}"'), "1 0"),
    "PIPESTATUS in POSIX mode": Kept(BASH, ("set -o posix", "false | true", 'echo "${PIPESTATUS[*]}"'), "1 0"),
    "PIPESTATUS before a remark": Kept(BASH, ("true; false | true # a remark", 'echo "${PIPESTATUS[*]}"'), "1 0"),
    "PIPESTATUS behind a here-document": Kept(
        BASH, ("cat <<END >/dev/null | false\nx\nEND", 'echo "${PIPESTATUS[*]}"'), "0 1"
    ),
    "the last argument": Kept(BASH, ("echo one two >/dev/null", 'echo "$_"'), "two"),
    "the last argument under IFS": Kept(BASH, ("IFS=o", ": 'one two'", 'echo "$_"'), "one two"),
    "the last background process": Kept(("dash", "bash"), ("(exit 4) &", "wait $!; echo $?"), "4"),
    "positional parameters": Kept(ALL, ("set -- a 'b c'; shift", 'echo "$# $1"'), "1 b c"),
    "OPTIND": Kept(ALL, ("set -- -a -b; getopts ab o", 'getopts ab o; echo "$o $OPTIND"'), "b 3"),
    "OLDPWD": Kept(ALL, ("cd /usr; cd /tmp", "cd - >/dev/null; pwd"), "/usr"),
    "the stack of directories": Kept(BASH, ("cd /usr; pushd /tmp >/dev/null", "dirs"), "/tmp /usr"),
    "SECONDS": Kept(BASH, ("SECONDS=100000", "echo ${SECONDS%??}"), "1000"),
    "RANDOM": Kept(BASH, ("RANDOM=5", "a=$RANDOM; RANDOM=5; test $a = $RANDOM && echo same"), "same"),
    "BASH_REMATCH": Kept(BASH, ("[[ abc =~ b(.) ]]", 'echo "${BASH_REMATCH[1]}"'), "c"),
    "the file mode mask": Kept(ALL, ("umask 027", "umask"), "0027"),
    "a function": Kept(ALL, ("f() { local x=5; echo $x; }", "f"), "5"),
    "an alias": Kept(ALL, ("alias hi='echo hi there'", "hi"), "hi there"),
    "a here-document": Kept(ALL, ("x=$(cat <<END\na b\nEND\n)", 'echo "$x"'), "a b"),
    "a descriptor": Kept(ALL, ("exec 5</dev/null", "read x <&5; echo $?"), "1"),
    "a co-process": Kept(
        BASH, ("coproc cat", "echo hi >&${COPROC[1]}; read -r line <&${COPROC[0]}; echo $line; kill $!"), "hi"
    ),
    "a trap on a signal": Kept(ALL, ("trap 'echo got' USR1", "kill -USR1 $$"), "got"),
    "a trap on DEBUG": Kept(BASH, ("trap 'echo debug' DEBUG", "echo a"), "debug\na"),
    "a trap on ERR": Kept(BASH, ("trap 'echo failed' ERR", "true; false"), "failed"),
    "a trap on ERR hears a failure once": Kept(BASH, ("n=0; trap 'n=$((n+1))' ERR", "false", "echo $n"), "1"),
    "set -e and a list that fails": Kept(BASH, ("x=1; set -e", "false && true", "echo $x; set +e"), "1"),
    "an exec that fails": Kept(BASH, ("x=1", "exec /no/such", "echo $x"), "1"),
    "break without a loop": Kept(ALL, ("x=1", "break", "echo $x"), "1"),
    "continue without a loop": Kept(ALL, ("x=1", "continue", "echo $x"), "1"),
    "an assignment to a constant": Kept(ALL, ("readonly x=1", "x=2", "echo $x"), "1"),
    "a division by zero": Kept(ALL, ("x=1", ": $((1/0))", "echo $x"), "1"),
    "a missing script": Kept(ALL, ("x=1", ". /no/such", "echo $x"), "1"),
    "nullglob": Kept(BASH, ("shopt -s nullglob", "echo /x*nope"), ""),
    "nocasematch": Kept(BASH, ("shopt -s nocasematch", "case A in a) echo same; esac"), "same"),
    "extglob": Kept(BASH, ("shopt -s extglob", "case abc in +([a-c])) echo matches; esac"), "matches"),
    "pipefail": Kept(BASH, ("set -o pipefail", "false | true", "echo $?"), "1"),
}

DIFFERENT = {
    "an unset parameter ends bash": Kept(BASH, ("x=1", ": ${none?}", "echo ${x-gone}"), "gone"),
    "set -e ends the shell": Kept(ALL, ("x=1; set -e", "false", "echo ${x-gone}"), "gone"),
    "there is no history": Kept(BASH, ("true", "history"), ""),
    "the last argument is bash's alone": Kept(("dash", "busybox"), (": one two", 'echo "$_"'), ""),
    "set -v shows the command": Kept(BASH, ("set -v", "echo a"), "echo a\na"),
    "set -v in a command": Kept(BASH, ("set -v; true", "set +v", "echo a"), "a"),
    "a trace": Kept(BASH, ("set -x", "echo a"), "++ echo a\na"),
    "an open here-document": Kept(("dash", "busybox"), ("cat <<END\nabc",), "abc"),
    "a backslash at the end": Kept(ALL, ("echo a \\",), "a \\"),
}

SPECIAL = ("break", "continue", "eval", "exec", "exit", "export", "return", "set", "shift", "trap", "unset")
"""Special built-in utilities. Only bash takes one for the name of a function."""

LEFT_BEHIND = {
    "IFS of digits": "IFS=0123456789",
    "IFS of letters": "IFS=abcdefirs",
    "IFS of octal escapes": "IFS='\\036'",
    "no IFS": "unset IFS",
    "a constant IFS": "readonly IFS=0",
    "a constant TMOUT": "readonly TMOUT=0",
    "set -a": "set -a",
    "set -u": "set -u",
    "set -f": "set -f",
    "set -C": "set -C",
    "a trap on the interrupt": "trap 'echo trapped' INT",
    "a trap on a child's end": "trap 'echo trapped' CHLD",
    "a function printf": "printf() { echo mine; }",
    "a function read": "read() { echo mine; }",
    "a function stty": "stty() { echo mine; }",
    "a function command": "command() { echo mine; }",
    "a function kill": "kill() { echo mine; return 1; }",
    "aliases": "alias printf=false read=false eval=false command=false kill=false",
    "a variable n": "n=1; readonly n",
    "standard output closed": "exec >&-",
    "standard output redirected": "exec >/dev/null",
    "all descriptors closed": "exec 0>&- 1>&- 2>&- 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-",
    "standard input redirected": "exec </dev/zero",
    "a directory removed": "mkdir gone; cd gone; rmdir ../gone",
    "no PATH": "PATH=",
    "no PATH exported": "export PATH=/nowhere",
    "umask": "umask 777",
    "a locale": "export LC_ALL=C.UTF-8 LANG=nowhere",
    "TMOUT": "export TMOUT=1",
    "positional parameters": "set -- -n '*' 0",
}
