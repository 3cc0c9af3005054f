"""The guarantees of every store, embedded or etcd."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from typing import cast

import pytest
from store_rig import Connect

from pytest_propolis.agent_api.key_value import Change, Entry, Put
from pytest_propolis.coordination.backends.backend import Snapshot
from pytest_propolis.errors import CoordinationLost

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def prefix() -> str:
    return f"{secrets.token_hex(4)}/"


async def test_what_is_put_is_read_with_its_revision(connect: Connect, prefix: str) -> None:
    store = await connect()
    written = await store.commit(Put(f"{prefix}a", b"\0\xff"), Put(f"{prefix}b"))
    assert await store.read(prefix) == {
        f"{prefix}a": Entry(b"\0\xff", written.revision),
        f"{prefix}b": Entry(b"", written.revision),
    }
    assert await store.read(f"{prefix}a") == {f"{prefix}a": Entry(b"\0\xff", written.revision)}
    assert await store.read(f"{prefix}c") == {}


async def test_a_transaction_is_done_if_its_expectations_are_met_and_else_not_at_all(
    connect: Connect, prefix: str
) -> None:
    store = await connect()
    key = f"{prefix}key"
    first = await store.commit(Put(key, b"1"), expected={key: 0})
    assert first.done
    assert not (await store.commit(Put(key, b"2"), Put(f"{prefix}other"), expected={key: 0})).done
    assert not (await store.commit(deletes=(key,), expected={key: first.revision + 1})).done
    assert (await store.read(prefix)).keys() == {key}
    assert (await store.commit(Put(f"{prefix}other"), deletes=(key,), expected={key: first.revision})).done
    assert (await store.read(prefix)).keys() == {f"{prefix}other"}


async def test_a_directory_is_counted_and_deleted_as_a_whole(connect: Connect, prefix: str) -> None:
    store = await connect()
    places = [f"{prefix}at/{number}" for number in range(3)]
    counts = [(await store.commit(Put(place), count=f"{prefix}at/")).count for place in places]
    assert counts == [1, 2, 3]
    assert (await store.commit(Put(places[0]), count=f"{prefix}at/")).count == 3
    assert (await store.commit(deletes=(f"{prefix}at/",), count=f"{prefix}at/")).count == 0
    assert await store.read(prefix) == {}


async def test_transactions_that_are_sent_at_once_exclude_each_other(connect: Connect, prefix: str) -> None:
    stores = [await connect() for _ in range(2)]
    key, other = f"{prefix}key", f"{prefix}other"
    outcomes = await asyncio.gather(
        *(store.commit(Put(key, str(number).encode()), expected={key: 0}) for store in stores for number in range(10)),
        *(
            store.commit(Put(f"{prefix}n/{id(store)}-{number}"), count=f"{prefix}n/")
            for store in stores
            for number in range(10)
        ),
        stores[0].commit(Put(other), expected={f"{prefix}n/x": 0}),
        stores[0].commit(Put(f"{prefix}n/x"), expected={other: 0}),
    )
    assert sum(outcome.done for outcome in outcomes[:20]) == 1
    assert max(outcome.count for outcome in outcomes[20:40]) in (20, 21)
    assert len({outcome.count for outcome in outcomes[20:40]}) == 20
    assert [outcome.done for outcome in outcomes[40:]].count(True) == 1


async def test_a_follower_gets_a_snapshot_and_then_every_change_in_order(connect: Connect, prefix: str) -> None:
    store, other = await connect(), await connect()
    await other.commit(Put(f"{prefix}a", b"before"))
    news = cast("AsyncGenerator[Snapshot | tuple[Change, ...]]", store.follow(prefix))
    snapshot = await anext(news)
    assert isinstance(snapshot, Snapshot)
    assert {key: entry.value for key, entry in snapshot.entries.items()} == {f"{prefix}a": b"before"}
    await other.commit(Put("elsewhere/x"))
    put = await other.commit(Put(f"{prefix}b", b"1"), Put(f"{prefix}c", b"2"))
    deleted = await other.commit(deletes=(f"{prefix}a", f"{prefix}b", f"{prefix}none"))
    changes: list[Change] = []
    while len(changes) < 4:
        item = await anext(news)
        assert isinstance(item, tuple)
        changes += item
    assert sorted(changes[:2], key=lambda change: change.key) == [
        Change(f"{prefix}b", put.revision, Entry(b"1", put.revision)),
        Change(f"{prefix}c", put.revision, Entry(b"2", put.revision)),
    ]
    assert {(change.key, change.entry) for change in changes[2:]} == {(f"{prefix}a", None), (f"{prefix}b", None)}
    assert {change.revision for change in changes[2:]} == {deleted.revision}
    await news.aclose()


async def test_keys_go_with_their_lease(connect: Connect, prefix: str) -> None:
    store = await connect()
    ends, expires, lives = [await store.grant(2) for _ in range(3)]
    await store.commit(*(Put(f"{prefix}{lease}", b"", lease) for lease in (ends, expires, lives)))
    await store.commit(Put(f"{prefix}{ends}", b"", lives))
    await store.revoke(ends)
    await store.revoke(ends)
    assert not await store.keep_alive(ends)
    assert (await store.read(prefix)).keys() == {f"{prefix}{lease}" for lease in (ends, expires, lives)}
    while f"{prefix}{expires}" in await store.read(prefix):
        assert await store.keep_alive(lives)
        await asyncio.sleep(0.2)
    assert (await store.read(prefix)).keys() == {f"{prefix}{ends}", f"{prefix}{lives}"}
    assert not await store.keep_alive(expires)


async def test_a_key_that_is_put_on_a_lease_that_is_gone_is_refused(connect: Connect, prefix: str) -> None:
    store = await connect()
    lease = await store.grant(5)
    await store.revoke(lease)
    refused = asyncio.create_task(store.commit(Put(f"{prefix}a", b"", lease)))
    assert (await store.commit(Put(f"{prefix}b"))).done
    with pytest.raises(CoordinationLost):
        await refused


async def test_values_of_a_mebibyte_pass(connect: Connect, prefix: str) -> None:
    store = await connect()
    value = secrets.token_bytes(1 << 20)
    await asyncio.gather(*(store.commit(Put(f"{prefix}{number}", value)) for number in range(3)))
    assert [entry.value for entry in (await store.read(prefix)).values()] == [value] * 3
