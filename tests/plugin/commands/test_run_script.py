"""The `run` script, as far as it can be tried without setting up a machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN = ROOT / "run"
CI = ROOT / ".ci" / "run"


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        [RUN, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("script", [RUN, CI], ids=["run", ".ci/run"])
def test_the_script_is_executable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("arguments", [(), ("nonsense",)])
def test_without_a_known_command_it_prints_its_usage_and_fails(arguments: tuple[str, ...], tmp_path: Path) -> None:
    finished = start(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.startswith("usage: ./run examples")
    assert finished.stdout == ""


def test_help_is_printed_from_any_directory(tmp_path: Path) -> None:
    finished = start("--help", cwd=tmp_path)
    assert finished.returncode == 0
    assert "./run tests" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_continuous_integration_runs_what_people_run() -> None:
    assert '/../run" tests' in CI.read_text()
