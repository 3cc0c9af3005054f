"""Commands that time out, are cancelled or run at the same time, interactive use, and the loss of a shell."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

import pytest
from local_pty import SHELLS, console_on
from local_shell import TIMEOUT_S, Local, local_shell

from pytest_propolis.console.shell import Shell
from pytest_propolis.errors import CommandTimeout, ConsoleClosed, ShellError, ShellLost


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
