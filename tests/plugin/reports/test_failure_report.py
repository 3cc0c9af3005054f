"""A failed test's report of its VMs, and the places of their logs."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from inner_run import InnerRun
from propolis_command import propolis
from reruns import RERUNS_ONCE

FAILS = """
async def test_fails(vm_factory):
    vm = await vm_factory.start("alice", cpus=1, memory_mib=192)
    await vm_factory.create("bob")
    await vm.run("echo a line that was shown; echo complaint >&2; exit 3")

async def test_passes(vm_factory):
    vm = await vm_factory.create("carol")
    await vm.ensure()
"""


def test_the_report_shows_the_vm_its_state_its_spec_its_console_and_its_log(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    result = inner.run("-k", "test_fails")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*CommandFailed: VM 'alice': *ended with status 3",
            "E*output:",
            "E*| a line that was shown",
            "E*| complaint",
            "E*last * of console:",
            "E*| a line that was shown",
            "* propolis VM 'alice' *",
            "state:   Running",
            "spec:    micro, 1 CPUs, 192 MiB, disks: none",
            "console: see the error above",
            "log:     *",
            "* propolis VM 'bob' *",
            "state:   not created",
            "console: nothing was shown",
        ]
    )
    result.stdout.no_fnmatch_line("*/bin/busybox*")
    (alice, _) = [line.removeprefix("log:     ") for line in result.outlines if line.startswith("log:  ")]
    assert "a line that was shown\n" in Path(alice).read_text()


def test_logs_lie_in_one_directory_per_test(inner: InnerRun) -> None:
    logs = inner.pytester.path / "logs"
    inner.write(test_it=FAILS)
    result = inner.run(f"--propolis-log-dir={logs}")
    result.assert_outcomes(passed=1, failed=1)
    found = {place.name: sorted(file.name for file in place.glob("*.serial.log")) for place in logs.iterdir()}
    for names in found.values():  # the test that made the template, if none was there, has its log, too
        names[:] = [name for name in names if name != "template.serial.log"]
    assert found == {"test_it.py_test_fails": ["alice.serial.log"], "test_it.py_test_passes": ["carol.serial.log"]}


def test_workers_that_run_the_same_tests_have_logs_of_their_own(inner: InnerRun) -> None:
    logs = inner.pytester.path / "logs"
    inner.write(test_it=FAILS)
    inner.run(f"--propolis-log-dir={logs}", "--dist=each", "--tx=2*popen", "-k", "passes").assert_outcomes(passed=2)
    found = [str(file.relative_to(logs)) for file in logs.rglob("*.serial.log")]
    assert sorted(found) == [f"gw{number}/test_it.py_test_passes/carol.serial.log" for number in (0, 1)]


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_test_that_passes_shows_nothing_of_its_vms(inner: InnerRun, workers: tuple[str, ...]) -> None:
    inner.write(test_it=FAILS)
    result = inner.run("-k", "test_passes", *workers)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*propolis VM*")


def test_the_report_of_a_test_that_is_run_again_shows_the_vms_of_its_last_attempt(inner: InnerRun) -> None:
    inner.write(conftest=RERUNS_ONCE, test_it=FAILS)
    result = inner.run("-k", "test_fails")
    assert [line.strip("- ") for line in result.outlines if " propolis VM '" in line] == [
        "propolis VM 'alice'",
        "propolis VM 'bob'",
    ]


PLAINLY_FAILS = """
import pytest

async def test_compares(vm_factory):
    await vm_factory.create("alice")
    assert 1 == 2

async def test_gives_up(vm_factory):
    await vm_factory.create("bob")
    pytest.fail("in one line", pytrace=False)
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_the_text_of_a_failure_has_the_vms_for_those_that_see_no_terminal(
    inner: InnerRun, workers: tuple[str, ...]
) -> None:
    inner.write(test_it=PLAINLY_FAILS)
    result = inner.run("--junitxml=junit.xml", "--show-capture=no", *workers)
    cases = ElementTree.parse(inner.pytester.path / "junit.xml").iter("testcase")
    texts = {case.get("name"): case.findtext("failure") or "" for case in cases}
    for test, vm in (("test_compares", "alice"), ("test_gives_up", "bob")):
        assert f" propolis VM '{vm}' " in texts[test]
        assert f"{vm}.serial.log" in texts[test]
        result.stdout.fnmatch_lines([f"* propolis VM '{vm}' *", "state:   not created", f"log: *{vm}.serial.log"])


FREEZES_ITS_AGENT = """
import os, signal
import pytest_asyncio

@pytest_asyncio.fixture
async def frozen(test_vm, propolis):
    agent = (await (await propolis.host.client()).info()).pid
    os.kill(agent, signal.SIGSTOP)
    yield
    os.kill(agent, signal.SIGCONT)

async def test_fails(frozen):
    assert False

def test_other():
    pass
"""


def test_a_state_that_is_not_known_is_shown_with_the_reason(inner: InnerRun) -> None:
    inner.write(test_it=FREEZES_ITS_AGENT)
    result = inner.run()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["* propolis VM 'test-vm' *", "state:   unknown (*)", "log:     *"])


SHOWS_A_LONG_LINE = """
import pytest

@pytest.mark.parametrize("wait", [True, False])
async def test_long(test_vm, wait):
    await test_vm.run("head -c 20000 /dev/zero | tr '\\\\0' x >/dev/ttyS0")
    if wait:
        await test_vm.wait_for_serial_output("never" * 10_000, timeout_s=0.1)
    assert False
"""


def test_a_long_line_of_console_is_abbreviated_in_the_report_and_in_junit(inner: InnerRun) -> None:
    inner.write(test_it=SHOWS_A_LONG_LINE)
    result = inner.run("--junitxml=junit.xml", "--show-capture=no", "--propolis-keep=never")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*| *xxx … (* characters) … xxx*"])
    assert max(map(len, result.outlines)) < 1_000
    assert len((inner.pytester.path / "junit.xml").read_text()) < 20_000


FORGETS = """
import gc, weakref

VMS = weakref.WeakSet()

def pytest_propolis_vm_created(vm, config):
    VMS.add(vm)

def pytest_unconfigure(config):
    gc.collect()
    print("VMs in memory:", len(VMS))
"""

PASSES_AND_FAILS = """
import pytest

@pytest.mark.parametrize("passes", [True, False, True])
async def test_it(vm_factory, passes):
    await vm_factory.create("alice")
    assert passes

async def test_another(propolis):
    async with propolis.vm_factory() as factory:
        await factory.create("bob")
"""


@pytest.mark.parametrize("keep", ["never", "failed"])
def test_the_vms_of_a_test_that_has_ended_leave_memory(inner: InnerRun, keep: str) -> None:
    inner.write(conftest=FORGETS, test_it=PASSES_AND_FAILS)
    inner.run("-s", f"--propolis-keep={keep}").stdout.fnmatch_lines(["VMs in memory: 0"])
    propolis("gc", "--kept")


def test_a_vm_that_stops_while_it_is_used_is_reported_in_its_last_state(inner: InnerRun) -> None:
    inner.write(test_it="async def test_it(test_vm):\n    await test_vm.run('poweroff -f')")
    result = inner.fails_with("ConsoleClosed: VM 'test-vm': the console closed: the VM has stopped")
    result.stdout.fnmatch_lines(["* propolis VM 'test-vm' *", "state:   Destroyed"])


SLOW = """
async def test_waits(vm_factory):
    vm = await vm_factory.start("alice", memory_mib=192)
    await vm.run("echo a line that was shown")
    await vm.wait_for_serial_output("never", timeout_s=0.1)
"""


@pytest.mark.parametrize(("channel", "typed"), [("console", "|base64 -d"), ("port", "trap : 2 3;stty")])
def test_the_loop_that_runs_commands_is_not_shown_though_the_log_has_it(
    inner: InnerRun, channel: str, typed: str
) -> None:
    inner.write(test_it=SLOW)
    result = inner.fails_with(
        "ConsoleTimeout: VM 'alice': 'never' did not appear on the console",
        arguments=("--propolis-boot=cold", f"--propolis-channel={channel}"),
    )
    assert typed not in result.stdout.str()
    assert "/bin/busybox" not in result.stdout.str()
    (log,) = [line.removeprefix("log:     ") for line in result.outlines if line.startswith("log:  ")]
    assert typed in Path(log).read_text()


def test_console_lines_that_the_error_shows_are_not_shown_again(inner: InnerRun) -> None:
    inner.write(test_it=SLOW)
    result = inner.fails_with("ConsoleTimeout: *")
    report, _, _ = result.stdout.str().partition("short test summary info")  # which has it again where CI is set
    assert report.count("| a line that was shown") == 1


def test_console_lines_that_came_after_the_error_are_shown(inner: InnerRun) -> None:
    inner.write(
        test_it="""
async def test_it(vm_factory):
    vm = await vm_factory.start("alice", memory_mib=192)
    try:
        await vm.run("echo before; false")
    except Exception as error:
        await vm.run("echo after")
        raise error
"""
    )
    result = inner.fails_with("CommandFailed: *")
    result.stdout.fnmatch_lines(["console: see the error above", "         and since then:", "    | after", "log: *"])


@pytest.mark.parametrize("style", ["long", "short"])
def test_the_traceback_ends_at_the_line_of_the_test(inner: InnerRun, style: str) -> None:
    inner.write(test_it=SLOW)
    result = inner.fails_with("ConsoleTimeout: *", arguments=(f"--tb={style}",))
    result.stdout.fnmatch_lines(["*await vm.wait_for_serial_output(*"])
    result.stdout.no_fnmatch_line("*pytest_propolis/*.py:*")
    result.stdout.no_fnmatch_line("*pytest_asyncio*: in *")


def test_the_traceback_of_a_fixture_of_ours_ends_in_the_fixture(inner: InnerRun) -> None:
    inner.write(test_it="async def test_it(test_vm): ...")
    result = inner.fails_with(
        "BootError: *", arguments=("--propolis-boot=cold", "--propolis-boot-timeout=0.1", "--tb=short")
    )
    result.stdout.fnmatch_lines(["*fixtures/vms.py:*: in test_vm", '*await vm_factory.start("test-vm")', "E*"])
    result.stdout.no_fnmatch_line("*vm/factory.py:*")


def test_the_full_traceback_can_be_had(inner: InnerRun) -> None:
    inner.write(test_it=SLOW)
    result = inner.fails_with("ConsoleTimeout: *", arguments=("--full-trace",))
    result.stdout.fnmatch_lines(["*console/console.py:*"])


def test_a_synchronous_test_is_told_about_the_fixture_that_it_asks_for(inner: InnerRun) -> None:
    inner.write(test_it="def test_it(test_vm): ...")
    result = inner.run()
    result.stdout.fnmatch_lines(["*uses the fixture 'test_vm', whose methods are awaited: write `async def test_it*"])
    assert not (inner.runtime / "propolis").exists()
