"""Marks of the read-eval loop that are lost on their way, and requests that repeat them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_ports import local_ports
from local_pty import SHELLS, console_on, shell_command
from local_shell import OVER_PORT, TIMEOUT_S, Local, any_shell

from pytest_propolis.agent_api.guest_ports import SHELL_PORT
from pytest_propolis.console import loop_client
from pytest_propolis.console.console import Console
from pytest_propolis.console.shell import Shell
from pytest_propolis.console.shell_protocol import Acknowledged, Ended, Ready, Signal
from pytest_propolis.console.transports.port_line import PortLine


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


@pytest.mark.parametrize("kind", SHELLS)
@pytest.mark.parametrize("lost_kind", [Ready, Ended])
async def test_the_loop_that_starts_that_of_a_port_repeats_what_was_lost(
    tmp_path: Path, kind: str, lost_kind: type[Signal]
) -> None:
    async with (
        local_ports(tmp_path) as ports,
        console_on(kind, tmp_path, inherited=ports.inherited) as console,
        PortLine.over(ports, SHELL_PORT, console) as line,
    ):
        lost = lose_the_first(console, lost_kind)
        shell = Shell(console, vm="local", port=line)
        await shell.start(shell=shell_command(kind), timeout_s=TIMEOUT_S)
        assert lost
        assert (await shell.run("echo hello", timeout_s=TIMEOUT_S)).output == b"hello\n"
        lost = lose_the_first(console, lost_kind)
        async with shell.interactive(timeout_s=TIMEOUT_S) as user:
            await user.send("stty size\n")
            await user.wait_for("24 80", timeout_s=TIMEOUT_S)
        assert lost
        assert (await shell.run("echo hello", timeout_s=TIMEOUT_S)).output == b"hello\n"


@pytest.mark.parametrize("name", [kind + OVER_PORT for kind in SHELLS])
async def test_the_loop_that_starts_that_of_a_port_passes_over_other_lines(tmp_path: Path, name: str) -> None:
    async with any_shell(name, tmp_path) as local:
        await local.console.send("nonsense\n?snosession\nr12345678 1 echo two lines\nn and more\n\n")
        async with local.shell.interactive(timeout_s=TIMEOUT_S) as user:
            await user.send("stty size\n")
            await user.wait_for("24 80", timeout_s=TIMEOUT_S)
        assert await local.run("echo on") == b"on\n"


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
