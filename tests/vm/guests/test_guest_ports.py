"""Guest ports through resets, reboots, stops and migrations of a VM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pytest_propolis import CapabilityMissing, ConfigError, ConsoleClosed, FileTransferError, Progress, VmConfig
from pytest_propolis.agent_api.guest_ports import STREAM_PORTS
from pytest_propolis.console.channels.channel import Garbled
from pytest_propolis.console.channels.guest_ports import GuestPorts, PortStream
from pytest_propolis.console.channels.over_port import CHUNK_BYTES, PortChannel
from pytest_propolis.propolis_api.connection.byte_stream import ByteStream, StreamEnded
from pytest_propolis.vm.config import VmConfigFields
from pytest_propolis.vm.disks.kinds import DataDisk
from pytest_propolis.vm.factory import VmFactory

pytestmark = pytest.mark.requires(server="engine")

CONTENT = os.urandom(20_000_000)

SMALL: VmConfigFields = {"guest": "micro", "cpus": 1, "memory_mib": 256, "channel": "port"}


@pytest.mark.slow
async def test_ports_work_in_forks_and_after_resets_reboots_and_a_new_start(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    assert vm.boot_kind == "warm"
    await vm.put(b"fork", "/tmp/file")
    assert await vm.get_bytes("/tmp/file") == b"fork"
    await vm.reset()
    await vm.wait_to_boot()
    await vm.put(b"reset", "/tmp/file")
    await vm.graceful_reboot()
    with pytest.raises(FileTransferError, match="No such file"):
        await vm.get_bytes("/tmp/file")
    await vm.stop()
    await vm.boot()
    await vm.put(b"new", "/tmp/file")
    assert await vm.get_bytes("/tmp/file") == b"new"


@pytest.mark.parametrize("way", ["put", "get"])
async def test_a_port_that_is_closed_in_the_middle_of_a_transfer_costs_a_second_attempt(
    vm_factory: VmFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    vm = await vm_factory.start(**SMALL)
    await vm.put(CONTENT, "/tmp/source")
    (tmp_path / "source").write_bytes(CONTENT)
    before = set((await vm.run("ls -A /tmp")).split())
    connect, opened = GuestPorts.connect, list[ByteStream]()

    async def connect_and_keep(ports: GuestPorts, number: int) -> ByteStream:
        connection = await connect(ports, number)
        if number in STREAM_PORTS:
            opened.append(connection)
        return connection

    def close_once(progress: Progress) -> None:
        if len(opened) == 1 and progress.done_bytes:
            opened[0].abort()

    monkeypatch.setattr(GuestPorts, "connect", connect_and_keep)
    if way == "put":
        await vm.put(tmp_path / "source", "/tmp/target", on_progress=close_once)
        await vm.run("cmp /tmp/source /tmp/target")
    else:
        await vm.get("/tmp/source", tmp_path / "target", on_progress=close_once)
        assert (tmp_path / "target").read_bytes() == CONTENT
    assert len(opened) > 1
    assert set((await vm.run("ls -A /tmp")).split()) <= before | {"target"}


async def test_what_was_sent_and_not_read_when_the_guest_migrates_is_sent_again(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    channel = PortChannel(vm.shell, vm._ports, vm=vm.name)
    sent = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield bytes(CHUNK_BYTES)  # the guest reads these at once
        yield bytes(1_200_000)  # more than the buffers of its driver hold, and less than those of the port
        sent.set()

    upload = asyncio.create_task(channel.upload("sleep 1000", source(), note="an upload"))
    await sent.wait()
    heir = await vm_factory.successor(vm)
    await heir.migrate_from(vm)
    with pytest.raises(Garbled):
        async with asyncio.timeout(30):
            await upload
    assert await heir.run("echo on") == "on"


async def test_the_end_of_a_vm_ends_the_wait_for_a_stream_whose_script_has_succeeded(
    vm_factory: VmFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await vm_factory.start(**SMALL)
    channel = PortChannel(vm.shell, vm._ports, vm=vm.name)
    monkeypatch.setattr("pytest_propolis.console.channels.guest_ports.MOVE_TIMEOUT_S", 3600.0)
    waits = asyncio.Event()

    async def lose_what_comes(stream: PortStream) -> bytes:
        waits.set()
        await asyncio.wait([stream._connection.ended])
        raise StreamEnded

    monkeypatch.setattr(PortStream, "receive", lose_what_comes)
    download = asyncio.create_task(channel.download("echo content", lambda data: None, note="a download"))
    await waits.wait()
    await vm.run("true")  # behind the script
    await vm.stop()
    with pytest.raises(ConsoleClosed):
        async with asyncio.timeout(60):
            await download


async def test_a_machine_without_ports_has_no_such_device(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, channel="console")
    assert await vm.run("cat /sys/bus/pci/devices/*/device | grep -c -e 0x1003 -e 0x1043", check=False) == "0"
    vm.has_ports = True
    with pytest.raises(CapabilityMissing, match="no guest port"):
        await vm.put(b"content", "/tmp/file")


def test_the_slot_of_the_ports_is_taken() -> None:
    with pytest.raises(ConfigError, match="the guest ports"):
        VmConfig(channel="port", disks=(DataDisk(name="data", size_mib=1, pci_slot=30),))
    VmConfig(disks=(DataDisk(name="data", size_mib=1, pci_slot=30),))
