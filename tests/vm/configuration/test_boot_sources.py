"""Boot sources of a VM, and those that are refused before anything is created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_propolis import Artifact, ConfigError, DataDisk, GuestAdapter, GuestImage, LocalFile, VmConfig
from pytest_propolis.agent_api.boot_source import BootSource, DirectKernel, Firmware
from pytest_propolis.console.console import Console
from pytest_propolis.vm.disks.layout import boot_source_of, require_bootable
from pytest_propolis.vm.provisioning.guest_images import ReadyImage

FILE = Artifact("file", "file", None, LocalFile("/file"))
KERNEL = DirectKernel(kernel="/file", command_line="quiet")
DATA = DataDisk(name="data", size_mib=1)


class KernelGuest(GuestAdapter):
    name = "kernel-guest"
    image = GuestImage(kernel=FILE, disk=FILE, command_line="quiet")

    async def log_in(self, console: Console) -> None:
        raise AssertionError("it is never booted")


class DisklessGuest(KernelGuest):
    name = "diskless-guest"
    image = GuestImage(kernel=FILE, command_line="quiet")


class DiskGuest(KernelGuest):
    name = "disk-guest"
    image = GuestImage(disk=FILE)


class UefiGuest(DiskGuest):
    firmware = "uefi"


class BootableKernelGuest(KernelGuest):
    firmware = "uefi"


def boot_source(guest: GuestAdapter, **fields: Any) -> BootSource:
    config = VmConfig(**fields)
    require_bootable(config, guest)
    kernel = Path("/file") if guest.image.kernel else None
    return boot_source_of(config, guest, ReadyImage(kernel=kernel, initrd=None, disk=None))


@pytest.mark.parametrize(
    ("guest", "fields", "expected"),
    [
        (KernelGuest(), {}, KERNEL),
        (DiskGuest(), {}, Firmware()),
        (DiskGuest(), {"firmware": "uefi"}, Firmware(uefi=True)),
        (UefiGuest(), {}, Firmware(uefi=True)),
        (UefiGuest(), {"firmware": "bios"}, Firmware()),
        (KernelGuest(), {"firmware": "uefi"}, Firmware(uefi=True, kernel=KERNEL)),
        (DisklessGuest(), {"firmware": "uefi"}, Firmware(uefi=True, kernel=KERNEL)),
        (BootableKernelGuest(), {}, Firmware(uefi=True)),
        (BootableKernelGuest(), {"firmware": "none"}, KERNEL),
        (BootableKernelGuest(), {"boot_order": ("boot-disk",)}, Firmware(uefi=True)),
        (DisklessGuest(), {"firmware": "bios", "disks": (DATA,), "boot_order": ("data",)}, Firmware()),
        (KernelGuest(), {"firmware": "uefi", "disks": (DATA,), "boot_order": ("data",)}, Firmware(uefi=True)),
    ],
)
def test_a_guest_is_booted_by_what_it_has_and_what_was_asked_for(
    guest: GuestAdapter, fields: dict[str, Any], expected: BootSource
) -> None:
    assert boot_source(guest, **fields) == expected


@pytest.mark.parametrize(
    ("guest", "fields", "complaint"),
    [
        (DiskGuest(), {"firmware": "none"}, "the guest disk-guest has no kernel of its own"),
        (KernelGuest(), {"firmware": "bios"}, "the BIOS finds nothing to boot: kernel-guest has no boot loader"),
        (DisklessGuest(), {"firmware": "bios"}, "the BIOS finds nothing to boot: diskless-guest has no boot loader"),
        (KernelGuest(), {"firmware": "uefi", "boot_order": ("boot-disk",)}, "boot_order names no disk with a boot loa"),
        (
            DisklessGuest(),
            {"boot_order": ("boot-disk",)},
            "boot_order names 'boot-disk', and diskless-guest boots from",
        ),
        (
            DisklessGuest(),
            {"disk_interface": "nvme"},
            "disk_interface has no effect: diskless-guest boots from no disk",
        ),
        (UefiGuest(), {"kernel_arguments": "quiet"}, "kernel_arguments have no effect"),
    ],
)
def test_what_cannot_boot_is_a_config_error_with_a_remedy(
    guest: GuestAdapter, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        boot_source(guest, **fields)
    assert complaint in caught.value.message
    assert caught.value.hint
