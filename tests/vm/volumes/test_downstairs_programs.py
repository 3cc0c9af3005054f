"""Volumes whose downstairs are programs with the command line of ``crucible-downstairs``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_asyncio
from crucible_downstairs import write_crucible_downstairs
from volume_checks import (
    ACTIVE,
    DRIVER,
    MICRO,
    WRITE,
    all_active,
    begin_to_write,
    end_of_writing,
    replicas,
    wait_for_status,
    writes_more,
)

from pytest_propolis import (
    AgentError,
    CapabilityMissing,
    ConfigError,
    CrucibleDisk,
    CrucibleDiskFactory,
    FatDisk,
    InstanceState,
    VmFactory,
)
from pytest_propolis.propolis_api import ReplaceResult


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return write_crucible_downstairs(tmp_path)


@pytest_asyncio.fixture
async def disk(crucible_disk_factory: CrucibleDiskFactory, program: Path) -> CrucibleDisk:
    return await crucible_disk_factory(size_mib=64, downstairs=program)


async def test_a_guest_writes_while_its_downstairs_die_hang_and_are_replaced(
    disk: CrucibleDisk, vm_factory: VmFactory
) -> None:
    vm = await vm_factory.start("writer", disks=(disk,), **MICRO)
    await begin_to_write(vm)
    await disk.kill(0)
    await wait_for_status(disk, lambda status: status.targets[0].state != ACTIVE)
    await disk.restart(0)
    await wait_for_status(disk, all_active)
    await disk.pause(1)
    await wait_for_status(disk, lambda status: status.targets[1].state != ACTIVE)
    await writes_more(vm)
    await disk.resume(1)
    await wait_for_status(disk, all_active)
    await disk.disconnect(1)
    await writes_more(vm)
    await wait_for_status(disk, all_active)
    assert await disk.replace_downstairs(2) is ReplaceResult.STARTED
    await wait_for_status(disk, all_active)
    await disk.corrupt(0, 0, length=2 << 20)
    await writes_more(vm, 5)
    await wait_for_status(disk, all_active)
    written = await end_of_writing(vm)
    await wait_for_status(disk, all_active)
    await vm.stop()
    assert await replicas(disk) == [written] * 3


async def test_a_corrected_request_unblocks_a_start(disk: CrucibleDisk, vm_factory: VmFactory) -> None:
    disk.enable_vcr_black_hole()
    vm = await vm_factory.create("vm", disks=(disk,), **MICRO, boot="cold")
    await vm.launch()
    await vm.wait_for_state(InstanceState.STARTING)
    disk.disable_vcr_black_hole()
    disk.set_generation(2)
    assert await disk.replace_vcr() is ReplaceResult.STARTED
    await vm.wait_for_state(InstanceState.RUNNING)


async def test_a_start_outlasts_downstairs_that_answer_too_late(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, tmp_path: Path
) -> None:
    program = write_crucible_downstairs(tmp_path, unanswered=1)
    disk = await crucible_disk_factory(size_mib=64, downstairs=program)
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    written = (await vm.run(WRITE)).split()[0]
    await vm.stop()
    assert await replicas(disk) == [written] * 3


async def test_a_server_program_uses_them(disk: CrucibleDisk, vm_factory: VmFactory) -> None:
    vm = await vm_factory.start("vm", disks=(disk,), server="propolis-server-qemu", **MICRO)
    written = (await vm.run(WRITE)).split()[0]
    await vm.stop()
    assert await replicas(disk) == [written] * 3


async def test_first_contents_are_imported(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, program: Path
) -> None:
    fat = FatDisk(files={"hello.txt": b"hello"})
    disk = await crucible_disk_factory(size_mib=64, block_size=512, fat=fat, downstairs=program)
    assert disk.vcr()["sub_volumes"][0]["opts"]["key"] is None  # what is imported is not encrypted
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    await vm.run(f"{DRIVER}; modprobe vfat; mkdir -p /mnt")
    assert await vm.run("mount -t vfat -o ro /dev/vda /mnt && cat /mnt/hello.txt") == "hello"


async def test_an_image_is_the_read_only_parent_in_the_request(
    crucible_disk_factory: CrucibleDiskFactory, program: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(1 << 20))
    disk = await crucible_disk_factory(size_mib=64, image=image, downstairs=program)
    assert disk.vcr()["read_only_parent"]["path"] == str(image)


async def test_a_region_that_does_not_lie_over_its_parent_is_no_volume_of_the_engine(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, program: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"contents".ljust(1 << 20, b"\0"))
    disk = await crucible_disk_factory(size_mib=64, image=image, downstairs=program)
    vm = await vm_factory.create("vm", disks=(disk,), **MICRO, boot="cold")
    await vm.launch()
    await vm.wait_for_state(InstanceState.FAILED)
    failure = (await vm.extended_info()).failure
    assert failure is not None
    assert f"does not lie over the read-only parent {image}" in failure


async def test_nothing_is_left_of_them(crucible_disk_factory: CrucibleDiskFactory, program: Path) -> None:
    disk = await crucible_disk_factory(size_mib=64, downstairs=program)
    facts = (await disk.facts()).downstairs
    assert [item.state for item in facts] == ["running"] * 3
    await crucible_disk_factory.aclose()
    assert not any(Path(item.path).exists() for item in facts)
    for item in facts:
        assert item.pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(item.pid, 0)


async def test_a_file_that_is_no_program_is_refused(crucible_disk_factory: CrucibleDiskFactory, program: Path) -> None:
    program.chmod(0o600)
    with pytest.raises(ConfigError, match=r"downstairs program of crucible disk .* is not a program") as caught:
        await crucible_disk_factory(size_mib=64, downstairs=program)
    assert "give the path of a crucible-downstairs, or the name of an artifact" in str(caught.value)


async def test_a_program_that_makes_no_region_is_named_with_its_output(
    crucible_disk_factory: CrucibleDiskFactory, tmp_path: Path
) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho no space on the moon >&2\nexit 3\n")
    program.chmod(0o700)
    with pytest.raises(AgentError, match="broken create failed: no space on the moon"):
        await crucible_disk_factory(size_mib=64, downstairs=program)


async def test_a_program_that_ends_at_once_is_named_with_its_output(
    crucible_disk_factory: CrucibleDiskFactory, tmp_path: Path
) -> None:
    program = tmp_path / "broken"
    program.write_text('#!/bin/sh\n[ "$1" = create ] && exit\necho the port is cursed\nexit 3\n')
    program.chmod(0o700)
    with pytest.raises(AgentError, match="broken ended with status 3: the port is cursed"):
        await crucible_disk_factory(size_mib=64, downstairs=program)


async def test_a_server_of_crucibles_protocol_is_not_given_this_projects_downstairs(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, tmp_path: Path, disk: CrucibleDisk
) -> None:
    server = tmp_path / "propolis-server"
    server.write_text("#!/bin/sh\necho usage: run BOOTROM_PATH PROPOLIS_ADDR\n")
    server.chmod(0o700)
    own = await crucible_disk_factory("own", size_mib=64)
    with pytest.raises(CapabilityMissing, match="those of crucible disk 'own' are this project's") as caught:
        await vm_factory.create("vm", disks=(own,), server=server, **MICRO)
    assert "--propolis-crucible-downstairs" in str(caught.value)
    with pytest.raises(CapabilityMissing, match="cannot boot a kernel"):  # which comes after that of disks
        await vm_factory.create("vm", disks=(disk,), server=server, **MICRO)


async def test_what_a_program_cannot_do_is_said(disk: CrucibleDisk) -> None:
    with pytest.raises(CapabilityMissing, match="cannot be slowed down"):
        await disk.slow(0, delay_ms=5)
