"""The configuration of the checks of this project's own code."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


def test_mypy_checks_the_package_and_its_tests() -> None:
    assert {"pytest_propolis", "tests"} <= set(TOOL["mypy"]["files"])


def test_mypy_finds_the_modules_that_pytest_puts_on_the_path() -> None:
    assert set(TOOL["pytest"]["ini_options"]["pythonpath"]) <= set(TOOL["mypy"]["mypy_path"])
