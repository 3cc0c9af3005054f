"""Commands over a serial console, with a real shell on a real terminal behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import shlex
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from local_ports import local_ports
from local_pty import SHELLS, console_on, shell_command

from pytest_propolis.agent_api.guest_ports import SHELL_PORT
from pytest_propolis.console import loop_client
from pytest_propolis.console.console import Console
from pytest_propolis.console.shell import Shell
from pytest_propolis.console.shell_protocol import Acknowledged, Ended, Ready, Signal, new_nonce, new_session
from pytest_propolis.console.transports.console_transport import ConsoleTransport
from pytest_propolis.console.transports.port_line import PortLine
from pytest_propolis.errors import CapabilityMissing, CommandTimeout, ConsoleClosed, ShellError, ShellLost

TIMEOUT_S = 20.0
OVER_PORT = " over a port"
ALL_SHELLS = [*SHELLS, *(kind + OVER_PORT for kind in SHELLS)]


class Local(NamedTuple):
    """A shell that takes commands, and its console."""

    console: Console
    shell: Shell

    async def run(self, command: str, *, timeout_s: float = TIMEOUT_S) -> bytes:
        return (await self.shell.run(command, timeout_s=timeout_s)).output

    async def status(self, command: str) -> int:
        return (await self.shell.run(command, timeout_s=TIMEOUT_S, check=False)).status


@contextlib.asynccontextmanager
async def local_shell(kind: str, directory: Path) -> AsyncIterator[Local]:
    async with console_on(kind, directory) as console:
        shell = Shell(console, vm="local")
        await shell.start(shell=shell_command(kind), timeout_s=TIMEOUT_S)
        yield Local(console, shell)


@contextlib.asynccontextmanager
async def shell_over_port(kind: str, directory: Path) -> AsyncIterator[Local]:
    async with (
        local_ports(directory) as ports,
        console_on(kind, directory, inherited=ports.inherited) as console,
        PortLine.over(ports, SHELL_PORT, console) as line,
    ):
        shell = Shell(console, vm="local", port=line)
        await shell.start(shell=shell_command(kind), timeout_s=TIMEOUT_S)
        yield Local(console, shell)


@contextlib.asynccontextmanager
async def any_shell(name: str, directory: Path) -> AsyncIterator[Local]:
    """One of `ALL_SHELLS`."""
    kind = name.removesuffix(OVER_PORT)
    async with (local_shell if kind == name else shell_over_port)(kind, directory) as made:
        yield made


@pytest.fixture(params=ALL_SHELLS)
async def local(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Local]:
    async with any_shell(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=SHELLS)
async def on_console(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Local]:
    async with local_shell(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def dash(tmp_path: Path) -> AsyncIterator[Local]:
    """Where the kind of shell does not matter."""
    async with local_shell("dash", tmp_path) as made:
        yield made


async def test_output_and_status_come_back(local: Local) -> None:
    assert await local.run("echo hello") == b"hello\n"
    assert await local.run("true") == b""
    assert await local.status("exit_status() { return 7; }; exit_status") == 7


async def test_output_without_a_final_newline_stays_without(local: Local) -> None:
    assert await local.run("printf 'no end'") == b"no end"
    assert await local.run("printf '\\n\\n'") == b"\n\n"


async def test_standard_error_comes_in_its_place(local: Local) -> None:
    assert await local.run("echo one; echo two >&2; echo three") == b"one\ntwo\nthree\n"


async def test_standard_error_comes_apart_over_a_port_and_not_over_the_console(local: Local) -> None:
    if isinstance(local.shell._transport, ConsoleTransport):
        with pytest.raises(CapabilityMissing, match="does not separate standard error"):
            await local.shell.run("true", timeout_s=TIMEOUT_S, separate_stderr=True)
        assert await local.run("echo usable") == b"usable\n"
        return
    for command, out, errors in (
        ("echo out; echo err >&2", b"out\n", b"err\n"),
        ("head -c 300000 /dev/zero >&2; echo end", b"end\n", bytes(300_000)),
        ("echo last >&2; exit 3", b"", b"last\n"),
        ("exec sh -c 'echo replaced >&2; echo out'", b"out\n", b"replaced\n"),
        ("true", b"", b""),
    ):
        result = await local.shell.run(command, timeout_s=TIMEOUT_S, check=False, separate_stderr=True)
        assert (result.stdout, result.stderr) == (out, errors), command
    together = await local.shell.run("echo err >&2", timeout_s=TIMEOUT_S)
    assert together.output == b"err\n"
    with pytest.raises(CapabilityMissing, match="came together"):
        _ = together.stderr


async def test_a_command_of_many_lines_is_one_command(local: Local) -> None:
    command = """
    for number in 1 2 3
    do
        if [ "$number" = 2 ]
        then echo 'the
second'
        fi
    done

    cat <<END
a here document
  with $number, and \\$ and \\\\
END
    """
    assert await local.run(command) == b"the\nsecond\na here document\n  with 3, and $ and \\\n"


async def test_quotes_blanks_and_backslashes_arrive_as_they_are(local: Local) -> None:
    text = "  'a'  \"b\" `c` $d \\n \\\\ \t * ~ ! # & ; äß€  "
    assert await local.run(f"printf %s {shlex.quote(text)}") == text.encode()


async def test_every_character_but_nul_arrives_as_it_is(local: Local) -> None:
    text = "".join(map(chr, range(1, 128))) + "\r\n\r\n" + "\udcff\udc80"
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert await local.run(f"printf %s {quoted}") == text.encode(errors="surrogateescape")


async def test_a_command_of_64_kib_arrives_whole(local: Local) -> None:
    lines = random.Random(1)
    text = "".join(lines.choice("abc \\'$\n\x1c") * lines.randrange(1, 40) for _ in range(4000))[: 1 << 16]
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert await local.run(f"printf %s {quoted} | cat", timeout_s=60) == text.encode()


async def test_output_of_all_byte_values_comes_back_to_the_byte(local: Local, tmp_path: Path) -> None:
    content = bytes(range(256)) + bytes(reversed(range(256))) + b"\x1e"
    (tmp_path / "bytes").write_bytes(content)
    assert await local.run(f"cat {tmp_path}/bytes") == content


async def test_64_kib_of_random_bytes_come_back_to_the_byte(local: Local, tmp_path: Path) -> None:
    content = os.urandom(1 << 16)
    (tmp_path / "bytes").write_bytes(content)
    assert await local.run(f"cat {tmp_path}/bytes") == content


async def test_output_that_looks_like_the_protocol_is_output(local: Local, tmp_path: Path) -> None:
    word = secrets.token_hex(6).encode()
    content = b"".join(
        b"\x1e" + mark
        for mark in (
            b"r%b\x02" % word,
            b"r%b\x031\x04" % word,
            b"r%b\x060\x04" % word,
            b"i%b\x02" % word,
            b"s%b\x051\x04" % word,
            b"s%b\x11" % word,
            b"",
            b"r%b\x03" % word,
        )
    )
    (tmp_path / "bytes").write_bytes(content)
    assert await local.run(f"cat {tmp_path}/bytes; echo end") == content + b"end\n"
    assert await local.run("echo next") == b"next\n"


async def test_output_that_looks_like_a_prompt_is_output(local: Local) -> None:
    assert await local.run("printf 'prompt> # $ '") == b"prompt> # $ "


async def test_the_recorded_console_of_another_session_is_output(dash: Local, tmp_path: Path) -> None:
    session, nonce = new_session().encode(), new_nonce().encode()
    record = b"\x1e%b\x11\x1e%b\x02one\n\x1e%b\x030\x04\x1e%b\x02\x1e%b\x053\x04\x1e%b\x11" % (
        *(session, nonce, nonce),
        *(nonce, session, session),
    )
    (tmp_path / "record").write_bytes(record)
    assert await dash.run(f"cat {tmp_path}/record") == record
    assert await dash.run("echo next") == b"next\n"


async def test_variables_functions_and_the_directory_stay(local: Local) -> None:
    await local.run("cd /usr; one=1; two() { echo two $one; }; set -- a b")
    assert await local.run('pwd; two; echo "$@"') == b"/usr\ntwo 1\na b\n"


async def test_exit_ends_the_shell_and_a_fresh_one_takes_its_place(local: Local) -> None:
    await local.run("kept=1")
    assert await local.status("echo before; exit 3; echo after") == 3
    assert await local.run('echo "kept: $kept"') == b"kept: \n"


async def test_killing_the_shell_gives_the_signal_and_a_fresh_shell(local: Local) -> None:
    assert await local.status("kill -9 $$") in (128 + 9, 137)
    assert await local.run("echo alive") == b"alive\n"


async def test_exec_gives_the_output_and_status_of_what_replaced_the_shell(local: Local) -> None:
    result = await local.shell.run("exec sh -c 'echo replaced; exit 5'", timeout_s=TIMEOUT_S, check=False)
    assert (result.status, result.output) == (5, b"replaced\n")
    assert await local.run("echo alive") == b"alive\n"


@pytest.mark.parametrize("command", ["if", "echo 'open", "echo $(", "for do", ")", "cat <<", "{ echo"])
async def test_a_syntax_error_is_a_failed_command(local: Local, command: str) -> None:
    assert await local.status(command) != 0
    assert await local.run("echo alive") == b"alive\n"


async def test_an_empty_command_is_no_trouble(local: Local) -> None:
    for command in ("", "\n", "  ", "# only a remark", ":"):
        assert await local.run(command) == b""


async def test_standard_input_is_empty(local: Local) -> None:
    assert await local.run("cat; read -r line || echo nothing") == b"nothing\n"


async def test_options_that_the_command_sets_do_not_break_the_loop(local: Local) -> None:
    assert await local.status("set -e; false") != 0
    assert await local.run("echo alive") == b"alive\n"
    await local.run("set -u; IFS=:; set -f")
    assert await local.run("echo alive") == b"alive\n"


async def test_a_command_that_reads_the_terminal_itself_or_changes_it_does_not_break_the_loop(local: Local) -> None:
    await local.run("exit_code=0; trap 'true' EXIT; umask 027")
    assert await local.run("echo alive") == b"alive\n"


async def test_a_background_job_does_not_hold_the_command_up(local: Local) -> None:
    assert await local.run("sleep 30 >/dev/null 2>&1 & echo started; kill $!") == b"started\n"


async def test_a_command_that_takes_too_long_is_interrupted_and_the_shell_usable(local: Local) -> None:
    with pytest.raises(CommandTimeout) as caught:
        await local.run("kept=1; echo so far; sleep 60; echo never", timeout_s=0.5)
    assert "so far" in caught.value.message
    assert caught.value.waited_s == 0.5
    assert await local.run("echo alive") == b"alive\n"


async def test_a_busy_loop_of_the_shell_itself_can_be_interrupted(local: Local) -> None:
    with pytest.raises(CommandTimeout):
        await local.run("while :; do :; done", timeout_s=0.5)
    assert await local.run("echo alive") == b"alive\n"


async def test_a_command_that_is_cancelled_is_interrupted_before_the_next(local: Local) -> None:
    works = asyncio.Event()
    running = asyncio.create_task(
        local.shell.run("echo working; sleep 60", timeout_s=TIMEOUT_S, on_output=lambda _: works.set())
    )
    await works.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await local.run("echo alive") == b"alive\n"


async def test_a_long_command_that_is_cancelled_while_it_is_typed_does_not_break_the_loop(local: Local) -> None:
    typing = asyncio.create_task(local.run(": " + "x" * (1 << 18)))
    for _ in range(5):
        await asyncio.sleep(0)
    typing.cancel()
    await asyncio.gather(typing, return_exceptions=True)
    assert await local.run("echo alive") == b"alive\n"


async def test_many_interrupts_at_any_moment_leave_the_shell_usable(local: Local) -> None:
    for number in range(30):
        running = asyncio.create_task(local.run("echo on; sleep 60; echo off"))
        await asyncio.sleep(0.001 * (number % 10))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await local.run(f"echo {number}") == b"%d\n" % number


async def test_commands_at_the_same_time_run_one_after_the_other(dash: Local) -> None:
    await dash.run("number=0")
    answers = await asyncio.gather(*(dash.run("number=$((number+1)); echo $number") for _ in range(20)))
    assert answers == [b"%d\n" % number for number in range(1, 21)]


async def test_one_of_many_commands_can_time_out_without_harm_to_the_others(dash: Local) -> None:
    results = await asyncio.gather(
        dash.run("echo one"), dash.run("sleep 60", timeout_s=0.5), dash.run("echo three"), return_exceptions=True
    )
    assert (results[0], type(results[1]), results[2]) == (b"one\n", CommandTimeout, b"three\n")


async def test_an_interactive_user_has_a_prompt_and_job_control(tmp_path: Path) -> None:
    async with local_shell(SHELLS[-1], tmp_path) as local:
        async with local.shell.interactive(timeout_s=TIMEOUT_S) as console:
            await console.wait_for(re.compile("[$#>] $"), timeout_s=TIMEOUT_S)
            await console.send("sh -c 'echo in\" \"front; exec sleep 100'\n")
            await console.wait_for("in front", timeout_s=TIMEOUT_S)
            await console.send(b"\x1a")
            await console.wait_for("Stopped", timeout_s=TIMEOUT_S)
            await console.send("jobs; echo $((6*7))\n")
            await console.wait_for("\n42\n", timeout_s=TIMEOUT_S)
        assert await local.run("echo alive") == b"alive\n"


async def test_a_command_inside_interactive_is_refused_and_not_waited_for(dash: Local) -> None:
    async with dash.shell.interactive(timeout_s=TIMEOUT_S):
        with pytest.raises(ShellError, match="interactive use"):
            await dash.run("echo hello")
    assert await dash.run("echo alive") == b"alive\n"


async def test_an_error_inside_interactive_comes_out_and_the_shell_is_usable(dash: Local) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with dash.shell.interactive(timeout_s=TIMEOUT_S) as console:
            await console.send("half a line that nobody")
            raise ZeroDivisionError
        pytest.fail("the error did not come out")
    assert await dash.run("echo alive") == b"alive\n"


async def test_a_prompt_that_never_answers_is_a_lost_shell(tmp_path: Path) -> None:
    async with console_on("dash", tmp_path) as console:
        await console.send("exec cat >/dev/null\n")
        with pytest.raises(ShellLost, match="did not take the read-eval loop"):
            await Shell(console, vm="local").start(shell="sh", timeout_s=0.5)


async def test_a_command_ends_with_its_console(dash: Local) -> None:
    with pytest.raises(ConsoleClosed):
        # The terminal's own shell is the parent of the loop's outer one.
        await dash.run('kill -9 $(cut -d" " -f4 /proc/$PPID/stat) $PPID $$; sleep 60')
    with pytest.raises(ConsoleClosed):
        await dash.run("echo more")


def lose_the_first(console: Console, kind: type[Signal]) -> list[Signal]:
    """Have the console lose its next mark of a kind; return what was lost."""
    feed = console._parser.feed
    lost: list[Signal] = []

    def lossy(data: bytes) -> Iterator[Signal]:
        for signal in feed(data):
            if isinstance(signal, kind) and not lost:
                lost.append(signal)
            else:
                yield signal

    console._parser.feed = lossy  # type: ignore[method-assign]
    return lost


async def test_a_command_whose_end_was_lost_is_asked_for_it_again(on_console: Local) -> None:
    lost = lose_the_first(on_console.console, Ended)
    assert await on_console.run("echo hello") == b"hello\n"
    assert lost
    assert await on_console.run("echo next") == b"next\n"


async def test_a_long_command_whose_acknowledgement_was_lost_arrives_whole(on_console: Local) -> None:
    lost = lose_the_first(on_console.console, Acknowledged)
    text = "".join(f"line {number} of many\n" for number in range(1000))
    assert await on_console.run(f"printf %s '{text}'") == text.encode()
    assert lost
    assert await on_console.run("echo next") == b"next\n"


@pytest.mark.parametrize("kind", SHELLS)
async def test_a_loop_whose_first_mark_was_lost_is_asked_whether_it_is_there(tmp_path: Path, kind: str) -> None:
    async with console_on(kind, tmp_path) as console:
        lost = lose_the_first(console, Ready)
        shell = Shell(console, vm="local")
        await shell.start(shell=shell_command(kind), timeout_s=TIMEOUT_S)
        assert lost
        assert (await shell.run("echo hello", timeout_s=TIMEOUT_S)).output == b"hello\n"


async def test_requests_for_an_acknowledgement_change_nothing(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_client, "REPEAT_AFTER_S", 0.001)
    text = "".join(f"line {number} of many\n" for number in range(1000))
    assert await local.run(f"printf %s '{text}'") == text.encode()
    assert await local.run("echo next") == b"next\n"


async def test_requests_for_the_end_of_a_command_that_runs_change_nothing(local: Local) -> None:
    assert await local.run("sleep 3; cat; echo end") == b"end\n"
    assert await local.run("echo next") == b"next\n"


async def test_children_of_the_shell_that_end_while_a_command_is_typed_cost_none_of_it(local: Local) -> None:
    for number in range(40):
        await local.run("for i in 1 2 3 4 5 6 7 8 9; do sleep 0.00$i & done")
        lines = [f"echo {number} {secrets.token_hex(200)}" for _ in range(5)]
        assert await local.run("\n".join(lines)) == "".join(f"{line[5:]}\n" for line in lines).encode()
