"""Nodes that coordinate: barriers, notifications, poison, the end of a run, in the agent's store and in etcd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

from pytest_propolis.agent_api.key_value import Answer, Change, Entry, Notice
from pytest_propolis.coordination.backends.address import connect_store, group_and_store
from pytest_propolis.coordination.group import NodeGroup
from pytest_propolis.coordination.run_group import opened_group
from pytest_propolis.errors import Poisoned
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.run_directory import run_token
from pytest_propolis.settings import Settings

from ..common.figure import Figure
from ..common.options import Options

PARTIES: Final = 32
PROCESSES: Final = 4
MANY: Final = 1000
ROUNDS_OF_MANY: Final = 5
MANY_BOUND_MS: Final = 0.2
ETCD_FLAGS: Final = ("--unsafe-no-fsync", "--heartbeat-interval", "10", "--election-timeout", "100")


def measure(options: Options) -> list[Figure]:
    rounds = options.repeats or 100
    return [
        figure
        for kind in ("embedded", "etcd")
        if kind == "embedded" or shutil.which("etcd")
        for figure in asyncio.run(_measure(kind, rounds))
    ]


async def _measure(kind: str, rounds: int) -> list[Figure]:
    async with _store(kind) as store:
        last_alone = await _meetings(store, rounds, "last-alone")
        at_once = await _meetings(store, max(rounds // 3, 5), "at-once")
        notified = [await _against_etcdctl(store, rounds)] if kind == "etcd" and shutil.which("etcdctl") else []
        return [
            *notified,
            _figure(
                f"{kind}: barrier of 32 in 4 processes, last alone, p50", last_alone, 8 if kind == "embedded" else 12
            ),
            _figure(f"{kind}: the same, all at once, p50", at_once, 15 if kind == "embedded" else 40),
            _figure(f"{kind}: put to notification, p50", await _notifications(store, rounds), 2),
            Figure(
                name=f"{kind}: a vanished node (lease 5 s) poisons after",
                measured=f"{await _vanish(store):.2f} s",
                bound="<= 5.5 s",
            ),
            Figure(
                name=f"{kind}: the end of a group with 1,000 keys",
                measured=f"{await _end(store) * 1e3:.0f} ms",
                bound="<= 100 ms",
            ),
            *[await _many(store, kind, clients) for clients in (1, 20)],
        ]


def _figure(name: str, seconds: list[float], bound_ms: float) -> Figure:
    ordered = sorted(seconds)
    median = statistics.median(ordered) * 1e3
    measured = f"{median:.1f} ms ({ordered[0] * 1e3:.1f}-{ordered[-1] * 1e3:.1f}), n={len(ordered)}"
    return Figure(name=name, measured=measured, bound=f"<= {bound_ms} ms", met=median <= bound_ms)


class _Store:
    """
    :param settings: the store, as ``--propolis-coordination`` has it.
    """

    def __init__(self, settings: str, host: LocalHost | None) -> None:
        self._settings = settings
        self._host = host

    def group(self, name: str) -> contextlib.AbstractAsyncContextManager[NodeGroup]:
        return opened_group(self._settings, name, run="benchmark", host=self._require_host)

    async def processor_time_s(self) -> float:
        """Return what the agent that is the store has taken; 0 for etcd."""
        if self._host is None:
            return 0.0
        async with await self._host.client() as client:
            pid = (await client.info()).pid
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9

    def _require_host(self) -> LocalHost:
        assert self._host is not None
        return self._host


@contextlib.asynccontextmanager
async def _store(kind: str) -> AsyncIterator[_Store]:
    if kind == "embedded":
        host = LocalHost(Settings(), run_id=run_token(None))
        await (await host.client()).aclose()
        try:
            yield _Store(kind, host)
        finally:
            host.close()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, peer = f"http://127.0.0.1:{port}", "unix://peer.sock:1"
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        etcd = await asyncio.create_subprocess_exec(
            *("etcd", "--data-dir", "data", "--listen-client-urls", url, "--advertise-client-urls", url),
            *(
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                f"default={peer}",
            ),
            *ETCD_FLAGS,
            cwd=directory,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield _Store(f"etcd://127.0.0.1:{port}", None)
        finally:
            etcd.kill()
            await etcd.wait()


async def _meetings(store: _Store, rounds: int, mode: str) -> list[float]:
    """For each round, the time from the last arrival until all parties have passed."""
    each = PARTIES // PROCESSES
    async with store.group(f"meet-{mode}") as group:
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.fleet.nodes_party", group.address),
                *map(str, (number * each, each, PARTIES, rounds)),
                mode,
                stdout=asyncio.subprocess.PIPE,
                cwd=Path(__file__).parents[2],
            )
            for number in range(PROCESSES)
        ]
        outputs = [(await process.communicate())[0] for process in processes]
    parties = [times for output in outputs for times in json.loads(output)]
    return [
        max(passed for _, passed in meeting) - max(began for began, _ in meeting)
        for meeting in zip(*parties, strict=True)
    ]


async def _notifications(store: _Store, rounds: int) -> list[float]:
    """Measure the time from a put until another connection's wait for it ends."""
    times = []
    async with store.group("notify") as group, _attached(group) as other:
        for number in range(rounds):
            waiting = asyncio.create_task(other.kv.wait(f"key/{number}"))
            await asyncio.sleep(0)
            began_s = time.perf_counter()
            putting = asyncio.create_task(group.kv.put(f"key/{number}", b""))
            await waiting
            times.append(time.perf_counter() - began_s)
            await putting
    return times


async def _against_etcdctl(store: _Store, rounds: int) -> Figure:
    """Compare the time from a put until a wait ends with the time until `etcdctl watch` has printed the same change."""
    async with store.group("watch") as group, _attached(group) as other:
        host = group.address.partition("://")[2].partition("/")[0]
        process = await asyncio.create_subprocess_exec(
            *("etcdctl", "--endpoints", f"http://{host}", "watch", "--prefix", "/"),
            env={**os.environ, "ETCDCTL_API": "3"},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            ours, raw = await _side_by_side(group, other, process.stdout, rounds)
        finally:
            process.kill()
            await process.wait()
    ratio = statistics.median(mine / floor for mine, floor in zip(ours, raw, strict=True))
    return Figure(
        name=f"etcd: put to notification, against etcdctl watch, n={rounds}",
        measured=f"{statistics.median(ours) * 1e3:.1f} ms",
        floor=f"{statistics.median(raw) * 1e3:.1f} ms",
        ratio=f"{ratio:.2f} (median of the pairs)",
        bound="<= 1.1",
        met=ratio <= 1.1,
    )


async def _side_by_side(
    group: NodeGroup, other: NodeGroup, printed: asyncio.StreamReader | None, rounds: int
) -> tuple[list[float], list[float]]:
    assert printed is not None
    while b"begin" not in await _put_until_printed(group, printed):
        pass
    ours, raw = [], []

    async def until_notified(key: str) -> float:
        await other.kv.wait(key)
        return time.perf_counter()

    async def until_printed(key: str) -> float:
        while key.encode() not in await printed.readline():
            pass
        return time.perf_counter()

    for number in range(rounds):
        key = f"key/{number}."
        waits = [asyncio.create_task(wait(key)) for wait in (until_notified, until_printed)]
        await asyncio.sleep(0)
        began_s = time.perf_counter()
        await group.kv.put(key, b"value")
        notified_s, printed_s = await asyncio.gather(*waits)
        ours.append(notified_s - began_s)
        raw.append(printed_s - began_s)
    return ours, raw


async def _put_until_printed(group: NodeGroup, printed: asyncio.StreamReader) -> bytes:
    """Put a key, again each time that nothing is printed: the watch has not begun yet."""
    await group.kv.put("begin", b"")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            return await printed.readline()
    return b""


async def _vanish(store: _Store) -> float:
    async with store.group("vanish") as group, _attached(group) as other:
        node, waiting = await other.join("vanishing", ttl_s=5), await group.join("waiting")
        assert node._keeper is not None
        await node._keeper.is_alive()
        await node._keeper.aclose()
        began_s = time.perf_counter()
        with contextlib.suppress(Poisoned):
            await waiting.barrier("x", 2)
        return time.perf_counter() - began_s


async def _end(store: _Store) -> float:
    async with store.group("end") as group:
        await asyncio.gather(*(group.kv.put(f"key/{number}", b"value") for number in range(MANY)))
        began_s = time.perf_counter()
        await group.aclose()
        return time.perf_counter() - began_s


async def _many(store: _Store, kind: str, clients: int) -> Figure:
    """Measure the processor time of connections in this process, and of the store if it is the agent's.

    The floor is decoding each change once for each connection, and storing it in a dictionary.
    """
    per_operation_s = []
    async with store.group(f"many-{clients}") as group, contextlib.AsyncExitStack() as stack:
        groups = [await stack.enter_async_context(_attached(group)) for _ in range(clients)]
        nodes = await asyncio.gather(*(groups[number % clients].join(f"n{number}", ttl_s=60) for number in range(MANY)))
        for _ in range(ROUNDS_OF_MANY):
            began_s = time.process_time() + await store.processor_time_s()
            await asyncio.gather(*(node.group.kv.put(node.name, b"here") for node in nodes))
            await asyncio.gather(*(node.barrier("all", MANY) for node in nodes))
            ended_s = time.process_time() + await store.processor_time_s()
            per_operation_s.append((ended_s - began_s) / (2 * MANY))
    ours_ms, floor_ms = statistics.median(per_operation_s) * 1e3, _decoded_and_stored_s(clients) * 1e3
    has_bound = kind == "embedded" and clients == 1
    return Figure(
        name=f"{kind}: 1,000 nodes of {clients} process{'es' * (clients > 1)}, a put and a barrier each: "
        "processor time per operation",
        measured=f"{ours_ms:.3f} ms, n={ROUNDS_OF_MANY}",
        floor=f"{floor_ms:.3f} ms",
        ratio=f"{ours_ms / floor_ms:.0f}",
        bound=f"<= {MANY_BOUND_MS} ms" if has_bound else "",
        met=ours_ms <= MANY_BOUND_MS if has_bound else None,
    )


def _decoded_and_stored_s(clients: int) -> float:
    """Return the processor time for each of 1,000 puts and barriers: a put is one change, a barrier two."""
    entry = Entry(b"here", 1, 1)
    changes = (*((f"all/kv/n{number}", entry) for number in range(MANY)),)
    arrivals = (*((f"all/barriers/all/at/1/n{number}", entry) for number in range(MANY)),)
    frames = [
        msgspec.msgpack.encode([Notice((Change(key, number, value),)) for number, (key, value) in enumerate(part)])
        for part in (changes, arrivals, [(key, None) for key, _ in arrivals])
    ]
    decoder = msgspec.msgpack.Decoder(list[Answer | Notice])
    began_s = time.process_time()
    for _ in range(clients):
        entries: dict[str, Entry | None] = {}
        for frame in frames:
            for notice in decoder.decode(frame):
                assert isinstance(notice, Notice)
                for change in notice.changes:
                    entries[change.key] = change.entry
    return (time.process_time() - began_s) / (2 * MANY)


@contextlib.asynccontextmanager
async def _attached(group: NodeGroup) -> AsyncIterator[NodeGroup]:
    name, address = group_and_store(group.address)
    async with (
        contextlib.aclosing(await connect_store(address)) as backend,
        await NodeGroup.attach(backend, name) as other,
    ):
        yield other
