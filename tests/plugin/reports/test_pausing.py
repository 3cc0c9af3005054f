"""A failed test waits with its VMs up, for the person at the terminal."""

from __future__ import annotations

import re
import sys

import pytest
from inner_run import InnerRun
from propolis_command import propolis
from terminal import Terminal, on_terminal

pytestmark = pytest.mark.usefixtures("no_autoload")

TESTS = """
async def test_fails(test_vm):
    await test_vm.run("false")

async def test_passes(vm_factory):
    await (await vm_factory.create()).launch()
"""

PYTEST = (sys.executable, "-m", "pytest", "-p", "propolis", "-p", "no:cacheprovider", "--propolis-pause-on-failure")


def shown_vm(terminal: Terminal) -> str:
    terminal.wait_for("/instance\n")
    found = re.search(r"propolis console (\w+)", terminal.shown)
    assert found
    return found[1]


def test_a_synchronous_test_waits_too(inner: InnerRun) -> None:
    inner.write(test_it="def test_fails(test_vm_sync):\n    test_vm_sync.run('false')")
    with on_terminal([*PYTEST, f"--basetemp={inner.runtime}/base"], cwd=inner.pytester.path) as terminal:
        vm = shown_vm(terminal)
        assert f"{vm} 'test-vm', Running" in propolis("ps")
        terminal.type("\r")
        assert terminal.wait_for_end() == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("key", ["\r", "\x03"], ids=["enter", "ctrl-c"])
def test_the_run_goes_on_at_a_key(inner: InnerRun, key: str) -> None:
    inner.write(test_it=TESTS)
    with on_terminal([*PYTEST, f"--basetemp={inner.runtime}/base"], cwd=inner.pytester.path) as terminal:
        vm = shown_vm(terminal)
        assert f"{vm} 'test-vm', Running" in propolis("ps")
        # The person has the shell to itself meanwhile.
        assert "\n42\n" in propolis("console", vm, typed="echo $((6 * 7))\n").replace("\r", "")
        terminal.type(key)
        assert terminal.wait_for_end() == pytest.ExitCode.TESTS_FAILED
        assert "1 failed, 1 passed" in terminal.shown
        assert terminal.shown.count("propolis console") == 1
    assert inner.leavings() == []


def test_the_run_goes_on_when_the_vm_stops(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    with on_terminal([*PYTEST, f"--basetemp={inner.runtime}/base"], cwd=inner.pytester.path) as terminal:
        vm = shown_vm(terminal)
        propolis("console", vm, typed="poweroff -f\n")
        assert terminal.wait_for_end() == pytest.ExitCode.TESTS_FAILED
        assert "1 failed, 1 passed" in terminal.shown
    assert inner.leavings() == []


def test_what_paused_can_be_kept(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    command = [*PYTEST, "--propolis-keep=failed", f"--basetemp={inner.runtime}/base"]
    with on_terminal(command, cwd=inner.pytester.path) as terminal:
        vm = shown_vm(terminal)
        terminal.type("\r")
        terminal.wait_for("VMs kept")
        terminal.wait_for_end()
    assert f"removed VM {vm}" in propolis("gc", "--kept")


def test_without_a_terminal_a_line_says_that_there_is_no_pause(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-pause-on-failure")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*--propolis-pause-on-failure has no effect: standard input is not a terminal"])


def test_workers_have_no_terminal_to_pause_at(inner: InnerRun) -> None:
    result = inner.run("--propolis-pause-on-failure", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --propolis-pause-on-failure needs a terminal*"])
