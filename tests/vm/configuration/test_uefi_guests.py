"""Guests under UEFI: their boot source, and their firmware's variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_propolis.agent_api.boot_source import Firmware
from pytest_propolis.engine.qemu.binary import find_firmware
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.skipif(find_firmware() is None, reason="there is no UEFI firmware (package ovmf)")

LIMIT_S = 240.0
VARIABLE = "-guid 11111111-2222-4333-8444-555555555555 kept"


async def in_uefi_shell(vm: TestVm) -> TestVm:
    """The same, once UEFI's own shell takes commands, since there is nothing else to boot."""
    await vm.launch()
    await vm.wait_for_serial_output("to skip", timeout_s=LIMIT_S)
    await vm.send_serial("\x1b")
    await vm.wait_for_serial_output("Shell> ", timeout_s=LIMIT_S)
    return vm


async def create(vm_factory: VmFactory, name: str) -> TestVm:
    disk = DataDisk(name="empty", size_mib=1)
    return await vm_factory.create(
        name, guest="micro", firmware="uefi", cpus=1, memory_mib=128, disks=(disk,), boot_order=("empty",)
    )


async def write_variable(vm: TestVm) -> None:
    await vm.send_serial(f"setvar {VARIABLE} -nv -bs =0x6B\r")
    await vm.wait_for_serial_output("Shell> ", timeout_s=LIMIT_S)


async def has_variable(vm: TestVm) -> bool:
    await vm.send_serial(f"setvar {VARIABLE}\r")
    found = await vm.wait_for_serial_output("Shell> ", timeout_s=LIMIT_S)
    return "6B" in found.before.split("kept", 1)[1]


@pytest.mark.requires(server="engine")
@pytest.mark.parametrize("guest", ["micro", pytest.param("alpine", marks=pytest.mark.slow)])
async def test_uefi_starts_the_kernel_of_a_guest_without_a_boot_loader(vm_factory: VmFactory, guest: str) -> None:
    vm = await vm_factory.start(guest=guest, firmware="uefi", kernel_arguments="propolis.test=1")
    assert "propolis.test=1" in await vm.run("[ -d /sys/firmware/efi ] && cat /proc/cmdline")


@pytest.mark.parametrize("rom", [Path("rom.fd"), "./rom.fd", "~/rom.fd"], ids=["path", "text", "home"])
async def test_the_path_of_a_boot_rom_means_what_it_means_in_the_test(
    vm_factory: VmFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rom: str | Path
) -> None:
    (tmp_path / "rom.fd").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    vm = await vm_factory.create(guest="micro", firmware="uefi", boot_rom=rom)
    assert isinstance(vm.boot_source, Firmware)
    assert vm.boot_source.boot_rom == str(tmp_path / "rom.fd")


async def test_variables_survive_a_stop_and_a_start(vm_factory: VmFactory) -> None:
    vm = await in_uefi_shell(await create(vm_factory, "vm"))
    assert not await has_variable(vm)
    await write_variable(vm)
    await vm.stop()
    assert await has_variable(await in_uefi_shell(vm))


@pytest.mark.requires(server="engine")  # a process has variables of its own
@pytest.mark.slow
async def test_a_successor_that_boots_has_the_variables_and_one_that_does_not_follow_has_not(
    vm_factory: VmFactory,
) -> None:
    vm = await in_uefi_shell(await create(vm_factory, "vm"))
    await write_variable(vm)
    migrated = await vm_factory.successor(vm)
    await migrated.migrate_from(vm)
    await migrated.wait_for_state(InstanceState.RUNNING)
    await migrated.stop()
    assert await has_variable(await in_uefi_shell(await vm_factory.successor(migrated)))
    assert not await has_variable(await in_uefi_shell(await create(vm_factory, "other")))
