"""Nodes of a group: barriers, batons, locks, key-values, and poison, in every store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from store_rig import Connect

from pytest_propolis.agent_api.key_value import Put
from pytest_propolis.coordination.barrier import Barrier
from pytest_propolis.coordination.group import NodeGroup
from pytest_propolis.coordination.node import Node
from pytest_propolis.errors import CoordinationError, CoordinationLost, CoordinationTimeout, Poisoned

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Processes:
    """One group as several processes have it: each has connections, leases and a copy of its own."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self.name = f"group-{secrets.token_hex(4)}"
        self.groups: list[NodeGroup] = []

    async def one(self) -> NodeGroup:
        """The group as a further process has it; the first one opens it."""
        store = await self._connect()
        group = await (NodeGroup.attach if self.groups else NodeGroup.open)(store, self.name)
        self.groups.append(group)
        return group

    async def nodes(self, *names: str) -> list[Node]:
        """Nodes of one process each."""
        return [await (await self.one()).join(name) for name in names]


async def revoke(node: Node) -> None:
    """Take a node's lease away, as if it had expired."""
    assert node._keeper is not None
    await node.group._backend.revoke(node._keeper.lease)


@pytest_asyncio.fixture(loop_scope="module")
async def processes(connect: Connect) -> AsyncIterator[Processes]:
    made = Processes(connect)
    yield made
    for group in reversed(made.groups):
        await group.aclose()
    if made.groups:
        assert await made.groups[0]._backend.read(f"{made.name}/") == {}


async def test_a_barrier_opens_when_all_have_arrived_again_and_again(processes: Processes) -> None:
    nodes = await processes.nodes("a", "b", "c")
    for generation in range(1, 4):
        early = [asyncio.create_task(node.barrier("ready", 3)) for node in nodes[:2]]
        await nodes[2].group.mirror.until(lambda: len(Barrier(nodes[2].group, "ready").arrived) == 2 or None, on=("",))
        assert not any(task.done() for task in early)
        assert await nodes[2].barrier("ready", 3) == generation
        assert await asyncio.gather(*early) == [generation] * 2


async def test_many_parties_of_few_processes_meet(processes: Processes) -> None:
    groups = [await processes.one() for _ in range(3)]
    nodes = await asyncio.gather(*(groups[number % 3].join(f"n{number}") for number in range(30)))

    async def meet(node: Node) -> list[int]:
        return [await node.barrier("ready", 30) for _ in range(5)]

    assert await asyncio.gather(*map(meet, nodes)) == [[1, 2, 3, 4, 5]] * 30


async def test_a_wait_at_a_barrier_that_ends_early_is_no_arrival(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    with pytest.raises(CoordinationTimeout, match="missing are b") as caught:
        await a.barrier("ready", 2, timeout_s=0.05)
    assert caught.value.operation == "node 'a': barrier 'ready' of 2"
    cancelled = asyncio.create_task(a.barrier("ready", 2))
    await b.group.mirror.until(lambda: Barrier(b.group, "ready").arrived or None, on=("",))
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    with pytest.raises(CoordinationTimeout, match="missing are a"):
        await b.barrier("ready", 2, timeout_s=0.05)
    assert [*await asyncio.gather(a.barrier("ready", 2), b.barrier("ready", 2))] == [1, 1]


async def test_arrivals_are_cleared_after_a_barrier_has_opened(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    mirror, barrier = a.group.mirror, Barrier(a.group, "ready")
    await asyncio.gather(a.barrier("ready", 2), b.barrier("ready", 2))
    await mirror.until(lambda: mirror.count(barrier._directory(1)) == 0 or None, on=("",))
    # As left by a process that was killed after it had opened the barrier.
    await b.commit(Put(barrier._directory(1) + "b", b"2", b.lease))
    await asyncio.gather(a.barrier("ready", 2), b.barrier("ready", 2))
    await mirror.until(lambda: not any("/at/" in key for key in mirror.entries) or None, on=("",))


async def test_a_barrier_opens_though_the_process_of_its_last_party_has_ended(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    waiting = asyncio.create_task(a.barrier("ready", 2))
    barrier = Barrier(b.group, "ready")
    await b.group.mirror.until(lambda: barrier.arrived or None, on=("",))
    # A process that has arrived as b, and was killed before it opened the barrier: b's program lives on.
    await b.commit(Put(barrier._directory(1) + "b", b"2", b.lease))
    async with asyncio.timeout(10):
        assert await waiting == 1


async def test_parties_that_disagree_on_their_number_are_told(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    waiting = asyncio.create_task(a.barrier("ready", 3))
    await b.group.mirror.until(lambda: Barrier(b.group, "ready").arrived or None, on=("",))
    with pytest.raises(CoordinationError, match="node 'b' wants 4 parties, and node 'a' 3"):
        await b.barrier("ready", 4)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_node_that_fails_ends_the_waits_of_all_others(processes: Processes) -> None:
    a, b, c = await processes.nodes("a", "b", "c")
    waits = [
        asyncio.create_task(wait)
        for wait in (a.barrier("ready", 3), b.group.kv.wait("key"), a.group.find("nobody"), b.lock("lock").acquire())
    ]
    await waits[3]
    await c.fail("exit status 3", status=3, output=["first line", "last line"])
    for wait in waits[:3]:
        with pytest.raises(Poisoned, match="node 'c' has failed: exit status 3") as caught:
            await wait
        assert (caught.value.node, caught.value.output) == ("c", ("first line", "last line"))
        assert "    | last line" in str(caught.value)
    with pytest.raises(Poisoned):
        await a.baton("turn").take()
    assert a.group.ended()["c"].status == 3


async def test_a_node_that_vanishes_ends_the_waits_of_all_others(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    wait = asyncio.create_task(a.barrier("ready", 2))
    await revoke(b)
    with pytest.raises(Poisoned, match="node 'b' has vanished: it gave no sign of life for 5 s"):
        await wait


async def test_a_node_whose_lease_has_expired_is_told(processes: Processes) -> None:
    (a,) = await processes.nodes("a")
    b = await (await processes.one()).join("b", ttl_s=2, vital=False)
    wait = asyncio.create_task(b.barrier("ready", 2))
    await revoke(b)
    with pytest.raises(CoordinationLost, match="node 'b' is no longer of the group: its lease of 2 s has expired"):
        await wait
    again = await b.group.join("b")
    assert [*await asyncio.gather(a.barrier("ready", 2), again.barrier("ready", 2))] == [1, 1]


async def test_a_node_that_is_not_vital_may_vanish(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    c = await (await processes.one()).join("c", vital=False)
    await revoke(c)
    await a.group.mirror.until(lambda: "c" not in a.group.members() or None, on=("",))
    assert [*await asyncio.gather(a.barrier("ready", 2), b.barrier("ready", 2))] == [1, 1]


async def test_a_group_is_poisoned_by_hand_once(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    wait = asyncio.create_task(b.barrier("ready", 2))
    await a.group.poison("enough")
    await a.group.poison("again")
    with pytest.raises(Poisoned, match="the group is poisoned: enough"):
        await wait


async def test_a_baton_is_passed_in_line_and_by_name(processes: Processes) -> None:
    a, b, c = await processes.nodes("a", "b", "c")
    batons = {node.name: node.baton("turn") for node in (a, b, c)}
    await batons["a"].take()
    assert batons["a"].holder == "a"
    taking_c = asyncio.create_task(batons["c"].take())
    await a.group.mirror.until(lambda: batons["a"].line == ["c"] or None, on=("",))
    taking_b = asyncio.create_task(batons["b"].take())
    await a.group.mirror.until(lambda: batons["a"].line == ["c", "b"] or None, on=("",))
    await batons["a"].pass_on("b")
    await taking_b
    assert not taking_c.done()
    await batons["b"].pass_on()
    await taking_c
    with pytest.raises(CoordinationError, match="node 'a' does not hold baton 'turn'"):
        await batons["a"].pass_on()
    with pytest.raises(CoordinationError, match="there is no node 'd'"):
        await batons["c"].pass_on("d")
    await batons["c"].pass_on()
    assert batons["c"].holder is None
    async with batons["c"]:
        with pytest.raises(CoordinationTimeout, match="missing are c"):
            await batons["a"].take(timeout_s=0.1)


async def test_a_baton_goes_back_when_its_holder_dies(processes: Processes) -> None:
    a, b, c = await processes.nodes("a", "b", "c")
    d = await (await processes.one()).join("d", vital=False)
    await a.baton("turn").take()
    back = asyncio.create_task(a.baton("turn").pass_on("d", wait=True))
    await d.baton("turn").take()
    next_one = asyncio.create_task(b.baton("turn").take())
    await c.group.mirror.until(lambda: "b" in c.baton("turn").line or None, on=("",))
    await revoke(d)
    await back
    assert not next_one.done()
    await a.baton("turn").pass_on()
    await next_one


async def test_a_giver_that_waits_is_in_line_from_the_moment_at_which_another_node_holds_the_baton(
    processes: Processes,
) -> None:
    a, b = await processes.nodes("a", "b")
    baton = b.baton("turn")
    await a.baton("turn").take()
    back = asyncio.create_task(a.baton("turn").pass_on("b", wait=True))
    assert await b.group.mirror.until(lambda: baton.line if baton.holder == "b" else None, on=("",)) == ["a"]
    await baton.take()
    await baton.pass_on()
    await back
    await a.baton("turn").pass_on("a", wait=True)
    assert a.baton("turn").holder == "a"


async def test_a_baton_is_not_passed_to_a_node_that_has_just_left_the_line(processes: Processes) -> None:
    a, b, c = await processes.nodes("a", "b", "c")
    await a.baton("x").take()
    for _ in range(10):
        leaving = asyncio.create_task(b.baton("x").take())
        await a.group.mirror.until(lambda: a.baton("x").line == ["b"] or None, on=("",))
        staying = asyncio.create_task(c.baton("x").take())
        await a.group.mirror.until(lambda: a.baton("x").line == ["b", "c"] or None, on=("",))
        leaving.cancel()
        await asyncio.sleep(0)
        await a.baton("x").pass_on()
        async with asyncio.timeout(10):
            await staying
        await c.baton("x").pass_on("a")
        await a.baton("x").take()
        await asyncio.wait([leaving])
        assert leaving.cancelled()


async def test_a_baton_goes_to_the_next_in_line_when_its_giver_has_gone_too(processes: Processes) -> None:
    a, b = await processes.nodes("a", "b")
    c = await (await processes.one()).join("c", vital=False)
    await a.baton("turn").take()
    await a.baton("turn").pass_on("c")
    taking = asyncio.create_task(b.baton("turn").take())
    await a.group.mirror.until(lambda: "b" in a.baton("turn").line or None, on=("",))
    await a.leave()
    await revoke(c)
    await taking


async def test_a_lock_has_one_holder_and_a_semaphore_so_many(processes: Processes) -> None:
    nodes = await processes.nodes("a", "b", "c", "d")
    inside: dict[str, int] = {"lock": 0, "semaphore": 0}
    most: dict[str, int] = {"lock": 0, "semaphore": 0}

    async def enter(node: Node, name: str, permits: int) -> None:
        for _ in range(3):
            async with node.semaphore(name, permits):
                inside[name] += 1
                most[name] = max(most[name], inside[name])
                await asyncio.sleep(0)
                inside[name] -= 1

    await asyncio.gather(*(enter(node, "lock", 1) for node in nodes), *(enter(node, "semaphore", 2) for node in nodes))
    assert most["lock"] == 1
    assert most["semaphore"] <= 2
    held = nodes[0].lock("lock")
    await held.acquire()
    with pytest.raises(CoordinationTimeout, match="missing are a"):
        await nodes[1].lock("lock").acquire(timeout_s=0.05)
    with pytest.raises(CoordinationError, match="it has it already"):
        await held.acquire()
    with pytest.raises(CoordinationError, match="node 'b' wants 2 permits, and node 'a' 1"):
        await nodes[1].semaphore("lock", 2).acquire()
    taking = asyncio.create_task(nodes[1].lock("lock").acquire())
    await nodes[0].leave()
    await taking


async def test_two_processes_of_a_node_do_not_take_each_others_lock(processes: Processes) -> None:
    (a,) = await processes.nodes("a")
    locks = [(await processes.one()).borrow("a").lock("disk") for _ in range(2)]
    outcomes = await asyncio.gather(*(lock.acquire() for lock in locks), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CoordinationError", "NoneType"]
    assert await a.group.read("locks/disk/a") is not None


async def test_a_node_that_has_vanished_does_not_release_the_lock_of_its_successor(processes: Processes) -> None:
    (a,) = await processes.nodes("a")
    await a.group.join("other")
    gone = await (await processes.one()).join("b", vital=False)
    lock = gone.lock("disk")
    await lock.acquire()
    await revoke(gone)
    later = await (await processes.one()).join("b", vital=False)
    await later.lock("disk").acquire()
    await gone.group.read_all("")  # The old process has seen all of that.
    await lock.release()
    assert await a.group.read("locks/disk/b") is not None


async def test_key_values_are_shared(processes: Processes) -> None:
    one, other = await processes.one(), await processes.one()
    await one.kv.put("a/b", b"1")
    assert await other.kv.get("a/b") == b"1"
    assert await other.kv.get("a") is None
    assert not await other.kv.add("a/b", b"2")
    entry = await other.kv.entry("a/b")
    assert entry is not None
    assert await other.kv.swap("a/b", b"2", revision=entry.revision)
    assert not await one.kv.swap("a/b", b"3", revision=entry.revision)
    await other.kv.put_json("a/c", {"port": 80})
    assert await one.kv.get_json("a/c") == {"port": 80}
    assert await one.kv.list("a") == {"a/b": b"2", "a/c": b'{"port":80}'}
    assert await one.kv.delete("a/b")
    assert list(await one.kv.list()) == ["a/c"]
    for key in ("", "/a", "a/", "a//b", "ä", "a b"):
        with pytest.raises(CoordinationError, match="is not a key"):
            await one.kv.put(key, b"")
    with pytest.raises(CoordinationError, match="is a str"):
        await one.kv.put("a", "text")  # type: ignore[arg-type]


async def test_values_are_waited_for_and_watched(processes: Processes) -> None:
    one, other = await processes.one(), await processes.one()
    waiting = asyncio.create_task(other.kv.wait("key", equal_to=b"2"))
    seen: list[bytes | None] = []

    async def watch() -> None:
        async for value in other.kv.watch("key"):
            seen.append(value)
            if value is None:
                return

    watching = asyncio.create_task(watch())
    for value in (b"0", b"1", b"2"):
        await one.kv.put("key", value)
    assert await waiting == b"2"
    await one.kv.delete("key")
    await watching
    assert seen[-2:] == [b"2", None]
    assert seen == [b"0", b"1", b"2", None][-len(seen) :]
    with pytest.raises(CoordinationTimeout):
        await one.kv.wait("other", timeout_s=0.05)


async def test_nodes_find_each_other(processes: Processes) -> None:
    one, other = await processes.one(), await processes.one()
    finding = asyncio.create_task(one.find("server"))
    discovering = asyncio.create_task(one.discover("tcp", count=2))
    await other.join("server", address="10.0.0.1:80", labels=("tcp", "v4"))
    assert (await finding).address == "10.0.0.1:80"
    await other.join("second", labels=("tcp",))
    await other.join("third")
    assert sorted(await discovering) == ["second", "server"]
    with pytest.raises(CoordinationError, match="has a node 'server' already"):
        await one.join("server")
    with pytest.raises(CoordinationError, match="is not a name of a node"):
        await one.join("a/b")


async def test_a_group_ends_for_all_with_the_process_that_has_opened_it(processes: Processes, connect: Connect) -> None:
    opened, attached = await processes.one(), await processes.one()
    node = await attached.join("a")
    wait = asyncio.create_task(node.barrier("ready", 2))
    await opened.mirror.until(lambda: Barrier(opened, "ready").arrived or None, on=("",))
    await opened.aclose()
    with pytest.raises(CoordinationLost, match=f"group '{processes.name}' has ended"):
        await wait
    with pytest.raises(CoordinationLost, match="there is no group"):
        await NodeGroup.attach(await connect(), processes.name)
