"""Guests at upstream's `propolis-server`, where there is one."""

from __future__ import annotations

import shutil

import pytest
from inner_run import InnerRun

PROGRAM = shutil.which("propolis-server")

TESTS = """
async def test_a_guest_boots_takes_commands_and_stops(test_vm):
    assert await test_vm.run("echo hello") == "hello"
    await test_vm.graceful_reboot()
    assert await test_vm.run("echo again") == "again"
    await test_vm.stop()

async def test_a_guest_migrates(vm_factory):
    source = await vm_factory.start("source")
    await source.run("echo there >/tmp/file")
    target = await vm_factory.successor(source)
    await target.migrate_from(source)
    assert await target.run("cat /tmp/file") == "there"
"""


@pytest.mark.skipif(PROGRAM is None, reason="there is no propolis-server on PATH: upstream's runs on illumos alone")
def test_guests_boot_reboot_and_migrate_at_it(inner: InnerRun) -> None:
    assert PROGRAM is not None
    inner.write(test_it=TESTS)
    inner.run("--propolis-server", PROGRAM, "--propolis-guest", "alpine").assert_outcomes(passed=2)
    assert inner.leavings() == []
