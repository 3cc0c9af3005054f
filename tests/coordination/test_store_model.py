"""The embedded store against a model, and nodes against their guarantees, with crashes, delays and lost leases."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from local_store import LocalBackend

from pytest_propolis.agent.coordination.store import KeyValueStore, LeaseGone
from pytest_propolis.agent_api.key_value import Change, Commit, Put
from pytest_propolis.coordination.group import NodeGroup
from pytest_propolis.coordination.node import Node
from pytest_propolis.errors import CoordinationError, CoordinationLost

KEYS = st.sampled_from(["a", "d/a", "d/b", "d/e/a"])


class StoreMachine(RuleBasedStateMachine):
    """Transactions, leases and time, beside dictionaries that say what must be there."""

    leases: Bundle[int] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.store = KeyValueStore(lambda: self.now_s)
        self.values: dict[str, tuple[bytes, int, int]] = {}
        self.ends_s: dict[int, float] = {}
        self.followed: dict[str, Any] = {}
        self.last_revision = 0
        self.store.follow("d/", self.note)

    def note(self, changes: tuple[Change, ...]) -> None:
        assert changes
        for change in changes:
            assert change.key.startswith("d/")
            assert change.revision >= self.last_revision
            self.last_revision = change.revision
            self.followed[change.key] = change.entry

    def drop(self, lease: int) -> None:
        del self.ends_s[lease]
        self.values = {key: value for key, value in self.values.items() if value[2] != lease}

    @rule(target=leases, ttl_s=st.sampled_from([1.0, 2.0, 5.0]))
    def grant(self, ttl_s: float) -> int:
        lease = self.store.grant(ttl_s)
        self.ends_s[lease] = self.now_s + ttl_s
        return lease

    @rule(lease=leases)
    def revoke(self, lease: int) -> None:
        assert self.store.revoke(lease) == (lease in self.ends_s)
        if lease in self.ends_s:
            self.drop(lease)

    @rule(lease=leases)
    def keep_alive(self, lease: int) -> None:
        assert self.store.keep_alive(lease) == (lease in self.ends_s)
        if lease in self.ends_s:
            self.ends_s[lease] = self.now_s + self.store._leases[lease].ttl_s

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.store.expire()
        for lease, end_s in list(self.ends_s.items()):
            if end_s <= self.now_s:
                self.drop(lease)

    @rule(
        puts=st.dictionaries(KEYS, st.binary(max_size=3), max_size=2),
        deletes=st.lists(st.one_of(KEYS, st.just("d/")), max_size=2),
        expected=st.dictionaries(KEYS, st.booleans(), max_size=2),
        lease=st.one_of(st.just(0), leases),
    )
    def commit(self, puts: dict[str, bytes], deletes: list[str], expected: dict[str, bool], lease: int) -> None:
        revisions = {key: self.values.get(key, (b"", 0, 0))[1] + (not right) for key, right in expected.items()}
        request = Commit(
            0, tuple(Put(key, value, lease) for key, value in puts.items()), tuple(deletes), revisions, "d/"
        )
        if puts and lease and lease not in self.ends_s:
            try:
                self.store.commit(request)
            except LeaseGone:
                return
            raise AssertionError("a lease that is gone was taken")
        done, count = self.store.commit(request)
        assert done == all(expected.values())
        if done:
            gone = {key for key in self.values if key in deletes or ("d/" in deletes and key.startswith("d/"))}
            self.values = {key: value for key, value in self.values.items() if key not in gone}
            self.values |= {key: (value, self.store.revision, lease) for key, value in puts.items()}
        assert count == len([key for key in self.values if key in ("d/a", "d/b")])

    @invariant()
    def the_store_has_what_the_model_has(self) -> None:
        found = self.store.read("")
        assert {key: (entry.value, entry.revision, entry.lease) for key, entry in found.items()} == self.values
        followed = {key: entry for key, entry in self.followed.items() if entry is not None}
        assert followed == self.store.read("d/")
        assert self.store._bytes == sum(len(value) for value, _, _ in self.values.values())
        deadline_s = self.store.next_deadline_s
        assert not self.ends_s or (deadline_s is not None and deadline_s <= min(self.ends_s.values()))


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


async def joined(store: KeyValueStore, chance: random.Random, number: int) -> list[Node]:
    nodes: list[Node] = []
    for index in range(number):
        backend = LocalBackend(store, chance)
        group = await (NodeGroup.attach if nodes else NodeGroup.open)(backend, "group")
        nodes.append(await group.join(f"n{index}", vital=False, ttl_s=1000))
    return nodes


async def crash(store: KeyValueStore, node: Node) -> None:
    """Let a node's lease expire."""
    store.revoke(node.lease)


async def exclude(seed: int, victims: int) -> None:
    """Nodes want a lock and a baton; some of them die. No two are ever inside, and all that live get in."""
    chance, store = random.Random(seed), KeyValueStore(asyncio.get_running_loop().time)
    nodes = await joined(store, chance, 5)
    inside: dict[str, set[str]] = {"lock": set(), "baton": set()}
    dead: set[str] = set()

    async def work(node: Node) -> None:
        for _ in range(3):
            for name, held in (("lock", node.lock("l")), ("baton", node.baton("b"))):
                async with held:
                    inside[name].add(node.name)
                    assert inside[name] - dead == {node.name}
                    if node.name in doomed and chance.random() < 0.5:
                        dead.add(node.name)
                        await crash(store, node)
                        raise CoordinationLost("crashed")
                    await asyncio.sleep(0)
                    inside[name].discard(node.name)

    doomed = {node.name for node in nodes[:victims]}
    async with asyncio.timeout(20):
        results = await asyncio.gather(*map(work, nodes), return_exceptions=True)
    assert all(result is None or isinstance(result, CoordinationError) for result in results), results
    assert all(result is None for node, result in zip(nodes, results, strict=True) if node.name not in doomed), results
    for node in reversed(nodes):
        await node.group.aclose()


async def meet(seed: int, cancelled: int) -> None:
    """Nodes meet again and again; some waits are cancelled and tried again. The barrier opens with all, or not."""
    chance, store = random.Random(seed), KeyValueStore(asyncio.get_running_loop().time)
    nodes = await joined(store, chance, 4)
    begun = dict.fromkeys((node.name for node in nodes), 0)

    async def work(node: Node, fickle: bool) -> None:
        for generation in range(1, 5):
            begun[node.name] = generation
            wait = asyncio.create_task(node.barrier("x", 4))
            if fickle:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                wait.cancel()
                await asyncio.gather(wait, return_exceptions=True)
            if not fickle or opened(store) < generation:
                assert await (node.barrier("x", 4) if fickle else wait) == generation
            assert min(begun.values()) >= generation

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(node, index < cancelled) for index, node in enumerate(nodes)))
    for node in reversed(nodes):
        await node.group.aclose()


def opened(store: KeyValueStore) -> int:
    entry = store.read("group/barriers/x/generation").get("group/barriers/x/generation")
    return int(entry.value) if entry else 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), victims=st.integers(0, 4))
def test_locks_and_batons_exclude_whatever_dies(seed: int, victims: int) -> None:
    asyncio.run(exclude(seed, victims))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), cancelled=st.integers(0, 2))
def test_barriers_open_with_all_parties_whatever_is_cancelled(seed: int, cancelled: int) -> None:
    asyncio.run(meet(seed, cancelled))


async def test_a_thousand_nodes_of_fifty_processes_meet() -> None:
    store = KeyValueStore(asyncio.get_running_loop().time)
    groups: list[NodeGroup] = []
    for _ in range(50):
        groups.append(await (NodeGroup.attach if groups else NodeGroup.open)(LocalBackend(store), "group"))
    nodes = await asyncio.gather(*(groups[number % 50].join(f"n{number}", ttl_s=600) for number in range(1000)))

    async def work(node: Node) -> int:
        await node.group.kv.put(node.name, b"here")
        return await node.barrier("all", 1000)

    assert set(await asyncio.gather(*map(work, nodes))) == {1}
    assert len(await groups[7].kv.list()) == 1000
    for group in reversed(groups):
        await group.aclose()
    assert store.read("") == {}
