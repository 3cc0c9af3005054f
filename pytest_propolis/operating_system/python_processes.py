"""Python processes that run this project's modules, independent of changes a test makes to its own process."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, cast

import msgspec

__all__ = [
    "TRACING_VARIABLES",
    "end_of_imports",
    "installed_paths",
    "original_popen",
    "python_command",
    "spawn_helper",
    "untraced",
    "write_python_script",
]

TRACING_VARIABLES: Final = ("COVERAGE_", "COV_CORE_", "PYDEVD_", "DEBUGPY_")
"""Variables with which coverage and debuggers follow child processes. They target the tests, not this project's."""

INTERPRETER_BYTES: Final = 127
"""How long the path of an interpreter may be, at the least, for a kernel to read it from a script's first line."""

_RUN_MODULE: Final = """
import gc, json, os, runpy, sys
gc.disable()
if {detached} and os.fork():
    os._exit(0)
sys.path += json.loads(sys.argv.pop(1))
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
"""Lets a process import the same modules as this one.

The standard library comes first: in a test run `sys.path` begins with test directories, whose modules may shadow it. No
``.pth`` files are read, with which coverage and others hook into every Python process. What is imported stays, so no
garbage is collected until `end_of_imports`.
"""


def python_command(module: str, *arguments: str, detached: bool = False) -> list[str]:
    """Return the command that runs a module of this project as a program.

    :param detached: in a child of the process that is started, which ends at once.
    """
    code = _RUN_MODULE.format(module=module, detached=detached)
    # Through `env`, because debuggers inject themselves into every Python that is started directly.
    return ["/usr/bin/env", sys.executable, "-S", "-P", "-c", code, json.dumps(_import_path()), *arguments]


def end_of_imports() -> None:
    """Begin to collect garbage in a program of `python_command`, without what was imported."""
    gc.freeze()
    gc.enable()


def write_python_script(path: Path, code: str) -> None:
    """Write a program that runs Python code with this process's interpreter; only its user may run it."""
    python = sys.executable
    if len(python.encode()) < INTERPRETER_BYTES and not any(letter.isspace() for letter in python):
        begin = f"#!{python}"
    else:  # the shell reads a command, and Python a string
        begin = f"#!/bin/sh\n'''exec' {shlex.quote(python)} \"$0\" \"$@\"\n' '''"
    path.write_text(f"{begin}\n{code}")
    path.chmod(0o700)


@cache
def original_popen() -> type[subprocess.Popen[bytes]]:
    """Return the class of a copy of the module `subprocess` that no test has patched."""
    spec = importlib.util.find_spec("subprocess")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("type[subprocess.Popen[bytes]]", module.Popen)


def spawn_helper(
    module: str, *arguments: str, directory: Path, log_name: str, ready_fd: int
) -> subprocess.Popen[bytes]:
    """Start a module of this project as a process that a directory belongs to, and that logs into it.

    The process holds a lock of the directory for as long as it lives.

    :param ready_fd: the last argument: a descriptor that it inherits.
    """
    locked = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    log = os.open(directory / log_name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(locked, fcntl.LOCK_EX)
        return original_popen()(
            [sys.executable, "-P", "-m", module, *arguments, str(ready_fd)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[ready_fd, locked],
            start_new_session=True,  # Ctrl-C on the terminal must not reach it
            cwd="/",
        )
    finally:
        os.close(log)
        os.close(locked)


def untraced(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables by which debuggers and coverage follow."""
    return {name: value for name, value in environment.items() if not name.startswith(TRACING_VARIABLES)}


def installed_paths() -> tuple[str, ...]:
    """Return the directories from which this project and its dependencies are imported."""
    return (str(Path(__file__).absolute().parents[2]), str(Path(str(msgspec.__file__)).absolute().parents[1]))


def _import_path() -> list[str]:
    """Return this process's module search path: first this package and its dependencies, then what tests add."""
    return list(dict.fromkeys([*installed_paths(), *map(_absolute, sys.path)]))


def _absolute(entry: str) -> str:
    # A finder keeps what a relative place meant when it was first looked into; the test may have changed directory.
    finder = sys.path_importer_cache.get(entry)
    return str(Path(getattr(finder, "path", entry)).absolute())
