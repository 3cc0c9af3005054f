"""The agent's resource registry: each resource has one owner, and is removed when its owner leaves."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import pytest
from agent_rig import AgentRig
from migration_rig import RemoteNode, migrate, serving, spec_of

from pytest_propolis.agent import budget
from pytest_propolis.agent.servers.server_factory import address_of
from pytest_propolis.agent_api.agent_process import CLIENT_HEADER, SOCKET_NAME
from pytest_propolis.agent_api.disks import CreateDisk, ForkImage
from pytest_propolis.agent_api.messages import Keep, ResourceIds
from pytest_propolis.agent_api.volumes import CreateVolume
from pytest_propolis.errors import ConfigError, HostBusy, ResourceExhausted
from pytest_propolis.ledger.entry import Owner
from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.ledger.writer import LedgerWriter
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.propolis_api.client import PropolisClient
from pytest_propolis.propolis_api.connection.endpoint import Endpoint

pytestmark = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")

DEADLINE_S = 60.0


async def test_an_agent_that_leaves_waits_for_what_is_being_made(rig: AgentRig) -> None:
    gate = rig.hold_images()
    transport = httpx.ASGITransport(app=rig.app.asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
        body = msgspec.json.encode(CreateDisk(size_bytes=1 << 20))
        creation = asyncio.create_task(client.post("/disks", content=body, headers={CLIENT_HEADER: "client"}))
        await asyncio.to_thread((rig.root / "started").read_text)
        closing = asyncio.create_task(rig.app.close())
        assert not (await asyncio.wait([closing], timeout=0.2))[0]
        await asyncio.to_thread(gate.write_text, "go\n")
        async with asyncio.timeout(DEADLINE_S):
            await closing
        assert (await creation).status_code == 422
    assert rig.ledger.entries() == []
    assert rig.disks == []


async def test_of_two_vms_of_one_name_one_is_made(rig: AgentRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "HOLD_S", DEADLINE_S)
    rig.registry._budget = budget.MemoryBudget(total=lambda: 1600, available=lambda: 1600)
    await rig.registry.admit("crowd", pid=0)
    other = await rig.registry.create_vm("crowd", rig.vm("other", memory_mib=1400))
    both = asyncio.gather(
        *(rig.registry.create_vm("crowd", rig.vm(memory_mib=200)) for _ in range(2)), return_exceptions=True
    )
    await asyncio.sleep(0)
    await rig.registry.remove_vm("crowd", other.id)
    async with asyncio.timeout(DEADLINE_S):
        kinds = [type(result).__name__ for result in await both]
    assert sorted(kinds) == ["ConfigError", "OwnedVm"]
    with pytest.raises(ConfigError, match="there is a VM named 'vm'"):
        await rig.registry.create_vm("crowd", rig.vm())
    await rig.registry.drop_lifeline("crowd")


@contextlib.asynccontextmanager
async def small_host() -> AsyncIterator[Callable[[str, int], Awaitable[RemoteNode]]]:
    """Makes VMs on a host that can give 1,500 MiB of memory."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path must be short
        rig = AgentRig(Path(short))
        rig.registry._budget = budget.MemoryBudget(total=lambda: 1600, available=lambda: 1600)
        await rig.registry.admit("client", pid=os.getpid())
        nodes: list[RemoteNode] = []

        async def make(name: str, memory_mib: int) -> RemoteNode:
            vm = await rig.registry.create_vm("client", rig.vm(name, memory_mib=memory_mib))
            client = PropolisClient(Endpoint.at(address_of(rig.config, vm.id)), vm=name)
            nodes.append(RemoteNode(client=client))
            return nodes[-1]

        async with serving(rig.app.asgi, rig.directory / SOCKET_NAME):
            yield make
            for node in nodes:
                await node.client.aclose()
            await rig.app.close()
        assert rig.ledger.entries() == []
        rig.ledger.close()


async def test_a_server_whose_guest_has_migrated_away_needs_no_memory() -> None:
    async with small_host() as make:
        first = before = await make("vm0", 700)
        await first.run(spec_of())
        for number in range(1, 4):  # two at most have memory at any time
            node = await make(f"vm{number}", 700)
            await migrate(before, node)
            before = node
        assert await first.state() is InstanceState.DESTROYED


async def test_a_vm_that_has_ended_needs_no_memory_until_it_is_started_again() -> None:
    async with small_host() as make:
        first = await make("first", 1400)
        await first.run(spec_of())
        await first.stop()
        second = await make("second", 1400)
        await second.run(spec_of())
        await second.stop()
        await first.run(spec_of())
        with pytest.raises(HostBusy, match="1400 of 1500 MiB are reserved for 1 VMs"):
            await make("third", 1400)


async def test_a_client_that_comes_back_while_it_is_released_keeps_what_it_makes_then(rig: AgentRig) -> None:
    await rig.registry.create_vm("client", rig.vm("before"))
    release = asyncio.create_task(rig.registry.drop_lifeline("client"))
    await asyncio.sleep(0)
    await rig.registry.admit("client", pid=0)
    after = await rig.registry.create_vm("client", rig.vm("after"))
    await release
    assert [vm.name for vm in rig.registry.list_vms()] == ["after"]
    assert rig.registry.find_vm(after.id) is after


async def test_a_client_with_two_lifelines_keeps_its_own_until_the_last_ends(rig: AgentRig) -> None:
    await rig.registry.admit("client", pid=0)
    vm = await rig.registry.create_vm("client", rig.vm())
    await rig.registry.drop_lifeline("client")
    assert rig.registry.find_vm(vm.id) is vm
    await rig.registry.drop_lifeline("client")
    assert rig.registry.is_empty


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_ledger_is_named_and_nothing_is_made(rig: AgentRig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", no_space)
        with pytest.raises(ResourceExhausted, match=r"ledger\.jsonl cannot be written: No space left"):
            await rig.registry.create_vm("client", rig.vm())
    assert rig.registry.list_vms() == []
    assert list((rig.directory / "vms").glob("*")) == []


async def test_what_cannot_be_kept_remains_its_clients(rig: AgentRig, monkeypatch: pytest.MonkeyPatch) -> None:
    image = rig.root / "store" / "image"
    image.parent.mkdir()
    image.write_bytes(bytes(1 << 20))
    disks = rig.registry.disks
    fork = await disks.fork_image("client", ForkImage(image=str(image), image_format="raw"))
    volume = await disks.create_volume("client", CreateVolume(name="volume", group="test", size_bytes=1 << 20))
    for resources in (ResourceIds(disks=(fork.id,)), ResourceIds(volumes=(volume.id,))):
        with monkeypatch.context() as full:
            full.setattr(os, "pwrite", no_space)
            with pytest.raises(ResourceExhausted, match=r"ledger\.jsonl cannot be written: No space left"):
                rig.registry.keep("client", Keep(resources=resources, reason="test", ttl_s=60))
    assert disks.find_fork("client", fork.id) is fork
    assert disks.find_volume("client", volume.id).id == volume.id
    assert rig.registry.list_kept() == []


async def test_of_a_fork_whose_owner_cannot_be_written_down_nothing_is_left(
    rig: AgentRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, directory = await rig.template()
    rig.registry._budget = budget.MemoryBudget(total=lambda: 1600, available=lambda: 1600)
    request = rig.vm(memory_mib=1400)
    transfer, started = LedgerWriter.transfer_ownership, list[ProcessIdentity]()

    with monkeypatch.context() as full:

        def fill_up(writer: LedgerWriter, owner: Owner) -> None:
            processes = [entry.what["pid"] for entry in rig.ledger.entries() if entry.kind == "process"]
            started.extend(ProcessIdentity.of(int(pid)) for pid in processes)
            full.setattr(os, "pwrite", no_space)
            transfer(writer, owner)

        full.setattr(LedgerWriter, "transfer_ownership", fill_up)
        with pytest.raises(ResourceExhausted, match=r"ledger\.jsonl cannot be written: No space left"):
            await rig.registry.fork_vm("client", request, template=template, template_directory=directory)
    (qemu,) = started
    assert not qemu.is_alive()
    assert list((rig.directory / "vms").glob("*")) == []
    await rig.registry.fork_vm("client", request, template=template, template_directory=directory)
