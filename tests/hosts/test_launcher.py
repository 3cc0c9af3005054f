"""The start of an agent, and the length of the sockets' paths that its directory allows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pytest_propolis.agent_api.agent_process import LOG_NAME
from pytest_propolis.errors import HostError
from pytest_propolis.guests.registry import GuestRegistry
from pytest_propolis.hosts.launcher import LONGEST_SOCKET, SOCKET_PATH_LIMIT
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.run_directory import agent_directory, base_directory, run_token
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.settings import Settings
from pytest_propolis.storage.user_directories import default_artifact_dir
from pytest_propolis.vm.config import DataDisk, Nic
from pytest_propolis.vm.factory import VmFactory


class Runs:
    """Runs on this machine, each with a runtime directory of a chosen length."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._monkeypatch = monkeypatch
        self._settings = Settings(artifact_dir=default_artifact_dir(), standby=0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))  # the directories of agents are noted there

    @asynccontextmanager
    async def factory(self, *, excess_bytes: int) -> AsyncIterator[VmFactory]:
        """Open a factory on an agent whose longest socket exceeds the limit by so many bytes."""
        run = run_token(None)
        self._monkeypatch.setenv("XDG_RUNTIME_DIR", str(self._root))
        longest = agent_directory(run) / LONGEST_SOCKET
        runtime = self._root / ("x" * (SOCKET_PATH_LIMIT + excess_bytes - len(os.fsencode(longest)) - 1))
        runtime.mkdir()
        self._monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        host = LocalHost(self._settings, run_id=run)
        try:
            async with VmFactory.on(
                [host],
                settings=self._settings,
                guests=GuestRegistry(),
                group="test",
                log_dir=self._root / "logs",
                progress=lambda line: None,
                made=lambda vm: None,
                artifact=lambda name: None,
            ) as factory:
                yield factory
        finally:
            host.close()

    @property
    def sockets(self) -> set[str]:
        """The sockets of agents, without their directories."""
        return {path.name for path in self._root.rglob("*") if path.is_socket()}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as root:
        yield Runs(Path(root), monkeypatch)


async def test_an_agent_in_the_longest_directory_can_open_all_its_sockets(runs: Runs) -> None:
    async with runs.factory(excess_bytes=0) as factory:
        nic, disk = Nic(name="nic", network=factory.network("lan")), DataDisk(name="data", size_mib=1)
        vm = await factory.create("vm", guest="micro", cpus=1, memory_mib=128, nics=(nic,), disks=(disk,), display=True)
        await vm.launch()
        assert {"agent.sock", "vnc.sock"} < runs.sockets
        successor = await factory.successor(vm, copy_disks=True)
        await successor.migrate_from(vm)
        await successor.wait_for_state(InstanceState.RUNNING)


async def test_a_longer_directory_is_refused(runs: Runs) -> None:
    with pytest.raises(HostError, match="is too long a path for a socket: 107 bytes are the most") as refused:
        async with runs.factory(excess_bytes=1):
            pass
    assert refused.value.hint
    assert "XDG_RUNTIME_DIR" in refused.value.hint
    assert runs.sockets == set()


async def test_what_is_to_be_done_meanwhile_is_done_when_an_agent_has_been_started() -> None:
    done: list[bool] = []
    run = run_token(None)

    def note() -> None:
        done.append(any(base_directory().glob(f"{run}-*/{LOG_NAME}")))

    starting, connecting = (LocalHost(Settings(), run_id=run, meanwhile=note) for _ in range(2))
    try:
        for host in (starting, starting, connecting):
            await (await host.client()).aclose()
        assert done == [True]
    finally:
        connecting.close()
        starting.close()


async def test_an_agent_is_ended_where_something_fails_while_it_starts() -> None:
    run = run_token(None)
    host = LocalHost(Settings(), run_id=run, meanwhile=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await host.client()
    assert list(base_directory().glob(f"{run}*")) == []
