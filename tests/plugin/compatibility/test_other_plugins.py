"""Other pytest plugins beside this one, each with a test that passes, one that fails, and one that hangs; a debugger.

``PROPOLIS_ALL_PLUGINS=1`` tries all plugins; without it, those that change how tests are run.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from debug_adapter import DebugAdapter
from environments import kept_environment
from inner_run import InnerRun

ROOT: Final = Path(__file__).parents[3]
TIMEOUT_S: Final = 120

TESTS: Final = """
import pytest

async def test_passes(test_vm):
    assert await test_vm.run("echo hello") == "hello"

async def test_fails(test_vm):
    assert await test_vm.run("echo hello") == "goodbye"

async def test_hangs(test_vm):
    await test_vm.run("sleep 1000", timeout_s=1)
"""

WAITING: Final = """
import asyncio, pathlib

async def test_waits(test_vm):
    pathlib.Path("waiting").write_text("waiting")
    await asyncio.sleep(3600)
"""

DEBUGGER: Final = "debugpy"
DEBUGGED: Final = """
async def test_debugged(test_vm):
    greeting = "hello"
    assert await test_vm.run(f"echo {greeting}") == "hello"
"""
BREAKPOINT_LINE: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherPlugin:
    """A plugin: its distribution, how pytest loads it, and the outcomes of the three tests."""

    requirement: str
    plugins: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    outcomes: dict[str, int] = field(default_factory=lambda: {"passed": 1, "failed": 2})
    essential: bool = False


PLUGINS: Final = {
    "timeout": OtherPlugin(
        requirement="pytest-timeout", plugins=("pytest_timeout",), arguments=("--timeout", "60"), essential=True
    ),
    "rerunfailures": OtherPlugin(
        requirement="pytest-rerunfailures",
        plugins=("pytest_rerunfailures",),
        arguments=("--reruns", "1"),
        outcomes={"passed": 1, "failed": 2, "rerun": 2},
        essential=True,
    ),
    "randomly": OtherPlugin(requirement="pytest-randomly", plugins=("pytest_randomly",), essential=True),
    "repeat": OtherPlugin(
        requirement="pytest-repeat",
        plugins=("pytest_repeat",),
        arguments=("--count", "2"),
        outcomes={"passed": 2, "failed": 4},
        essential=True,
    ),
    "cov": OtherPlugin(requirement="pytest-cov", plugins=("pytest_cov",), arguments=("--cov=.",), essential=True),
    "html": OtherPlugin(
        requirement="pytest-html",
        plugins=("pytest_metadata.plugin", "pytest_html.plugin"),
        arguments=("--html=report.html",),
    ),
    "sugar": OtherPlugin(requirement="pytest-sugar", plugins=("pytest_sugar",), arguments=("--force-sugar",)),
    "instafail": OtherPlugin(requirement="pytest-instafail", plugins=("pytest_instafail",), arguments=("--instafail",)),
    "check": OtherPlugin(requirement="pytest-check", plugins=("pytest_check",)),
    "order": OtherPlugin(requirement="pytest-order", plugins=("pytest_order",)),
    "split": OtherPlugin(
        requirement="pytest-split",
        plugins=("pytest_split.plugin",),
        arguments=("--splits", "1", "--group", "1", "--store-durations"),
    ),
    "allure": OtherPlugin(
        requirement="allure-pytest", plugins=("allure_pytest.plugin",), arguments=("--alluredir=allure",)
    ),
    "teamcity": OtherPlugin(
        requirement="teamcity-messages", plugins=("teamcity.pytest_plugin",), arguments=("--teamcity",)
    ),
    "anyio": OtherPlugin(requirement="anyio", plugins=("anyio.pytest_plugin",)),
    "xdist": OtherPlugin(requirement="pytest-xdist", plugins=("xdist.plugin",), arguments=("-n", "2")),
}


def chosen() -> list[str]:
    return [name for name, plugin in PLUGINS.items() if plugin.essential or os.environ.get("PROPOLIS_ALL_PLUGINS")]


@pytest.fixture(scope="session")
def python(pytestconfig: pytest.Config) -> Path:
    """The Python of an environment with this project, the plugins that are tried, and the debugger."""
    requirements = [*(PLUGINS[name].requirement for name in chosen()), DEBUGGER]
    return kept_environment(pytestconfig, "other-plugins-environment", ["--editable", str(ROOT), *requirements])


@pytest.fixture
def project(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> InnerRun:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (inner.pytester.path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    return inner


def outcomes(lines: list[str]) -> dict[str, int]:
    """The counts of the summary, which plugins show in their own ways."""
    found = re.findall(r"(\d+) (passed|failed|rerun)\b", "\n".join(lines[-8:]))
    return {word: int(count) for count, word in found}


def command(python: Path, plugin: OtherPlugin) -> list[str]:
    loaded = [word for name in ("propolis", *plugin.plugins) for word in ("-p", name)]
    return [str(python), "-m", "pytest", *loaded, *plugin.arguments]


@pytest.mark.parametrize("name", chosen())
def test_it_runs_beside(name: str, python: Path, project: InnerRun) -> None:
    plugin = PLUGINS[name]
    project.write(test_three=TESTS)
    result = project.pytester.run(*command(python, plugin), timeout=TIMEOUT_S)
    assert outcomes(result.outlines) == plugin.outcomes
    result.stdout.fnmatch_lines(["*'goodbye'*", "*CommandTimeout*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert project.leavings() == []


@pytest.mark.parametrize("name", chosen())
def test_ctrl_c_ends_a_test_that_waits_beside_it(name: str, python: Path, project: InnerRun) -> None:
    project.write(test_waiting=WAITING)
    fifo = project.pytester.path / "waiting"
    os.mkfifo(fifo)
    told = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen(
        command(python, PLUGINS[name]), cwd=fifo.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        ended = os.pidfd_open(run.pid)
        select.select([told, ended], [], [], TIMEOUT_S)
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=TIMEOUT_S)
    for descriptor in (told, ended):
        os.close(descriptor)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, output.decode(errors="replace")
    assert project.leavings() == []


@contextmanager
def at_the_breakpoint(python: Path, project: InnerRun) -> Iterator[tuple[DebugAdapter, int]]:
    """Debug a VM test until it stops; yield the debugger and the thread that stopped. Afterwards nothing is left."""
    project.write(test_debugged=DEBUGGED)
    directory = project.pytester.path
    with DebugAdapter(python, environment=os.environ) as debugger:
        arguments, line = ["-p", "propolis", "-p", "asyncio"], (directory / "test_debugged.py", BREAKPOINT_LINE)
        yield debugger, debugger.launch("pytest", arguments, directory=directory, breakpoint_at=line)
    project.wait_until_clean()


def test_a_debugger_stops_in_a_test_and_continues_it(python: Path, project: InnerRun) -> None:
    with at_the_breakpoint(python, project) as (debugger, thread):
        assert debugger.evaluate("test_vm", thread=thread) == "<TestVm 'test-vm' (micro)>"
        assert "its event loop runs" in debugger.evaluate("test_vm.debug('true')", thread=thread)
        debugger.evaluate("greeting = 'goodbye'", thread=thread)
        assert debugger.finish(thread=thread) == pytest.ExitCode.TESTS_FAILED


def test_a_debugger_that_ends_a_test_leaves_nothing(python: Path, project: InnerRun) -> None:
    with at_the_breakpoint(python, project) as (debugger, _):
        debugger.terminate()
