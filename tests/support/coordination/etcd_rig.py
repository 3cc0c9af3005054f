"""Members of etcd on loopback addresses, which tests may kill, stop and start again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from pytest_propolis.coordination.backends.etcd.address import EtcdAddress
from pytest_propolis.coordination.backends.etcd.backend import EtcdBackend
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.propolis_api.connection.http import HttpClient

__all__ = ["EtcdCluster", "enable_users", "etcd_cluster", "require_etcd"]

START_TIMEOUT_S = 30.0


def require_etcd() -> None:
    """Skip the test where there is no etcd."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed (package etcd-server)")


class EtcdCluster:
    """
    :param scheme: ``https`` with the certificate of the flags.
    """

    def __init__(self, directory: Path, members: int, flags: Sequence[str] = (), *, scheme: str = "http") -> None:
        self._directory = directory
        self._scheme = scheme
        self._client_ports = _free_ports(members)
        self._peer_ports = _free_ports(members)
        # One member may elect itself at once; several need time for a round trip on a loaded machine.
        ticks = ("10", "100") if members == 1 else ("20", "200")
        self._flags = ("--heartbeat-interval", ticks[0], "--election-timeout", ticks[1], *flags)
        self._processes: list[asyncio.subprocess.Process | None] = [None] * members

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self._client_ports)

    @property
    def address(self) -> EtcdAddress:
        return EtcdAddress.parse(f"etcd://{self.hosts}")

    @property
    def urls(self) -> list[str]:
        return [f"{self._scheme}://127.0.0.1:{port}" for port in self._client_ports]

    async def start(self, number: int) -> None:
        name, peer = f"m{number}", f"http://127.0.0.1:{self._peer_ports[number]}"
        everyone = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(self._peer_ports))
        log = os.open(self._directory / f"{name}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            self._processes[number] = await asyncio.create_subprocess_exec(
                *("etcd", "--name", name, "--data-dir", str(self._directory / name), "--unsafe-no-fsync"),
                *("--listen-client-urls", self.urls[number], "--advertise-client-urls", self.urls[number]),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", everyone),
                *self._flags,
                stdout=log,
                stderr=log,
            )
        finally:
            os.close(log)

    def kill(self, number: int) -> None:
        """End a member at once."""
        self.send(number, signal.SIGKILL)

    def send(self, number: int, sent: signal.Signals) -> None:
        process = self._processes[number]
        assert process is not None
        process.send_signal(sent)

    async def wait_ended(self, number: int) -> None:
        process = self._processes[number]
        assert process is not None
        await process.wait()

    async def wait_healthy(self) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            for url in self.urls:
                while not await self._is_healthy(url):
                    await asyncio.sleep(0.02)

    async def leader(self) -> int:
        """Return the number of the leader."""
        for number, url in enumerate(self.urls):
            text = await self._get(url, "/metrics")
            if "etcd_server_is_leader 1" in text:
                return number
        raise AssertionError("no member leads")

    async def close(self) -> None:
        for process in self._processes:
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _is_healthy(self, url: str) -> bool:
        if self._scheme == "https":  # its certificate is the test's own
            reader_writer = asyncio.open_connection(*_host_and_port(url))
            with contextlib.suppress(OSError):
                _, writer = await reader_writer
                writer.close()
                return True
            return False
        return '"health":"true"' in await self._get(url, "/health")

    async def _get(self, url: str, path: str) -> str:
        with contextlib.suppress(OSError):
            async with HttpClient(Endpoint(base_url=url), headers={}) as client:
                return (await client.request("GET", path, timeout_s=5)).content.decode()
        return ""


async def enable_users(address: str, user: str, password: str, *, prefix: str) -> None:
    """Have a cluster refuse requests without a user; add one that may use the keys below a prefix."""
    store = EtcdBackend(EtcdAddress.parse(address))
    keys = {"key": f"/{prefix}/".encode(), "range_end": f"/{prefix}0".encode()}
    for path, body in (
        ("user/add", {"name": "root", "password": "secret"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": user, "password": password}),
        ("role/add", {"name": prefix}),
        ("role/grant", {"name": prefix, "perm": {"permType": 2, **keys}}),
        ("user/grant", {"user": user, "role": prefix}),
        ("enable", {}),
    ):
        await store._gateway.ask(f"auth/{path}", body, dict)
    await store.aclose()


@contextlib.asynccontextmanager
async def etcd_cluster(members: int = 1, *flags: str, scheme: str = "http") -> AsyncIterator[EtcdCluster]:
    """Start a cluster, with its data in memory if possible."""
    require_etcd()
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="etcd-", dir=parent) as directory:
        cluster = EtcdCluster(Path(directory), members, flags, scheme=scheme)
        try:
            for number in range(members):
                await cluster.start(number)
            await cluster.wait_healthy()
            yield cluster
        finally:
            await cluster.close()


def _host_and_port(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("/")[2].partition(":")
    return host, int(port)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()
