"""etcd that fails: killed members, elections, users, certificates."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import signal
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from etcd_rig import EtcdCluster, enable_users, etcd_cluster
from tls_files import make_certificate

from pytest_propolis.agent_api.key_value import Put
from pytest_propolis.coordination.backends.etcd import watch
from pytest_propolis.coordination.backends.etcd.address import EtcdAddress
from pytest_propolis.coordination.backends.etcd.backend import EtcdBackend
from pytest_propolis.coordination.barrier import Barrier
from pytest_propolis.coordination.group import NodeGroup
from pytest_propolis.coordination.node import Node
from pytest_propolis.errors import CoordinationError, CoordinationLost, SettingsError


async def joined(stores: Iterable[EtcdBackend]) -> list[Node]:
    """A node of each store, all of one group."""
    nodes: list[Node] = []
    for number, store in enumerate(stores):
        group = await (NodeGroup.attach if nodes else NodeGroup.open)(store, "group")
        nodes.append(await group.join(f"n{number}"))
    return nodes


async def all_but_one_arrive(nodes: list[Node]) -> list[asyncio.Task[int]]:
    waits = [asyncio.create_task(node.barrier("ready", len(nodes))) for node in nodes[1:]]
    group = nodes[0].group
    await group.mirror.until(lambda: len(Barrier(group, "ready").arrived) == len(nodes) - 1 or None, on=("",))
    return waits


async def close(nodes: list[Node]) -> None:
    for node in reversed(nodes):
        await node.group.aclose()
        await node.group._backend.aclose()


async def test_the_only_member_is_killed_and_started_again_in_a_barrier() -> None:
    async with etcd_cluster() as cluster:
        nodes = await joined([EtcdBackend(cluster.address) for _ in range(4)])
        waits = await all_but_one_arrive(nodes)
        cluster.kill(0)
        await cluster.wait_ended(0)
        last = asyncio.create_task(nodes[0].barrier("ready", 4))
        await cluster.start(0)
        assert await asyncio.gather(last, *waits) == [1] * 4
        assert nodes[0].group.poisoned is None
        await close(nodes)


async def test_the_leader_of_three_is_killed_in_a_barrier() -> None:
    async with etcd_cluster(3) as cluster:
        addresses = [cluster.address] * 3
        nodes = await joined([EtcdBackend(address) for address in addresses])
        waits = await all_but_one_arrive(nodes)
        cluster.kill(await cluster.leader())
        assert await asyncio.gather(nodes[0].barrier("ready", 3), *waits) == [1] * 3
        assert await asyncio.gather(*(node.barrier("ready", 3) for node in nodes)) == [2] * 3
        assert nodes[0].group.poisoned is None
        await close(nodes)


async def test_a_member_that_hangs_is_left_for_another_one() -> None:
    async with etcd_cluster(3) as cluster:
        follower = (await cluster.leader() + 1) % 3
        urls = cluster.address.urls
        hanging = dataclasses.replace(cluster.address, urls=(urls[follower], urls[(follower + 1) % 3]))
        nodes = await joined([EtcdBackend(cluster.address), EtcdBackend(hanging)])
        cluster.send(follower, signal.SIGSTOP)
        assert await asyncio.gather(*(node.barrier("ready", 2) for node in nodes)) == [1, 1]
        cluster.send(follower, signal.SIGCONT)
        await close(nodes)


async def test_what_was_compacted_is_read_anew() -> None:
    async with etcd_cluster() as cluster:
        store, other = EtcdBackend(cluster.address), EtcdBackend(cluster.address)
        group = await NodeGroup.open(store, "group")
        cluster.kill(0)
        await cluster.wait_ended(0)
        await cluster.start(0)
        revision = 0
        for number in range(20):
            revision = (await other.commit(Put("group/kv/a", str(number).encode()))).revision
        await other._gateway.ask("kv/compaction", {"revision": str(revision)}, dict)
        assert await group.kv.wait("a", equal_to=b"19") == b"19"
        await group.aclose()
        await store.aclose()
        await other.aclose()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def silent_watch(cluster: EtcdCluster, *, answered: bool) -> AsyncIterator[EtcdAddress]:
    """The address of a member that does not serve the first watch.

    :param answered: whether it answers that it watches.
    """
    silent: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(1 << 16)
        is_silent = b"/v3/watch" in request and not silent
        if is_silent:
            silent.append(writer)
            if not answered:
                return
        from_member, to_member = await asyncio.open_connection(*cluster.hosts.split(":"))
        to_member.write(request)
        if is_silent:
            writer.write(await from_member.readuntil(b'"created":true}}\n'))
            return
        await asyncio.gather(copy(reader, to_member), copy(from_member, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        yield EtcdAddress.parse(f"etcd://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for writer in silent:  # from Python 3.12 on, the server waits for its connections
            writer.close()
    assert silent


@pytest.mark.parametrize("answered", [False, True])
async def test_a_watch_that_a_member_does_not_serve_is_requested_again(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CREATION_TIMEOUT_S", 0.2)
    monkeypatch.setattr(watch, "SILENCE_S", 0.2)
    async with etcd_cluster() as cluster, silent_watch(cluster, answered=answered) as address:
        nodes = await joined([EtcdBackend(address)])
        async with asyncio.timeout(60):
            assert await nodes[0].barrier("ready", 1) == 1
        await close(nodes)


async def test_a_deletion_that_a_watch_does_not_report_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_S", 0.2)
    async with etcd_cluster() as cluster, silent_watch(cluster, answered=True) as address:
        store, other = EtcdBackend(cluster.address), EtcdBackend(address)
        group = await NodeGroup.open(store, "group")
        await group.kv.put("a", b"")
        behind = await NodeGroup.attach(other, "group")
        await group.kv.delete("a")
        async with asyncio.timeout(60):
            await behind.mirror.until(lambda: behind.mirror.get("kv/a") is None or None, on=("kv/a",))
        for opened in (behind, group):
            await opened.aclose()
        for backend in (other, store):
            await backend.aclose()


async def test_users_and_their_tokens() -> None:
    async with etcd_cluster(1, "--bcrypt-cost", "4", "--auth-token-ttl", "2") as cluster:
        await enable_users(f"etcd://{cluster.hosts}", "ci", "p@ss", prefix="lab")
        store = EtcdBackend(cluster.address)
        with pytest.raises(CoordinationError, match="etcd wants a user"):
            await store.read("a")
        await store.aclose()
        nodes = await joined(
            [EtcdBackend(EtcdAddress.parse(f"etcd://ci:p%40ss@{cluster.hosts}/lab")) for _ in range(2)]
        )
        waits = await all_but_one_arrive(nodes)
        cluster.kill(0)
        await cluster.wait_ended(0)
        await cluster.start(0)  # it has forgotten all tokens
        assert await asyncio.gather(nodes[0].barrier("ready", 2), *waits) == [1, 1]
        await close(nodes)
        for address, reason in (
            (f"etcd://ci:wrong@{cluster.hosts}/lab", "etcd refuses user 'ci'"),
            (f"etcd://ci:p%40ss@{cluster.hosts}", "permission denied"),
        ):
            refused = EtcdBackend(EtcdAddress.parse(address))
            with pytest.raises(CoordinationError, match=reason):
                await refused.commit(Put("group/a"))
            await refused.aclose()


async def test_tls_with_a_certificate_of_a_private_authority(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    flags = ("--cert-file", str(chain), "--key-file", str(key))
    async with etcd_cluster(1, *flags, scheme="https") as cluster:
        nodes = await joined([EtcdBackend(EtcdAddress.parse(f"etcds://{cluster.hosts}?ca={chain}")) for _ in range(2)])
        assert await asyncio.gather(*(node.barrier("ready", 2) for node in nodes)) == [1, 1]
        await close(nodes)
        stranger = EtcdBackend(EtcdAddress.parse(f"etcds://{cluster.hosts}"))
        stranger._gateway._patience_s = 0.5
        with pytest.raises(CoordinationLost, match=r"certificate verify failed|self.signed"):
            await stranger.read("a")
        await stranger.aclose()


def test_addresses(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden\n")
    address = EtcdAddress.parse(f"etcds://h1,h2:99,[::1]/lab/x?ca=/ca.pem&user=ci&password_file={secret}")
    assert address == EtcdAddress(
        urls=("https://h1:2379", "https://h2:99", "https://[::1]:2379"),
        prefix="lab/x",
        user="ci",
        password="hidden",
        ca=Path("/ca.pem"),
    )
    assert "hidden" not in repr(address)
    password = secrets.token_hex(4)
    for text in (
        f"http://ci:{password}@h",
        f"etcd://ci:{password}@",
        f"etcd://ci:{password}@h:x",
        f"etcd://u:{password}@h?x=1",
    ):
        with pytest.raises(SettingsError) as caught:
            EtcdAddress.parse(text)
        assert password not in str(caught.value)
