"""The order of removal after a test: the VM and its server before its disks."""

from __future__ import annotations

import pytest
from inner_run import InnerRun

ORDER = """
import asyncio, contextlib, json
import pytest
from pytest_propolis import DataDisk
from pytest_propolis.ledger.ledger import LEDGER_NAME, read_ledger

pytestmark = pytest.mark.asyncio

def gone(ledger):
    "The kinds of what is gone, in that order."
    lines = [json.loads(line) for line in ledger.read_text().splitlines()[1:]]
    kinds = {line["entry"]["id"]: line["entry"]["kind"] for line in lines if line["to"] == "intent"}
    return [kinds[line["id"]] for line in lines if line["to"] == "gone"]

def made(ledger):
    "What is there beside the agent's own directory of disks."
    return [entry for entry in read_ledger(ledger).entries.values() if entry.owner.client != "agent"]

async def fill(factory):
    vm = await factory.create("vm", disks=(DataDisk(name="data", size_mib=1), DataDisk(name="more", size_mib=1)))
    await vm.launch()
    return vm
"""

CANCELLED = (
    ORDER
    + """
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 32, 64, None])
async def test_it(propolis, steps):
    manager = propolis.vm_factory()
    await fill(await manager.__aenter__())
    ledger = propolis.host.directory / LEDGER_NAME
    before = len(gone(ledger))
    ending = asyncio.create_task(manager.__aexit__(None, None, None))
    if steps is not None:
        for _ in range(steps):
            await asyncio.sleep(0)
        ending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ending
    async with propolis.vm_factory():
        assert made(ledger) == []
        assert gone(ledger)[before:] == ["process", "directory", "directory", "file", "file"]
"""
)

NEXT = (
    ORDER
    + """
@pytest.mark.parametrize("turn", range(3))
async def test_it(vm_factory, propolis, turn):
    ledger = propolis.host.directory / LEDGER_NAME
    assert made(ledger) == []
    assert gone(ledger) == turn * ["process", "directory", "directory", "file", "file"]
    await fill(vm_factory)
"""
)


def test_disks_go_last_and_before_the_next_factory_also_if_the_end_is_cancelled(inner: InnerRun) -> None:
    inner.write(test_it=CANCELLED)
    inner.run().assert_outcomes(passed=8)


@pytest.mark.parametrize("keep", ["never", "failed"])
def test_the_next_test_begins_when_the_last_ones_leavings_are_gone(inner: InnerRun, keep: str) -> None:
    inner.write(test_it=NEXT)
    inner.run(f"--propolis-keep={keep}").assert_outcomes(passed=3)
