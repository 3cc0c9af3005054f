"""VMs of tests that cannot await: unittest, pytest-bdd, doctest, plain functions."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from environments import kept_environment
from inner_run import InnerRun
from propolis_command import propolis

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "synchronous.md").read_text()

FACADE = """
import pytest
from pytest_propolis import CommandFailed, ConfigError, Nic, TestVm

@pytest.fixture(scope="module")
def vm(propolis):
    with propolis.blocking(propolis.vm_factory()) as factory:
        yield factory.start(channel="port", memory_mib=192)

def test_processes(vm):
    with vm.process("echo one; echo two; cat") as process:
        process.stdin.write("three\\n")
        process.stdin.aclose()
        assert list(process.stdout) == ["one", "two", "three"]
        assert process.wait() == 0

def test_errors_are_those_of_the_method(vm):
    with pytest.raises(CommandFailed) as caught:
        vm.run("false")
    assert caught.value.status == 1

@pytest.mark.parametrize("state", ["running", None, 5])
def test_what_is_no_state_is_refused_at_once(vm, state):
    with pytest.raises(ConfigError, match=f"the state to wait for is {state!r}"):
        vm.wait_for_state(state)

def test_an_error_leaves_a_context(vm):
    with pytest.raises(KeyError), vm.interactive():
        raise KeyError
    assert vm.run("echo up") == "up"

def test_what_a_context_opens_is_closed_after_an_interruption(vm):
    with pytest.raises(KeyboardInterrupt), vm.interactive():
        raise KeyboardInterrupt
    assert vm.run("echo up") == "up"

def test_output_comes_as_it_is_written(vm):
    pieces = []
    vm.run("echo one; echo two", on_output=pieces.append)
    assert "two" in str(pieces)

def test_the_debuggers_method_works_in_a_test(vm):
    assert vm.debug("echo up; false") == "up"

def test_a_proxy_of_a_network_is_part_of_a_card(propolis_sync):
    network = propolis_sync.network("lan")
    alice, bob = (propolis_sync.start(n, memory_mib=192, nics=(Nic(network=network),)) for n in ("alice", "bob"))
    alice.run(f"ping -c 1 -W 20 {bob.address(network)}")

async def test_an_asynchronous_test_is_told_what_to_use(vm):
    with pytest.raises(ConfigError, match="would block"):
        vm.run("true")
"""

CANCELLED = """
import signal, pytest

class Late(Exception): ...

def late(number, frame):
    raise Late

def test_it(test_vm_sync):
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(Late):
        test_vm_sync.run("sleep 1000; echo not interrupted")
    assert test_vm_sync.run("echo up") == "up"
"""

PANICS = """
import pytest
from pytest_propolis import PropolisError

CRASH = "echo c > /proc/sysrq-trigger"

def test_unexpected(test_vm_sync):
    with pytest.raises(PropolisError):
        test_vm_sync.run(CRASH)

def test_expected(test_vm_sync):
    with test_vm_sync.expect_panic(), pytest.raises(PropolisError):
        test_vm_sync.run(CRASH)
"""

DYNAMIC = """
def test_it(request):
    request.getfixturevalue("test_vm_sync").run("false")
"""


@pytest.fixture(autouse=True)
def nothing_kept(inner: InnerRun) -> Iterator[None]:
    """Remove kept resources after the test; the fixture `inner` checks that nothing else is left."""
    yield
    propolis("gc", "--kept")


def block(language: str, containing: str) -> str:
    texts: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    (found,) = (text for text in texts if containing in text)
    return found


def test_the_examples_pass(inner: InnerRun) -> None:
    inner.write(
        test_plain=block("python", "test_two_vms"),
        test_unittest=block("python", "TestUptime"),
        test_shared=block("python", "TestShared"),
        kernel=block("python", "kernel_of"),
    )
    inner.run("--doctest-modules").assert_outcomes(passed=6)


def test_the_example_of_pytest_bdd_passes(inner: InnerRun, pytestconfig: pytest.Config) -> None:
    inner.write(test_files=block("python", "pytest_bdd"))
    (inner.pytester.path / "files.feature").write_text(block("gherkin", "Feature"))
    if importlib.util.find_spec("pytest_bdd"):
        inner.run().assert_outcomes(passed=1)
        return
    python = kept_environment(pytestconfig, "pytest-bdd-environment", ["--editable", str(ROOT), "pytest-bdd"])
    result = inner.pytester.run(python, "-m", "pytest", timeout=120)
    result.assert_outcomes(passed=1)


def test_what_a_vm_gives_works_without_await(inner: InnerRun) -> None:
    inner.write(test_it=FACADE)
    inner.run("--asyncio-mode=auto").assert_outcomes(passed=11)


def test_an_exception_in_the_waiting_test_cancels_the_command(inner: InnerRun) -> None:
    inner.write(test_it=CANCELLED)
    inner.run().assert_outcomes(passed=1)


def test_a_panic_fails_a_synchronous_test_that_does_not_expect_it(inner: InnerRun) -> None:
    inner.write(test_it=PANICS)
    result = inner.run()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*VM 'test-vm': the guest's kernel panicked unexpectedly*"])


def test_the_vm_of_a_failed_test_can_be_kept(inner: InnerRun) -> None:
    inner.write(test_it=DYNAMIC)
    result = inner.run("--propolis-keep=failed")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*CommandFailed*", "*propolis VM 'test-vm'*", "*VMs kept*", "*propolis console *"])
