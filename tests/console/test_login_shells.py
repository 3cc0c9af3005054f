"""The read-eval loop starts from any login shell."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from local_pty import console_on_program
from test_shell import TIMEOUT_S

from pytest_propolis.console.read_eval_loop import program
from pytest_propolis.console.shell import Shell
from pytest_propolis.console.shell_protocol import new_session

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
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(tmp_path)}
    async with console_on_program(*LOGIN_SHELLS[name], directory=tmp_path, environment=environment) as console:
        # What is typed before the prompt is there may be thrown away.
        await console.wait_for(PROMPT, timeout_s=TIMEOUT_S)
        shell = Shell(console, vm="local")
        await shell.start(shell="sh", timeout_s=TIMEOUT_S)
        result = await shell.run("echo 'it works'; exit 3", timeout_s=TIMEOUT_S, check=False)
        assert (result.status, result.output) == (3, b"it works\n")


def test_the_line_that_is_typed_fits_a_small_line_editor() -> None:
    assert max(len(program(new_session(), shell="bash")) for _ in range(100)) <= 1023
