"""State that a command leaves in its shell or terminal affects neither the read-eval loop nor later results."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from local_pty import SHELLS
from local_shell import (
    ALL_SHELLS,
    OVER_PORT,
    TIMEOUT_S,
    Local,
    any_shell,
    local_shell,
)
from shell_state import LEFT_BEHIND, SPECIAL

CONTROLS = [bytes([byte]) for byte in (*range(1, 32), 127)]
C1_CONTROLS = [chr(code).encode() for code in range(0x80, 0xA0)] + [bytes([byte]) for byte in range(0x80, 0xA0)]


@pytest.fixture(params=ALL_SHELLS)
async def local(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Local]:
    async with any_shell(request.param, tmp_path) as made:
        await made.run(f"cd {tmp_path}; kept=kept")
        yield made


@pytest.mark.parametrize("shell", SHELLS)
async def test_each_control_byte_alone_in_a_command_arrives(shell: str, tmp_path: Path) -> None:
    async with local_shell(shell, tmp_path) as local:
        for byte in CONTROLS:
            await local.shell.run(f"quoted='{byte.decode()}'", timeout_s=TIMEOUT_S)
            assert (byte, await local.run('printf %s "$quoted"')) == (byte, byte)


@pytest.mark.parametrize("shell", SHELLS)
async def test_each_byte_of_the_upper_controls_alone_in_a_command_arrives(shell: str, tmp_path: Path) -> None:
    async with local_shell(shell, tmp_path) as local:
        for byte in C1_CONTROLS:
            command = f"printf %s 'a{byte.decode(errors='surrogateescape')}b'"
            assert (byte, await local.run(command)) == (byte, b"a" + byte + b"b")


@pytest.mark.parametrize("left", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
async def test_what_a_command_leaves_behind_does_not_reach_results(local: Local, left: str) -> None:
    result = await local.shell.run(f"{left}\n(exit 10)", timeout_s=TIMEOUT_S, check=False)
    assert (result.status, result.output.replace(b"trapped\n", b"")) == (10, b"")
    for status in (1, 0):
        assert await local.status(f"(exit {status})") == status
        # A trap on a child's end may come as late as this.
        assert (await local.run('echo alive "$kept"')).replace(b"trapped\n", b"") == b"alive kept\n"


async def test_redirections_of_the_shell_end_with_their_command(local: Local, tmp_path: Path) -> None:
    assert await local.run("exec >log 2>&1; echo logged") == b""
    assert await local.run("echo shown") == b"shown\n"
    assert (tmp_path / "log").read_bytes() == b"logged\n"


async def test_descriptors_of_its_own_stay_with_a_shell(local: Local, tmp_path: Path) -> None:
    await local.run("exec 3>log")
    await local.run("echo logged >&3")
    assert (tmp_path / "log").read_bytes() == b"logged\n"


async def test_a_command_begins_with_the_status_of_the_one_before(local: Local) -> None:
    for status in (7, 0, 1, 255):
        await local.status(f"(exit {status})")
        assert await local.run("echo $?") == b"%d\n" % status
        assert await local.run("echo $?") == b"0\n"


@pytest.mark.parametrize("option", ["a", "x"])
async def test_the_status_of_the_command_before_is_there_under_an_option(local: Local, option: str) -> None:
    await local.status(f"set -{option}; (exit 7)")
    assert (await local.run("echo $?")).endswith(b"\n7\n" if option == "x" else b"7\n")


async def test_a_trace_shows_commands_and_nothing_of_the_loop(local: Local) -> None:
    await local.run("set -x")
    # bash repeats the first character for each level of eval.
    assert (await local.run("echo hello")).lstrip(b"+") == b" echo hello\nhello\n"
    assert (await local.run("set +x")).lstrip(b"+") == b" set +x\n"
    assert await local.run("echo hello") == b"hello\n"


async def test_only_the_command_s_own_variables_are_exported(local: Local) -> None:
    await local.run("set -a; mine=1")
    environment = (await local.run("env")).splitlines()
    assert b"mine=1" in environment
    assert not [line for line in environment if line.startswith(b"_") and not line.startswith(b"_=")]


async def test_a_command_may_export_every_variable_that_it_finds(local: Local) -> None:
    """It finds those of the loop, too. It must not change these: their names are made up for each session."""
    found = set(re.findall(rb"^(_[0-9A-Za-z]{2}\w)=", await local.run("set"), re.MULTILINE))
    assert len(found) > 5
    await local.run("export " + " ".join(name.decode() for name in found))
    for status in (10, 0):
        assert await local.status(f"(exit {status})") == status
        assert await local.run('echo "$? $kept"') == b"%d kept\n" % status


async def test_a_shell_that_executes_nothing_any_more_is_replaced(local: Local) -> None:
    assert await local.status("set -n; echo never") == 0
    assert await local.run("echo alive") == b"alive\n"


async def test_functions_that_hide_commands_stay_the_command_s_own(local: Local) -> None:
    await local.run("printf() { echo mine; }; read() { echo my read; }")
    assert await local.run("printf x; read y") == b"mine\nmy read\n"


@pytest.mark.parametrize("shell", ["bash", "bash" + OVER_PORT])
async def test_functions_that_hide_special_built_ins_change_no_result(shell: str, tmp_path: Path) -> None:
    async with any_shell(shell, tmp_path) as local:
        for name in SPECIAL:
            await local.run(f"{name}() {{ echo mine; }}")
            assert (name, await local.status("(builtin exit 10)")) == (name, 10)
            assert (name, await local.run("echo $?")) == (name, b"10\n")
            assert (name, await local.run(f"{name} x; builtin unset -f {name}")) == (name, b"mine\n")
        await local.run(" ".join(f"{name}() {{ echo mine; }};" for name in SPECIAL))
        assert await local.status("false | (builtin exit 10)") == 10
        assert await local.run('echo "${PIPESTATUS[*]}"') == b"1 10\n"


@pytest.mark.parametrize("shell", ["dash", "busybox"])
async def test_a_function_of_such_a_name_is_an_error_of_the_shell_s_own(shell: str, tmp_path: Path) -> None:
    async with any_shell(shell, tmp_path) as local:
        assert await local.status("eval() { echo mine; }") == 2
        assert await local.run("echo alive") == b"alive\n"


@pytest.mark.parametrize("name", [kind + OVER_PORT for kind in SHELLS])
async def test_a_command_over_a_port_has_no_terminal_and_no_descriptor_of_the_loop(name: str, tmp_path: Path) -> None:
    async with any_shell(name, tmp_path) as local:
        assert await local.status("tty") == 1
        assert await local.status("test -e /proc/self/fd/8 || test -e /proc/self/fd/9") == 1
        await local.run("exec 9>&-")
        assert await local.run("echo alive") == b"alive\n"


async def test_an_exit_trap_is_heard(local: Local) -> None:
    result = await local.shell.run("trap 'echo bye' EXIT; exit 3", timeout_s=TIMEOUT_S, check=False)
    assert (result.status, result.output) == (3, b"bye\n")


async def test_an_option_of_exit_on_error_ends_the_shell_with_the_status(local: Local) -> None:
    assert await local.status("set -e; (exit 4); echo never") == 4
    assert await local.run("echo alive") == b"alive\n"


async def test_the_terminal_is_wide_enough_for_every_line(on_console: Local) -> None:
    assert await on_console.run("stty size </dev/tty") == b"99 1000\n"


async def test_no_pager_waits_for_a_key(local: Local) -> None:
    assert await local.run("seq 200 | ${PAGER:-more}") == b"".join(b"%d\n" % number for number in range(1, 201))


@pytest.mark.parametrize(
    "settings", ["sane", "-isig", "intr ^A", "susp ^Z quit ^Q", "icanon echo", "opost onlcr", "rows 5 cols 5"]
)
async def test_terminal_settings_end_with_their_command(on_console: Local, settings: str) -> None:
    before = await on_console.run("stty -a </dev/tty")
    await on_console.run(f"stty {settings} </dev/tty")
    assert await on_console.run("printf 'one\\ntwo\\n'") == b"one\ntwo\n"
    assert await on_console.run("stty -a </dev/tty") == before
