"""State that a shell keeps between commands, compared with the same shell at its own prompt."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from local_pty import PROMPT, SHELLS, console_on
from local_shell import OVER_PORT, TIMEOUT_S, any_shell, local_shell
from shell_state import DIFFERENT, KEPT, Kept

EACH = [(shell, name) for name, kept in KEPT.items() for shell in kept.shells if shell in SHELLS]
OTHERS = [(shell, name) for name, kept in DIFFERENT.items() for shell in kept.shells if shell in SHELLS]


async def in_the_loop(shell: str, directory: Path, kept: Kept) -> str:
    """Return the output of the last command when `run` runs them."""
    directory.mkdir()
    async with any_shell(shell, directory) as local:
        await local.run(f"cd {directory}")
        for command in kept.commands:
            result = await local.shell.run(command, timeout_s=TIMEOUT_S, check=False)
        return result.text


async def at_a_prompt(shell: str, directory: Path, kept: Kept) -> str:
    """Return the output of the last command when they are typed at the prompt."""
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


@pytest.mark.parametrize(("shell", "name"), EACH)
async def test_a_shell_over_a_port_keeps_the_same(shell: str, name: str, tmp_path: Path) -> None:
    assert await in_the_loop(shell + OVER_PORT, tmp_path / "loop", KEPT[name]) == KEPT[name].shows


@pytest.mark.parametrize(("shell", "name"), OTHERS)
async def test_what_differs_over_a_port(shell: str, name: str, tmp_path: Path) -> None:
    assert await in_the_loop(shell + OVER_PORT, tmp_path / "loop", DIFFERENT[name]) == DIFFERENT[name].shows


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
