"""The command `propolis`, as a user runs it, in the environment of the test."""

from __future__ import annotations

import subprocess
import sys

__all__ = ["COMMAND", "propolis"]

COMMAND = (sys.executable, "-c", "from pytest_propolis.cli import main; main()")
TIMEOUT_S = 60


def propolis(*arguments: str, typed: str = "", status: int = 0) -> str:
    """Run the command, and return its standard output and standard error together."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout
