"""Nodes that coordinate within a test: fixtures, over one host and several, and what is left of them."""

from __future__ import annotations

import json
import subprocess

import pytest
from inner_run import InnerRun
from propolis_command import COMMAND

COORDINATION = """
import asyncio

import json
import subprocess

import pytest
from pytest_propolis import CoordinationError, CoordinationTimeout, Poisoned

@pytest.mark.multi_node(2)
async def test_vms_on_two_hosts_meet(vm_factory, remote_hosts, nodes, kv, barrier):
    async def serve(host):
        vm = await vm_factory.start(f"on-{host.name}", host=host)
        async with await nodes.join(vm.name, address=host.address, labels=("server",)) as node:
            await kv.put(vm.name, (await vm.run("echo ready")).encode())
            assert await node.barrier("ready", 3) == 1
            assert await node.barrier("ready", 3) == 2

    async with asyncio.TaskGroup() as group:
        for host in remote_hosts:
            group.create_task(serve(host))
        assert len(await nodes.discover("server", count=2)) == 2
        await barrier("ready", 3)
        assert list((await kv.list()).values()) == [b"ready", b"ready"]
        await barrier("ready", 3)
    assert set(nodes.ended()) == {f"on-{host.name}" for host in remote_hosts}

async def test_a_baton_goes_round(nodes, baton):
    turns = []

    async def take_turn(name):
        async with (await nodes.join(name)).baton("turn"):
            turns.append(name)

    async with baton("turn") as own:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b"):
                group.create_task(take_turn(name))
            while len(own.line) < 2:
                await asyncio.sleep(0)
            await own.pass_on(wait=True)
    assert sorted(turns) == ["a", "b"]

async def test_a_failure_ends_all_waits(nodes, kv):
    waiting = await nodes.join("waiting")
    wait = asyncio.create_task(waiting.barrier("never", 2))
    with pytest.raises(ZeroDivisionError):
        async with await nodes.join("failing"):
            1 / 0
    with pytest.raises(Poisoned, match="node 'failing' has failed: ZeroDivisionError: division by zero") as caught:
        await wait
    assert caught.value.node == "failing"

async def test_who_is_missing_is_told(nodes, barrier):
    await nodes.join("late")
    with pytest.raises(CoordinationTimeout, match="missing are late"):
        await barrier("ready", 2, timeout_s=0.1)
    with pytest.raises(CoordinationError, match="not a name of a barrier"):
        await barrier("a/b", 2)
"""


@pytest.mark.parametrize("arguments", [("--propolis-hosts", "local:2"), ("--propolis-hosts", "local:2", "-n2")])
def test_nodes_of_a_test_coordinate(inner: InnerRun, arguments: tuple[str, ...]) -> None:
    inner.write(test_it=COORDINATION)
    inner.run(*arguments).assert_outcomes(passed=4)
    assert inner.leavings() == []


def test_a_run_takes_part_in_a_store_that_another_program_serves(inner: InnerRun) -> None:
    command = (*COMMAND, "node", "serve", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            store = json.loads(server.stdout.readline())["group"].partition("#")[0]
            inner.write(test_it=COORDINATION)
            arguments = ("--propolis-hosts", "local:2", "-n2", "--propolis-coordination", store)
            inner.run(*arguments).assert_outcomes(passed=4)
        finally:
            server.terminate()
    assert inner.leavings() == []
