"""Programs that are written to run Python code with the interpreter of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_propolis.operating_system.python_processes import write_python_script

CODE = "import os, sys\nprint(sys.argv[1:], sys.executable)\n"


@pytest.mark.parametrize("name", ["python", "a b", "it's", '$HOME `x` "y"', "long" * 50], ids=str.split)
def test_a_script_runs_with_an_interpreter_at_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    python = tmp_path / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nexec "$REAL" "$@"\n')
    python.chmod(0o700)
    monkeypatch.setenv("REAL", sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    script = tmp_path / "script"
    write_python_script(script, CODE)
    output = subprocess.check_output([script, "a b", "c"], text=True)
    assert output.startswith("['a b', 'c']")
    assert script.stat().st_mode & 0o777 == 0o700
