"""Network cards and their links."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_propolis.engine.qemu.devices.network import mac_address
from pytest_propolis.errors import ApiError, ConfigError
from pytest_propolis.propolis_api import VirtioNetworkBackend, VirtioNetworkBackendComponent, VirtioNic
from pytest_propolis.vm.config import Nic
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

UP = "modprobe virtio_net; until ip link set eth0 up 2>&-; do usleep 50000; done"


async def start(vm_factory: VmFactory, name: str, link: str) -> TestVm:
    vm = await vm_factory.start(name, guest="micro", cpus=1, memory_mib=128, nics=(Nic(link=link),))
    await vm.run(UP)
    return vm


def card(vm: TestVm) -> VirtioNic:
    component = vm.spec.components["nic"].component
    assert isinstance(component, VirtioNic)
    return component


@asynccontextmanager
async def greeter() -> AsyncIterator[int]:
    """A server on the host's loopback interface, which says hello; yields its port."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello from the host\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_guest_on_the_user_link_reaches_the_host_and_an_isolated_one_does_not(vm_factory: VmFactory) -> None:
    open_vm, isolated = await asyncio.gather(
        start(vm_factory, "open", "user"), start(vm_factory, "isolated", "user:isolated")
    )
    async with greeter() as port:
        for vm in (open_vm, isolated):
            # What DHCP would give it, but this guest's kernel has no packet sockets for that.
            await vm.run("ip addr add 10.0.2.15/24 dev eth0")
            await vm.run("ping -c 1 -W 10 10.0.2.2")
        ask = f"nc -w 10 10.0.2.2 {port} </dev/null"
        assert await open_vm.run(ask) == "hello from the host"
        assert (await isolated.run_result(ask)).status != 0


async def test_guests_that_name_one_multicast_group_are_on_one_ethernet(vm_factory: VmFactory) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    link = f"multicast:230.0.0.1:{port}"
    one, two = await asyncio.gather(start(vm_factory, "one", link), start(vm_factory, "two", link))
    await one.run("ip addr add 192.0.2.1/24 dev eth0")
    await two.run("ip addr add 192.0.2.2/24 dev eth0")
    assert "3 packets received" in await one.run("ping -c 3 -W 10 192.0.2.2")
    neighbour = await one.run("ip neigh show 192.0.2.2")
    assert mac_address(card(two).interface_id) in neighbour


async def test_a_switch_on_a_unix_socket_gets_the_frames_of_the_guest(vm_factory: VmFactory, tmp_path: Path) -> None:
    frames: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while True:
            frames.put_nowait(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))

    path = tmp_path / "switch"
    async with await asyncio.start_unix_server(receive, path):
        vm = await start(vm_factory, "vm", f"unix:{path}")
        await vm.run("ip addr add 192.0.2.1/24 dev eth0; ping -c 1 -W 1 192.0.2.9; true")
        mac = bytes.fromhex(mac_address(card(vm).interface_id).replace(":", ""))
        async with asyncio.timeout(30):
            while True:
                frame = await frames.get()
                # Who has 192.0.2.9?
                if frame[12:14] == b"\x08\x06" and frame[38:42] == bytes([192, 0, 2, 9]):
                    break
        await vm.aclose()  # from Python 3.12 on a server waits for its last connection
    assert frame[:12] == b"\xff" * 6 + mac


async def test_a_link_that_is_not_there_answers_400_and_says_which_there_are(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro", nics=(Nic(link="vnic0"),))
    with pytest.raises(ApiError, match="there is no link 'vnic0' on this host; a link is 'user'") as caught:
        await vm.ensure()
    assert caught.value.status == 400
    link = VirtioNetworkBackendComponent(VirtioNetworkBackend(vnic_name="user"))
    vm.spec = replace(vm.spec, components=vm.spec.components | {"nic-backend": link})
    await vm.ensure()


@pytest.mark.requires(server="engine")
async def test_a_port_of_this_machine_leads_to_one_of_the_guest(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start("vm", guest="micro", cpus=1, memory_mib=128, nics=(Nic(),))
    await vm.run("while true; do echo hello from the guest | nc -l -p 80; done >/dev/null 2>&1 &")
    port = await vm.forward(80)
    async with asyncio.timeout(60):
        while (greeting := await _greeting(port)) == b"":  # nc may not listen yet: QEMU has taken the connection then
            await asyncio.sleep(0)
    assert greeting == b"hello from the guest\n"
    assert await vm.forward(8080) != port
    with pytest.raises(ConfigError, match="0 is not a port"):
        await vm.forward(0)


async def _greeting(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_vm_without_a_card_of_that_kind_forwards_no_port(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create("vm", guest="micro")
    with pytest.raises(ConfigError, match="no network card on the user-mode network"):
        await vm.forward(22)
