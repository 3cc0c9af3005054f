"""Virtual environments that are made once and kept: for other programs, other plugins and other versions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

__all__ = ["NoEnvironment", "kept_environment", "make_environment"]

INSTALL_TIMEOUT_S: Final = 600
STAMP: Final = "installed"


class NoEnvironment(Exception):
    """Raised when a virtual environment cannot be made, usually without a package index."""


def make_environment(directory: Path, requirements: Sequence[str], *, python: str = sys.executable) -> Path:
    """Return the Python of a virtual environment with these requirements, which is reused if it exists.

    :raises NoEnvironment: when it cannot be made.
    """
    program, stamp = directory / "bin/python", directory / STAMP
    version = _run(python, "-VV")
    wanted = hashlib.sha256("\n".join((version, *requirements)).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        _run(python, "-m", "venv", "--clear", str(directory))
        _run(str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        stamp.write_text(wanted)
    return program


def kept_environment(config: pytest.Config, name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of an environment with these requirements, kept in pytest's cache.

    Where it cannot be made, the test is skipped.

    :param name: the environment's, in the cache.
    """
    cache = getattr(config, "cache", None)  # there is none under -p no:cacheprovider
    if cache is None:
        pytest.skip("pytest's cache, which keeps an environment for other programs, is turned off")
    try:
        directory: Path = cache.mkdir(name)
        return make_environment(directory, requirements)
    except NoEnvironment as error:
        pytest.skip(f"what this test needs cannot be installed: {error}")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except (subprocess.SubprocessError, OSError) as error:
        lines = (getattr(error, "stderr", None) or "").splitlines()
        reason = "; ".join(line for line in lines if line.startswith("ERROR")) or "; ".join(lines[-3:]) or str(error)
        raise NoEnvironment(reason) from None
    return done.stdout
