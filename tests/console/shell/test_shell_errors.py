"""The errors of commands: their text and evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_pty import SHELLS
from local_shell import Local, local_shell

from pytest_propolis.errors import CommandFailed, CommandTimeout, ShellError, ShellLost


async def test_a_failed_command_says_all_about_it(dash: Local) -> None:
    with pytest.raises(CommandFailed) as caught:
        await dash.run("echo why; exit 4")
    error = caught.value
    assert (error.command, error.status, error.output, error.vm) == ("echo why; exit 4", 4, b"why\n", "local")
    assert error.log_path == str(dash.console.log_path)
    assert "'echo why; exit 4' ended with status 4" in str(error)
    assert "    | why" in str(error)


async def test_the_text_of_an_error_is_bounded_and_its_output_is_whole(dash: Local) -> None:
    with pytest.raises(CommandFailed) as caught:
        await dash.run("head -c 200000 /dev/zero | tr '\\0' x; false # " + "y" * 60_000)
    assert len(caught.value.output) == 200_000
    assert len(str(caught.value)) < 5_000


async def test_a_long_command_that_takes_too_long_is_abbreviated(dash: Local) -> None:
    with pytest.raises(CommandTimeout) as caught:
        await dash.run("sleep 60 # " + "y" * 60_000, timeout_s=1)
    assert len(str(caught.value)) < 5_000


async def test_an_error_has_no_live_escape_sequence_of_the_output(dash: Local) -> None:
    with pytest.raises(CommandFailed) as caught:
        await dash.run("printf 'a\\033\\033[0m[2Jb\\302\\2332J'; false")
    assert b"\x1b" in caught.value.output
    assert not {"\x1b", "\x9b"} & set(str(caught.value))


async def test_a_nul_is_refused_and_nothing_is_sent(dash: Local) -> None:
    with pytest.raises(ShellError, match="NUL"):
        await dash.run("echo \0")
    assert await dash.run("echo alive") == b"alive\n"


@pytest.mark.parametrize("kind", SHELLS)
async def test_a_login_prompt_in_the_place_of_the_shell_ends_a_command(kind: str, tmp_path: Path) -> None:
    terminal = "$(readlink /proc/$$/fd/1)"
    login = f"stty sane <{terminal}; printf 'box login: '; read -r user <{terminal}; printf 'Password: '; sleep 1000"
    async with local_shell(kind, tmp_path) as local:
        with pytest.raises(ShellLost, match="the guest shows a login prompt where its shell was"):
            await local.run(login)
        with pytest.raises(ShellLost, match="login prompt") as again:
            await local.run("true")
        assert again.value.hint == "call `wait_to_boot` to log in again"
