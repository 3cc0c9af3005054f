"""Guests as nodes that reboot and migrate while their programs wait."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis import NodeGroup, TestVm
from pytest_propolis.coordination.node import Node
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory

pytestmark = [pytest.mark.asyncio, pytest.mark.requires(server="engine")]

GUESTS = ["micro", pytest.param("alpine", marks=pytest.mark.slow)]


@pytest_asyncio.fixture
async def group(propolis: Run) -> AsyncIterator[NodeGroup]:
    async with propolis.node_group() as opened:
        yield opened


async def arrived(node: Node, barrier: str, count: int = 1) -> None:
    """Wait until exactly so many nodes have arrived."""
    mirror = node.group.mirror
    directory = f"barriers/{barrier}/at/1/"
    async with asyncio.timeout(60):
        await mirror.until(lambda: len(mirror.below(directory)) == count or None, on=("",))


async def moved(factory: VmFactory, vm: TestVm) -> TestVm:
    successor = await factory.successor(vm, f"vm-{secrets.token_hex(4)}")
    await successor.migrate_from(vm)
    await successor.wait_for_state(InstanceState.RUNNING)
    await vm.wait_for_state(InstanceState.DESTROYED)
    return successor


@pytest.mark.guest_os("micro", "alpine", "debian")
async def test_programs_of_each_guest_take_part(vm_factory: VmFactory, group: NodeGroup) -> None:
    vm = await vm_factory.start("vm")
    test = await group.join("test")
    value = secrets.token_bytes(3000).replace(b"\n", b"")
    async with vm.as_node(group):
        running = asyncio.create_task(vm.run("kv wait go >/tmp/v; kv put back </tmp/v; barrier ready 2; rm /tmp/v"))
        await group.kv.put("go", value)
        assert await test.barrier("ready", 2, timeout_s=120) == 1
        assert await running == "1"
        assert await group.kv.get("back") == value


@pytest.mark.parametrize("how", ["reset", pytest.param("graceful_reboot", marks=pytest.mark.slow)])
@pytest.mark.parametrize("guest", GUESTS)
async def test_a_guest_is_the_same_node_after_it_has_booted_again(
    vm_factory: VmFactory, group: NodeGroup, how: str, guest: str
) -> None:
    vm = await vm_factory.start("vm", guest=guest)
    test = await group.join("test")
    async with vm.as_node(group) as node:
        await vm.run("(lock disk -- sleep 10000; barrier ready 2) </dev/null >/dev/null 2>&1 &")
        await vm.run("barrier ready 2 </dev/null >/dev/null 2>&1 &")
        await arrived(test, "ready")
        await (vm.reset() if how == "reset" else vm.graceful_reboot())
        if how == "reset":
            await vm.wait_to_boot()
        await arrived(test, "ready", 0)
        await test.lock("disk").acquire(timeout_s=60)
        assert await vm.run("kv put after reboot; kv get after") == "reboot"
        running = asyncio.create_task(vm.run("barrier ready 2"))
        assert await test.barrier("ready", 2, timeout_s=60) == 1
        assert await running == "1"
        assert list(group.members()) == sorted([node.name, "test"])


async def test_a_line_that_a_migration_divides_arrives(vm_factory: VmFactory, group: NodeGroup) -> None:
    vm = await vm_factory.start("vm", guest="micro")
    request = b"kv\0put\0divided\0whole\0".hex()
    async with vm.as_node(group):
        await vm.run(f"printf '77.r a {request[:10]}' >/dev/ttyS1")
        vm = await moved(vm_factory, vm)
        await vm.run(f"printf '{request[10:]}\\n77.r g -\\n' >/dev/ttyS1")
        await group.kv.wait("divided", timeout_s=60)
        assert await group.kv.get("divided") == b"whole"


@pytest.mark.parametrize("guest", GUESTS)
async def test_a_guest_that_migrates_takes_its_waits_along(vm_factory: VmFactory, group: NodeGroup, guest: str) -> None:
    vm = await vm_factory.start("vm", guest=guest)
    test = await group.join("test")
    async with vm.as_node(group):
        waits = "for i in 1 2 3; do (kv wait go$i && kv put done/$i) </dev/null >/dev/null 2>&1 & done"
        await vm.run(f"{waits}; barrier ready 2 </dev/null >/tmp/passed &")
        await arrived(test, "ready")
        vm = await moved(vm_factory, vm)
        await group.kv.put("go1", b"")
        await group.kv.wait("done/1", timeout_s=60)
        vm = await moved(vm_factory, vm)
        assert await test.barrier("ready", 2, timeout_s=60) == 1
        for number in (2, 3):
            await group.kv.put(f"go{number}", b"")
            await group.kv.wait(f"done/{number}", timeout_s=60)
        assert await vm.run("kv put a b; kv get a; cat /tmp/passed") == "b\n1"
        await vm.reset()
        await vm.wait_to_boot()
        assert await vm.run("kv get a") == "b"
    assert await vm.run("for d in /usr/bin /usr/local/bin; do test ! -e $d/kv || echo $d; done") == ""


@pytest.mark.slow
async def test_no_line_is_lost_while_a_guest_migrates(vm_factory: VmFactory, group: NodeGroup) -> None:
    vm = await vm_factory.start("vm", guest="micro")
    async with vm.as_node(group):
        script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); kv put n/$i $i; [ $(kv get n/$i) = $i ] || exit 1; done"
        await vm.run(f"({script}; kv put end $?) </dev/null >/dev/null 2>&1 &")
        for number in (5, 20, 35):
            await group.kv.wait(f"n/{number}", timeout_s=120)
            vm = await moved(vm_factory, vm)
        assert await group.kv.wait("end", timeout_s=120) == b"0"
        assert len(await group.kv.list("n")) == 60
