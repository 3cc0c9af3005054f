"""What a shell keeps from one command to the next, compared with the same shell at its own prompt."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import pytest
from local_pty import PROMPT, SHELLS, console_on
from test_shell import TIMEOUT_S, local_shell

ALL = ("dash", "bash", "busybox")
BASH = ("bash",)


class Kept(NamedTuple):
    """Commands that are run one after the other, and what the last one shows.

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

EACH = [(shell, name) for name, kept in KEPT.items() for shell in kept.shells if shell in SHELLS]
OTHERS = [(shell, name) for name, kept in DIFFERENT.items() for shell in kept.shells if shell in SHELLS]


async def in_the_loop(shell: str, directory: Path, kept: Kept) -> str:
    """What the last command shows when `run` runs them."""
    directory.mkdir()
    async with local_shell(shell, directory) as local:
        await local.run(f"cd {directory}")
        for command in kept.commands:
            result = await local.shell.run(command, timeout_s=TIMEOUT_S, check=False)
        return result.text


async def at_a_prompt(shell: str, directory: Path, kept: Kept) -> str:
    """What the last command shows when they are typed."""
    directory.mkdir()
    async with console_on(shell, directory) as console:
        # Keeps echo, line editing and news of jobs out of what is shown.
        await console.send("stty -echo -onlcr; set +m; test -z $BASH_VERSION || set +o emacs\n")
        await console.wait_for(PROMPT, timeout_s=TIMEOUT_S)
        for command in kept.commands:
            await console.send(f"{command}\n")
            found = await console.wait_for(PROMPT, timeout_s=TIMEOUT_S)
        return found.before.rstrip("\n")


@pytest.mark.parametrize(("shell", "name"), EACH)
async def test_a_shell_keeps_what_it_keeps_at_its_prompt(shell: str, name: str, tmp_path: Path) -> None:
    kept = KEPT[name]
    ours, theirs = await asyncio.gather(
        in_the_loop(shell, tmp_path / "loop", kept), at_a_prompt(shell, tmp_path / "prompt", kept)
    )
    assert (ours, theirs) == (kept.shows, kept.shows)


@pytest.mark.parametrize(("shell", "name"), OTHERS)
async def test_what_differs_from_a_prompt_is_known(shell: str, name: str, tmp_path: Path) -> None:
    assert await in_the_loop(shell, tmp_path / "loop", DIFFERENT[name]) == DIFFERENT[name].shows


async def test_a_new_bash_keeps_as_much_as_the_one_before(tmp_path: Path) -> None:
    async with local_shell("bash", tmp_path) as local:
        for _ in range(3):
            assert await local.status("false | true") == 0
            assert await local.run('echo "${PIPESTATUS[*]}"') == b"1 0\n"
            assert await local.status("exit 3") == 3


async def test_bash_under_the_name_sh_keeps_as_much(tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/bash")
    async with local_shell(str(tmp_path / "sh"), tmp_path) as local:
        await local.run("false | true")
        assert await local.run('echo "${PIPESTATUS[*]} ${SHELLOPTS##*posix*}"') == b"1 0 \n"
