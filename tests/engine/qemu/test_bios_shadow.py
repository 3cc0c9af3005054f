"""A machine that is reset after the BIOS has enabled its shadow memory and before it has filled it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from boot_sectors import boot_disk
from engine_rig import DEADLINE_S

from pytest_propolis.engine.migration.failure import MigrationFailed
from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.guest_events import GuestEvent
from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.templates.state_stream import cancel_transfer, save_state
from pytest_propolis.operating_system.child import NoJournal

SHADOW_ON = {"pc": ("o /w 0xcf8 0x80000058", "o /b 0xcfd 0x30"), "q35": ("o /w 0xcf8 0x80000090", "o /b 0xcfc 0x30")}
"""What SeaBIOS does first, as commands of QEMU's monitor: RAM from 0xf0000 to 0xfffff in place of the ROM."""


@contextlib.asynccontextmanager
async def machine(directory: Path, kind: str) -> AsyncIterator[tuple[Machine, list[GuestEvent]]]:
    """Return a stopped machine whose guest reports its boots, and the guest's output."""
    disk = directory / "disk"
    disk.write_bytes(boot_disk("<booted>"))
    qemu = await find_qemu(None)
    events: list[GuestEvent] = []
    made = Machine(
        program=qemu.system,
        arguments=[
            *qemu.arguments,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S"),
            *("-accel", "tcg,thread=single", "-machine", kind, "-m", "64M", "-device", "isa-serial,chardev=com1"),
            *("-drive", f"if=virtio,format=raw,readonly=on,file={disk}"),
        ],
        log_path=directory / "qemu.log",
        journal=NoJournal(),
        on_event=events.append,
    )
    try:
        await made.start()
        yield made, events
    finally:
        await made.close()


async def boots(machine: Machine, times: int) -> None:
    """Wait until the guest has said so often that it was booted."""
    history = machine.serial.history
    async with asyncio.timeout(DEADLINE_S):
        while history.read(0, 1 << 16).count(b"<booted>") < times:
            await history.wait_beyond(history.end)


@pytest.mark.parametrize("kind", SHADOW_ON)
async def test_a_reset_while_the_bios_has_an_empty_shadow_boots_all_the_same(tmp_path: Path, kind: str) -> None:
    async with machine(tmp_path, kind) as (vm, events):
        for command in SHADOW_ON[kind]:
            await vm.execute("human-monitor-command", **{"command-line": command})
        await vm.reset()
        await vm.resume()
        await boots(vm, 1)
        assert events == []


@pytest.mark.parametrize("kind", SHADOW_ON)
async def test_firmware_adds_no_reset_of_its_own(tmp_path: Path, kind: str) -> None:
    async with machine(tmp_path, kind) as (vm, events):
        with vm.events("RESET") as resets:
            await vm.resume()
            await boots(vm, 1)
            await vm.reset()
            await boots(vm, 2)
            seen = resets.history
        assert [dict(event)["data"] for event in seen] == [{"guest": False, "reason": "host-qmp-system-reset"}]
        assert events == []


@pytest.mark.parametrize("kind", SHADOW_ON)
async def test_a_reset_of_the_guest_is_one_reset(tmp_path: Path, kind: str) -> None:
    async with machine(tmp_path, kind) as (vm, events):
        await vm.resume()
        await boots(vm, 1)
        # The guest asks for it at the port of the chipset: a write from outside is the same to QEMU.
        await vm.execute("human-monitor-command", **{"command-line": "o /b 0xcf9 0x06"})
        await boots(vm, 2)
        assert events == [GuestEvent.RESET]


async def test_a_guest_stays_paused_through_a_reset(tmp_path: Path) -> None:
    async with machine(tmp_path, "pc") as (vm, _):
        await vm.resume()
        await boots(vm, 1)
        await vm.pause()
        await vm.reset()
        assert (await vm.execute("query-status"))["status"] == "prelaunch"
        await vm.resume()
        await boots(vm, 2)


async def test_a_reset_while_a_live_migration_switches_over_is_one_all_the_same(tmp_path: Path) -> None:
    """QEMU does not let the machine run then."""
    async with machine(tmp_path, "pc") as (vm, events):
        await vm.resume()
        await boots(vm, 1)
        with (tmp_path / "state").open("wb") as state, pytest.raises(MigrationFailed):
            await save_state(vm, state.fileno(), memory_in_file=False, on_switchover=_refuse)
        await vm.reset()
        await cancel_transfer(vm)
        await vm.resume()
        await boots(vm, 2)
        assert events == []


async def _refuse() -> None:
    raise MigrationFailed("not now")
