"""The display, for VMs that are to have one."""

from __future__ import annotations

import asyncio
import struct
import zlib
from pathlib import Path

import httpx
import pytest
from boot_sectors import bootable

from pytest_propolis.errors import ApiError, CapabilityMissing
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

# mov ax, 0x0013; int 0x10: 320 x 200 in 256 colours. mov ax, 0xa000; mov es, ax; xor di, di; mov cx, 64000; mov al, 4;
# rep stosb: all of it red. Then 'R' to COM1, and halt.
PAINT_IT_RED = bytes.fromhex("b81300cd10b800a08ec031ffb900fab004f3aabaf803b052eef4ebfd")


def first_pixel(png: bytes) -> tuple[int, int, int]:
    """Of an image with 8 bits per colour and no transparency."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (width > 0, height > 0, depth, colour) == (True, True, 8, 2)
    data = b""
    place = 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        if kind == b"IDAT":
            data += png[place + 8 : place + 8 + length]
        place += 12 + length
    red, green, blue = zlib.decompress(data)[1:4]  # the first pixel is the same under every filter
    return red, green, blue


def is_red(png: bytes) -> bool:
    red, green, blue = first_pixel(png)
    return red > 100 and (green, blue) == (0, 0)


async def booted(vm_factory: VmFactory, *, display: bool) -> TestVm:
    disk = DataDisk(name="red", contents=bootable(PAINT_IT_RED))
    vm = await vm_factory.create(
        guest="micro", firmware="bios", cpus=1, memory_mib=128, disks=(disk,), boot_order=("red",), display=display
    )
    await vm.launch()
    await vm.wait_for_serial_output("R")
    return vm


@pytest.mark.requires(server="engine")
async def test_a_screenshot_shows_what_the_guest_painted(vm_factory: VmFactory) -> None:
    vm = await booted(vm_factory, display=True)
    assert is_red(await vm.screenshot())


@pytest.mark.requires(server="engine")
async def test_the_display_can_be_watched_through_vnc_while_the_vm_is_there(
    vm_factory: VmFactory,
) -> None:
    vm = await booted(vm_factory, display=True)
    path = (await vm.extended_info()).display_socket
    assert path is not None
    assert Path(path).parent.stat().st_mode & 0o077 == 0
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.readexactly(12) == b"RFB 003.008\n"
    writer.close()
    await vm.stop()
    assert (await vm.extended_info()).display_socket is None
    with pytest.raises(ApiError) as caught:
        await vm.screenshot()
    assert caught.value.status == 424


@pytest.mark.requires(server="engine")
async def test_a_guest_that_migrates_takes_its_display_along(vm_factory: VmFactory) -> None:
    vm = await booted(vm_factory, display=True)
    successor = await vm_factory.successor(vm)
    await successor.migrate_from(vm)
    assert is_red(await successor.screenshot())


@pytest.mark.requires(server="engine")
async def test_a_vm_without_a_display_says_so(vm_factory: VmFactory) -> None:
    vm = await booted(vm_factory, display=False)
    assert (await vm.extended_info()).display_socket is None
    with pytest.raises(CapabilityMissing, match="it has no display") as caught:
        await vm.screenshot()
    assert caught.value.hint == "ask for one with VmConfig(display=True)"


@pytest.mark.requires(server="engine")
async def test_the_paths_of_a_vm_that_is_not_there_answer_404(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro")
    base_url, transport = "http://agent", httpx.AsyncHTTPTransport(uds=str(vm.endpoint.uds))
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
        for path in ("/vms/none", "/vms/none/screenshot"):
            response = await client.get(path)
            assert (response.status_code, response.json()["message"]) == (404, "no such VM")
