"""The read-eval loop starts from any login shell."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from local_ports import local_ports
from local_pty import console_on_program
from local_shell import TIMEOUT_S

from pytest_propolis.agent_api.guest_ports import SHELL_PORT
from pytest_propolis.console.console import Console
from pytest_propolis.console.read_eval_loop import program
from pytest_propolis.console.shell import Shell
from pytest_propolis.console.shell_protocol import new_session
from pytest_propolis.console.transports.port_line import PortLine

STARTUP = {
    "csh": (".cshrc", "set prompt = 'ready %# '\nalias printf echo\nset noglob\n"),
    "fish": (".config/fish/config.fish", "function fish_prompt; echo 'ready # '; end\nfunction printf; echo no; end\n"),
    "zsh": (".zshrc", "PS1='ready %# '\nalias printf=echo\nsetopt noclobber\n"),
    "bash": (".bash_profile", "PS1='ready \\$ '\nalias printf=echo\nset -o noclobber\n"),
}
"""A startup file of each shell that sets a prompt, and what may harm a program that the shell is to run."""

LOGIN_SHELLS = {
    "tcsh": ("tcsh", "-f"),
    "fish": ("fish", "--no-config", "--interactive"),
    "zsh": ("zsh", "-f"),
    "bash": ("bash", "--norc", "--noprofile"),
    "dash": ("dash", "-i"),
}
PROMPT = re.compile(r"[>%#$] ?\Z")


@pytest.mark.parametrize("name", [name for name in LOGIN_SHELLS if shutil.which(name)])
async def test_the_loop_starts_from_a_login_shell(name: str, tmp_path: Path) -> None:
    await require_loop(LOGIN_SHELLS[name], tmp_path)


@pytest.mark.parametrize("name", [name for name in LOGIN_SHELLS if shutil.which(name)])
async def test_the_loop_of_a_port_starts_from_a_login_shell(name: str, tmp_path: Path) -> None:
    async with (
        local_ports(tmp_path) as ports,
        at_prompt(LOGIN_SHELLS[name], tmp_path, ports.inherited) as console,
        PortLine.over(ports, SHELL_PORT, console) as line,
    ):
        shell = Shell(console, vm="local", port=line)
        await shell.start(shell="sh", timeout_s=TIMEOUT_S)
        result = await shell.run("printf 'it %s\\n' works; exit 3", timeout_s=TIMEOUT_S, check=False)
        assert (result.status, result.output) == (3, b"it works\n")
        # The console's loop, which has started that of the port, is a whole one from its first use on.
        for _ in range(2):
            async with shell.interactive(timeout_s=TIMEOUT_S) as user:
                await user.send("stty size; echo here''s\n")
                await user.wait_for("24 80", timeout_s=TIMEOUT_S)
                await user.wait_for("heres", timeout_s=TIMEOUT_S)
        assert (await shell.run("echo on", timeout_s=TIMEOUT_S)).output == b"on\n"


@pytest.mark.parametrize("name", [name for name in STARTUP if shutil.which(name.replace("csh", "tcsh"))])
async def test_the_loop_starts_from_a_login_shell_with_its_startup_files(name: str, tmp_path: Path) -> None:
    file, text = STARTUP[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    program = tmp_path / name
    program.symlink_to(str(shutil.which(name.replace("csh", "tcsh"))))  # tcsh is another shell by the name of csh
    await require_loop((str(program), "-l"), tmp_path)


@contextlib.asynccontextmanager
async def at_prompt(
    command: tuple[str, ...], home: Path, inherited: Mapping[int, int] | None = None
) -> AsyncIterator[Console]:
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(home)}
    async with console_on_program(
        *command, directory=home, environment=environment, inherited=inherited or {}
    ) as console:
        # What is typed before the prompt is there may be thrown away.
        await console.wait_for(PROMPT, timeout_s=TIMEOUT_S)
        yield console


async def require_loop(command: tuple[str, ...], home: Path) -> None:
    """Start the loop at the prompt of a login shell, and run a command."""
    async with at_prompt(command, home) as console:
        shell = Shell(console, vm="local")
        await shell.start(shell="sh", timeout_s=TIMEOUT_S)
        result = await shell.run("printf 'it %s\\n' works; exit 3", timeout_s=TIMEOUT_S, check=False)
        assert (result.status, result.output) == (3, b"it works\n")


def test_the_line_that_is_typed_fits_a_small_line_editor() -> None:
    assert max(len(program(new_session(), shell="bash")) for _ in range(100)) <= 1023
