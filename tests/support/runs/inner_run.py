"""A pytest run inside a test, as a user starts one, whose leftovers can be distinguished from those of other runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from directory_tree import paths_below

__all__ = ["InnerRun"]

TIMEOUT_S = 240

PLUGINS = ("propolis", "asyncio", "xdist", "timeout")
"""To load others that are installed, as Hypothesis's, takes longer than all the rest of a short run."""


class InnerRun:
    """Starts pytest with the plugin, in a process of its own, with a runtime directory of its own.

    :param runtime: the run's XDG_RUNTIME_DIR. All its processes carry it in their environment, its agents live in it.
    """

    def __init__(self, pytester: pytest.Pytester, runtime: Path) -> None:
        self.pytester = pytester
        self.runtime = runtime

    def write(self, **files: str) -> None:
        """Write Python files, by name without ending."""
        self.pytester.makepyfile(**files)

    def run(self, *arguments: str) -> pytest.RunResult:
        """``pytest -p propolis`` with the plugins that its users need; the guest is micro by default."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
            return self.plain(*(f"-p{name}" for name in PLUGINS), *arguments)

    def with_all_plugins(self, *arguments: str) -> pytest.RunResult:
        """``pytest -p propolis``, with all installed plugins loaded as users have them."""
        return self.plain("-p", "propolis", *arguments)

    def plain(self, *arguments: str) -> pytest.RunResult:
        """``pytest`` with nothing added."""
        return self.pytester.runpytest_subprocess(*arguments, timeout=TIMEOUT_S)

    def fails_with(self, *lines: str, arguments: tuple[str, ...] = ()) -> pytest.RunResult:
        """Run tests that must fail with one error that shows these lines (patterns, in order), and leave nothing."""
        result = self.run(*arguments)
        outcomes = result.parseoutcomes()
        assert sum(outcomes.get(kind, 0) for kind in ("failed", "errors")) == 1, outcomes
        result.stdout.fnmatch_lines([f"E*{line}" for line in lines])
        assert self.leavings() == []
        return result

    def leavings(self) -> list[str]:
        """Return the leftovers of all runs: processes, agents' directories, rendezvous files."""
        return [*map(_command, self.processes()), *map(str, paths_below(self.runtime / "propolis"))]

    def wait_until_clean(self, timeout_s: float = 60.0) -> None:
        """Wait until nothing is left of runs whose agents clean up by themselves."""
        deadline = time.monotonic() + timeout_s
        while left := self.leavings():
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def processes(self) -> Iterator[Path]:
        """Return the /proc directories of all processes of runs."""
        wanted = f"XDG_RUNTIME_DIR={self.runtime}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (process / "environ").read_bytes().split(b"\0") and process.name != str(os.getpid()):
                    yield process
            except OSError:  # gone meanwhile, or another user's
                continue


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return f"{process.name}, gone meanwhile"
