"""Instance specs as words of QEMU's command line."""

from __future__ import annotations

import itertools
import json
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from pytest_propolis.engine.boot_source import BootSource, DirectKernel, Firmware
from pytest_propolis.engine.command_line import SpecRefused, SpecUnsupported, qemu_arguments
from pytest_propolis.propolis_api import (
    BlobStorageBackend,
    BlobStorageBackendComponent,
    BootOrderEntry,
    BootSettings,
    BootSettingsComponent,
    Component,
    Cpuid,
    CpuidVendor,
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    FileStorageBackend,
    FileStorageBackendComponent,
    HyperVFeatures,
    HyperVInterface,
    I440Fx,
    InstanceSpec,
    PciPath,
    PciPciBridge,
    PciPciBridgeComponent,
    QemuPvpanic,
    QemuPvpanicComponent,
    SmbiosType1Input,
    VirtioDisk,
    VirtioDiskComponent,
    VirtioNetworkBackend,
    VirtioNetworkBackendComponent,
)
from pytest_propolis.vm.spec import AttachedDisk, instance_properties, instance_spec

ID = UUID("11111111-2222-4333-8444-555555555555")
KERNEL = DirectKernel(kernel="/k", initrd="/i", command_line="console=ttyS0 quiet")
SERIAL = [
    *("-device", "isa-serial,index=0,chardev=com1"),
    *("-chardev", "null,id=com2", "-device", "isa-serial,index=1,chardev=com2"),
    *("-chardev", "null,id=com3", "-device", "isa-serial,index=2,chardev=com3"),
    *("-chardev", "null,id=com4", "-device", "isa-serial,index=3,chardev=com4"),
]


def spec_of(*disks: AttachedDisk, order: tuple[str, ...] = (), **components: Component) -> InstanceSpec:
    spec = instance_spec(cpus=2, memory_mib=512, disks=disks, boot_order=order)
    return replace(spec, components=spec.components | components)


def words(spec: InstanceSpec, boot: BootSource = KERNEL, flash: dict[str, str] | None = None) -> list[str]:
    properties = replace(instance_properties("vm"), id=ID)
    return qemu_arguments(
        spec=spec, properties=properties, boot=boot, accelerator="tcg", mark="propolis-mark", flash=flash or {}
    )


def values(spec: InstanceSpec, option: str, **more: Any) -> list[str]:
    """The values of an option."""
    given = words(spec, **more)
    return [value for name, value in itertools.pairwise(given) if name == option]


def disk_part(backend: str = "a-backend", **path: int) -> VirtioDiskComponent:
    place = {"bus": 0, "device": 4, "function": 0} | path
    return VirtioDiskComponent(VirtioDisk(backend_id=backend, pci_path=PciPath(**place)))


def file_part(path: str = "/a.qcow2", *, readonly: bool = False) -> FileStorageBackendComponent:
    return FileStorageBackendComponent(FileStorageBackend(path=path, readonly=readonly, block_size=512))


def test_a_default_spec_word_for_word() -> None:
    disk = AttachedDisk(name="boot-disk", path="/disks/one.qcow2", interface="virtio")
    assert words(spec_of(disk, order=("boot-disk",))) == [
        *("-name", "guest=propolis-mark", "-uuid", str(ID)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S"),
        *("-machine", "pc", "-accel", "tcg,thread=single", "-cpu", "Nehalem,+rdrand", "-smp", "2", "-m", "512M"),
        *("-kernel", "/k", "-append", "console=ttyS0 quiet", "-initrd", "/i"),
        *SERIAL,
        "-blockdev",
        '{"driver": "qcow2", "node-name": "backend4", "read-only": false, "discard": "unmap", '
        '"cache": {"no-flush": true}, "file": {"driver": "file", "filename": "/disks/one.qcow2"}}',
        *("-device", "virtio-blk-pci,bus=pci.0,addr=0x4.0x0,drive=backend4,bootindex=1"),
    ]


def test_the_format_of_a_disk_follows_from_its_name_alone() -> None:
    nodes = values(spec_of(a=file_part("/x,y.img", readonly=True), b=file_part("/x.qcow2")), "-blockdev")
    assert [json.loads(node)["driver"] for node in nodes] == ["raw", "qcow2"]
    assert json.loads(nodes[0])["file"]["filename"] == "/x,y.img"
    assert [json.loads(node)["read-only"] for node in nodes] == [True, False]


def test_an_nvme_disk_has_its_serial_number() -> None:
    disks = (
        AttachedDisk(name="one", path="/1", interface="nvme"),
        AttachedDisk(name="two", path="/2", interface="nvme"),
    )
    assert values(spec_of(*disks, order=("two", "one")), "-device")[-2:] == [
        "nvme,serial=one,bus=pci.0,addr=0x4.0x0,drive=backend4,bootindex=2",
        "nvme,serial=two,bus=pci.0,addr=0x5.0x0,drive=backend6,bootindex=1",
    ]


def test_firmware_boots_without_a_kernel() -> None:
    assert "-kernel" not in words(spec_of(), boot=Firmware())
    flash = {"code": "/code.fd", "variables": "/vars.fd"}
    assert values(spec_of(), "-machine", boot=Firmware(uefi=True), flash=flash) == ["pc,pflash0=code,pflash1=variables"]
    nodes = [json.loads(node) for node in values(spec_of(), "-blockdev", boot=Firmware(uefi=True), flash=flash)]
    assert nodes == [
        {"driver": "file", "filename": "/code.fd", "node-name": "code", "read-only": True},
        {"driver": "file", "filename": "/vars.fd", "node-name": "variables", "read-only": False},
    ]


def test_pcie_makes_it_another_machine() -> None:
    spec = spec_of(a=disk_part(), **{"a-backend": file_part()})
    chipset = replace(spec.board.chipset, value=I440Fx(enable_pcie=True))
    spec = replace(spec, board=replace(spec.board, chipset=chipset))
    assert values(spec, "-machine") == ["q35"]
    assert "bus=pcie.0" in values(spec, "-device")[-1]


def test_smbios_and_pvpanic() -> None:
    spec = spec_of(panic=QemuPvpanicComponent(QemuPvpanic(enable_isa=True)))
    spec = replace(
        spec, smbios=SmbiosType1Input(manufacturer="Maker, Inc.", product_name="P", serial_number="S", version=7)
    )
    assert values(spec, "-smbios") == ["type=1,manufacturer=Maker,, Inc.,product=P,serial=S,version=7"]
    assert values(spec, "-device")[-1] == "pvpanic,ioport=0x505"
    off = spec_of(panic=QemuPvpanicComponent(QemuPvpanic(enable_isa=False)))
    assert not any("pvpanic" in value for value in values(off, "-device"))


def test_a_bridge_comes_before_what_sits_behind_it() -> None:
    bridge = PciPciBridgeComponent(PciPciBridge(downstream_bus=1, pci_path=PciPath(bus=0, device=9, function=0)))
    spec = spec_of(a=disk_part(bus=1, device=1), **{"a-backend": file_part(), "bridge": bridge})
    devices = values(spec, "-device")
    assert devices[0] == "pci-bridge,id=bus1,chassis_nr=1,bus=pci.0,addr=0x9.0x0"
    assert devices[-1].startswith("virtio-blk-pci,bus=bus1,addr=0x1.0x0,")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (spec_of(a=disk_part()), "disk 'a' names backend 'a-backend', which is not a storage backend"),
        (spec_of(a=disk_part("a")), "disk 'a' names backend 'a'"),
        (spec_of(a=disk_part(bus=3), **{"a-backend": file_part()}), "component 'a': PCI bus 3 does not exist"),
        (spec_of(a=disk_part(device=32), **{"a-backend": file_part()}), "PCI path 0.32.0 is out of range"),
        (spec_of(a=disk_part(function=8), **{"a-backend": file_part()}), "PCI path 0.4.8 is out of range"),
        (spec_of(a=disk_part(device=0), **{"a-backend": file_part()}), "PCI slot 0 is taken by the host bridge"),
        (spec_of(a=disk_part(device=1), **{"a-backend": file_part()}), "PCI slot 1 is taken by the ISA bridge"),
        (spec_of(order=("nothing",)), "boot order names 'nothing', which is not a disk"),
        (spec_of(order=("com1",)), "boot order names 'com1', which is not a disk"),
        (
            spec_of(
                one=BootSettingsComponent(BootSettings(order=())),
                two=BootSettingsComponent(BootSettings(order=(BootOrderEntry(id="x"),))),
            ),
            "more than one component has boot settings",
        ),
        (replace(spec_of(), board=replace(spec_of().board, cpus=0)), "board.cpus is 0"),
        (replace(spec_of(), board=replace(spec_of().board, memory_mb=0)), "board.memory_mb is 0"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused_by_name(spec: InstanceSpec, complaint: str) -> None:
    with pytest.raises(SpecRefused) as caught:
        words(spec)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            spec_of(x=BlobStorageBackendComponent(BlobStorageBackend(base64="", readonly=True))),
            "component 'x': BlobStorageBackend",
        ),
        (
            spec_of(x=VirtioNetworkBackendComponent(VirtioNetworkBackend(vnic_name="v"))),
            "component 'x': VirtioNetworkBackend",
        ),
        (
            replace(spec_of(), board=replace(spec_of().board, cpuid=Cpuid(entries=(), vendor=CpuidVendor.AMD))),
            "board.cpuid",
        ),
        (
            replace(
                spec_of(),
                board=replace(
                    spec_of().board, guest_hv_interface=HyperVInterface(HyperVFeatures(features=frozenset()))
                ),
            ),
            "board.guest_hv_interface",
        ),
    ],
)
def test_what_is_not_realised_is_said_by_name(spec: InstanceSpec, complaint: str) -> None:
    with pytest.raises(SpecUnsupported) as caught:
        words(spec)
    assert complaint in str(caught.value)


def test_a_crucible_disk_without_a_backend_of_this_server_is_refused() -> None:
    backend = CrucibleStorageBackendComponent(CrucibleStorageBackend(readonly=False, request_json="{}"))
    with pytest.raises(SpecRefused, match="component 'a-backend': this server has no backend for Crucible volumes"):
        words(spec_of(a=disk_part(), **{"a-backend": backend}))


def test_two_devices_in_one_place_are_refused() -> None:
    spec = spec_of(a=disk_part(), b=disk_part(), **{"a-backend": file_part()})
    with pytest.raises(SpecRefused, match=r"components 'a' and 'b' are both at PCI path 0\.4\.0"):
        words(spec)
