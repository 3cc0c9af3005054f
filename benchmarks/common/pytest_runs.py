"""Whole runs of pytest as processes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["run_suite"]

TIMEOUT_S: Final = 600.0


def run_suite(command: Sequence[str], directory: Path, *, added: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Run the tests of ``test_suite.py``, and return the seconds that it took and what it wrote.

    A setting by which each run compiles all modules makes no difference.

    :param command: pytest, with options.
    :param added: environment variables to add.
    :raises RuntimeError: when a test fails.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.monotonic()
    finished = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", "test_suite.py"],
        cwd=directory,
        env={**inherited, **(added or {})},
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if finished.returncode:
        raise RuntimeError(finished.stdout + finished.stderr)
    return time.monotonic() - began, finished.stdout
