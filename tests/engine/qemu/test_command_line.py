"""Instance specs as words of QEMU's command line."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from pytest_propolis.agent_api.boot_source import BootSource, DirectKernel, Firmware
from pytest_propolis.engine.qemu.command_line import (
    HostResources,
    InvalidSpec,
    SpecUnsupported,
    process_environment,
    qemu_arguments,
)
from pytest_propolis.engine.qemu.devices.disks import blob_contents
from pytest_propolis.propolis_api import (
    BlobStorageBackend,
    BlobStorageBackendComponent,
    BootOrderEntry,
    BootSettings,
    BootSettingsComponent,
    Component,
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    FileStorageBackend,
    FileStorageBackendComponent,
    HyperVFeatureFlag,
    HyperVFeatures,
    HyperVInterface,
    I440Fx,
    InstanceSpec,
    MigrationFailureInjector,
    MigrationFailureInjectorComponent,
    NvmeDisk,
    NvmeDiskComponent,
    P9fs,
    P9fsComponent,
    PciPath,
    PciPciBridge,
    PciPciBridgeComponent,
    QemuPvpanic,
    QemuPvpanicComponent,
    SerialPort,
    SerialPortComponent,
    SerialPortNumber,
    SmbiosType1Input,
    SoftNpuP9,
    SoftNpuP9Component,
    SoftNpuPciPort,
    SoftNpuPciPortComponent,
    SoftNpuPort,
    SoftNpuPortComponent,
    VirtioDisk,
    VirtioDiskComponent,
    VirtioSocket,
    VirtioSocketComponent,
)
from pytest_propolis.vm.instance_spec.builder import AttachedDisk, instance_properties, instance_spec

ID = UUID("11111111-2222-4333-8444-555555555555")
KERNEL = DirectKernel(kernel="/k", initrd="/i", command_line="console=ttyS0 quiet")
SERIAL = [
    *("-device", "isa-serial,index=0,chardev=com1"),
    *("-device", "isa-serial,index=1,chardev=com2"),
    *("-chardev", "null,id=com3", "-device", "isa-serial,index=2,chardev=com3"),
    *("-chardev", "null,id=com4", "-device", "isa-serial,index=3,chardev=com4"),
]


def spec_of(*disks: AttachedDisk, order: tuple[str, ...] = (), **components: Any) -> InstanceSpec:
    spec = instance_spec(cpus=2, memory_mib=512, disks=disks, boot_order=order)
    return replace(spec, components=spec.components | components)


def a_backend(component: Component) -> dict[str, Any]:
    return {"a-backend": component}


def words(spec: InstanceSpec, boot: BootSource = KERNEL, **more: Any) -> list[str]:
    properties = replace(instance_properties("vm"), id=ID)
    resources = HostResources(
        **{field.name: more.pop(field.name) for field in fields(HostResources) if field.name in more}
    )
    usual: dict[str, Any] = {"accelerator": "tcg", "tag": "propolis-mark", "resources": resources}
    return qemu_arguments(spec=spec, properties=properties, boot=boot, **(usual | more))


def values(spec: InstanceSpec, option: str, **more: Any) -> list[str]:
    """The values of an option."""
    given = words(spec, **more)
    return [value for name, value in itertools.pairwise(given) if name == option]


def disk_part(backend: str = "a-backend", **path: int) -> VirtioDiskComponent:
    place = {"bus": 0, "device": 4, "function": 0} | path
    return VirtioDiskComponent(VirtioDisk(backend_id=backend, pci_path=PciPath(**place)))


def file_part(path: str = "/a.qcow2", *, readonly: bool = False, block_size: int = 512) -> FileStorageBackendComponent:
    return FileStorageBackendComponent(FileStorageBackend(path=path, readonly=readonly, block_size=block_size))


def nvme(serial: bytes) -> InstanceSpec:
    disk = NvmeDisk(
        backend_id="b", pci_path=PciPath(bus=0, device=4, function=0), serial_number=tuple(serial.ljust(20, b"\0"))
    )
    return spec_of(a=NvmeDiskComponent(disk), b=file_part())


def bridge(downstream_bus: int, *, bus: int = 0, device: int = 9) -> PciPciBridgeComponent:
    path = PciPath(bus=bus, device=device, function=0)
    return PciPciBridgeComponent(PciPciBridge(downstream_bus=downstream_bus, pci_path=path))


def panic(*, enable_isa: bool = True) -> QemuPvpanicComponent:
    return QemuPvpanicComponent(QemuPvpanic(enable_isa=enable_isa))


def smbios(manufacturer: str) -> SmbiosType1Input:
    return SmbiosType1Input(manufacturer=manufacturer, product_name="P", serial_number="S", version=7)


def vsock(cid: int) -> VirtioSocketComponent:
    return VirtioSocketComponent(VirtioSocket(guest_cid=cid, pci_path=PciPath(bus=0, device=9, function=0)))


def test_a_default_spec_word_for_word() -> None:
    disk = AttachedDisk(name="boot-disk", path="/disks/one.qcow2", interface="virtio", pci_slot=4)
    assert words(spec_of(disk, order=("boot-disk",))) == [
        *("-name", "guest=propolis-mark", "-uuid", str(ID)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S"),
        *("-machine", "pc", "-m", "512M", "-accel", "tcg,thread=single", "-cpu", "Nehalem,+rdrand", "-smp", "2"),
        *("-kernel", "/k", "-append", "console=ttyS0 quiet", "-initrd", "/i"),
        *("-device", f"vmgenid,guid={ID}"),
        *SERIAL,
        "-blockdev",
        '{"driver": "qcow2", "node-name": "backend4", "read-only": false, "discard": "unmap", '
        '"cache": {"no-flush": true}, "file": {"driver": "file", "filename": "/disks/one.qcow2"}}',
        "-device",
        '{"driver": "virtio-blk-pci", "werror": "stop", "bus": "pci.0", "addr": "0x4.0x0", "drive": "backend4",'
        ' "bootindex": 1}',
    ]


def test_what_a_user_has_set_for_glibc_stays() -> None:
    assert process_environment({"HOME": "/"}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert process_environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"}) == {}


def test_the_format_of_a_disk_follows_from_its_name_alone() -> None:
    disks: dict[str, Any] = {"one": disk_part("a"), "two": disk_part("b", device=5)}
    nodes = values(spec_of(a=file_part("/x,y.img", readonly=True), b=file_part("/x.qcow2"), **disks), "-blockdev")
    assert [json.loads(node)["driver"] for node in nodes] == ["raw", "qcow2"]
    assert json.loads(nodes[0])["file"]["filename"] == "/x,y.img"
    assert [json.loads(node)["read-only"] for node in nodes] == [True, False]


def test_an_nvme_disk_has_its_serial_number() -> None:
    disks = (
        AttachedDisk(name="one", path="/1", interface="nvme", pci_slot=4),
        AttachedDisk(name="two", path="/2", interface="nvme", pci_slot=5),
    )
    devices = values(spec_of(*disks, order=("two", "one")), "-device")[-2:]
    assert [(json.loads(device)["serial"], json.loads(device)["bootindex"]) for device in devices] == [
        ("one", 2),
        ("two", 1),
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
    spec = spec_of(a=disk_part(), **a_backend(file_part()))
    chipset = replace(spec.board.chipset, value=I440Fx(enable_pcie=True))
    spec = replace(spec, board=replace(spec.board, chipset=chipset))
    assert values(spec, "-machine") == ["q35"]
    assert json.loads(values(spec, "-device")[-1])["bus"] == "pcie.0"


def test_guest_ports_are_a_controller_and_its_ports_in_a_slot_of_their_own() -> None:
    devices = values(spec_of(), "-device", guest_ports=True)
    controller = devices.index("virtio-serial-pci,id=guest-ports,max_ports=12,bus=pci.0,addr=0x1e")
    ports = devices[controller + 1 :]
    assert len(ports) == 11
    assert ports[0] == "virtserialport,id=port1,bus=guest-ports.0,nr=1,chardev=port1,name=org.propolis.1"
    assert not any("virtio-serial" in device for device in values(spec_of(), "-device"))
    with pytest.raises(InvalidSpec, match="PCI slot 30 is taken by the guest ports"):
        words(spec_of(a=disk_part(device=30), **a_backend(file_part())), guest_ports=True)


def test_smbios_and_pvpanic() -> None:
    spec = replace(spec_of(panic=panic()), smbios=smbios("Maker, Inc."))
    assert values(spec, "-smbios") == ["type=1,manufacturer=Maker,, Inc.,product=P,serial=S,version=7"]
    assert values(spec, "-device")[-1] == "pvpanic,ioport=0x505"
    assert values(spec, "-action") == ["panic=none"]
    assert not any("pvpanic" in value for value in values(spec_of(panic=panic(enable_isa=False)), "-device"))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (spec_of(a=disk_part()), "disk 'a' names backend 'a-backend', which is not a storage backend"),
        (spec_of(a=disk_part("a")), "disk 'a' names backend 'a'"),
        (spec_of(a=disk_part(bus=3), **a_backend(file_part())), "component 'a': PCI bus 3 does not exist"),
        (spec_of(a=disk_part(device=32), **a_backend(file_part())), "PCI path 0.32.0 is out of range"),
        (spec_of(a=disk_part(function=8), **a_backend(file_part())), "PCI path 0.4.8 is out of range"),
        (spec_of(a=disk_part(device=0), **a_backend(file_part())), "PCI slot 0 is taken by the host bridge"),
        (spec_of(a=disk_part(device=1), **a_backend(file_part())), "PCI slot 1 is taken by the ISA bridge"),
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
        (replace(spec_of(), board=replace(spec_of().board, memory_mb=1 << 40)), "board.memory_mb is 1099511627776"),
        (spec_of(a=file_part()), "backend 'a' is not used by any device"),
        (
            spec_of(a=disk_part("f"), b=disk_part("f", device=5), f=file_part()),
            "disks 'a' and 'b' both use backend 'f'",
        ),
        (spec_of(one=bridge(1, device=9), two=bridge(1, device=10)), "component 'two': there is a PCI bus 1 already"),
        (spec_of(one=bridge(0, device=9)), "component 'one': there is a PCI bus 0 already"),
        (spec_of(one=bridge(2, bus=1), two=bridge(1, bus=2)), "component 'one': this PCI bridge sits behind itself"),
        (
            spec_of(a=disk_part("f", function=1), f=file_part()),
            "component 'a': guests look for no function of PCI slot 0.4 but for 0 first",
        ),
        (
            spec_of(x=SerialPortComponent(SerialPort(num=SerialPortNumber.COM1))),
            "components 'com1' and 'x' are both the serial port com1",
        ),
        (spec_of(a=panic(), b=panic()), "components 'a' and 'b' are both the pvpanic device"),
        (replace(spec_of(), smbios=smbios("a\0b")), "a text of the spec has a NUL character"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused_by_name(spec: InstanceSpec, complaint: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        words(spec)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        SoftNpuPciPortComponent(SoftNpuPciPort(pci_path=PciPath(bus=0, device=9, function=0))),
        SoftNpuPortComponent(SoftNpuPort(backend_id="b", link_name="l")),
        SoftNpuP9Component(SoftNpuP9(pci_path=PciPath(bus=0, device=9, function=0))),
        P9fsComponent(P9fs(chunk_size=8192, pci_path=PciPath(bus=0, device=9, function=0), source="/", target="t")),
        vsock(16),
    ],
    ids=lambda part: type(part.component).__name__,
)
def test_what_is_not_realised_is_said_by_name(part: Component) -> None:
    with pytest.raises(SpecUnsupported, match="component 'x': "):
        words(spec_of(x=part))


def test_a_crucible_volume_is_refused() -> None:
    backend = CrucibleStorageBackendComponent(CrucibleStorageBackend(readonly=False, request_json="{}"))
    with pytest.raises(InvalidSpec, match="component 'a-backend': this server has no backend for Crucible volumes"):
        words(spec_of(a=disk_part(), **a_backend(backend)))


def test_a_migration_failure_injector_leaves_no_trace_in_the_machine() -> None:
    injector = MigrationFailureInjectorComponent(MigrationFailureInjector(fail_exports=1, fail_imports=2))
    assert words(spec_of(x=injector)) == words(spec_of())


def test_a_blob_is_a_raw_disk_over_the_file_that_holds_it() -> None:
    backend = BlobStorageBackendComponent(BlobStorageBackend(base64="AAAA", readonly=True))
    spec = spec_of(a=disk_part(), **a_backend(backend))
    (node,) = (json.loads(node) for node in values(spec, "-blockdev", blobs={"a-backend": "/proc/self/fd/9"}))
    assert (node["driver"], node["read-only"], node["file"]["filename"]) == ("raw", True, "/proc/self/fd/9")


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ("AAAA", "its contents are 3 bytes, which is not a multiple of 512"),
        ("", "its contents are 0 bytes"),
        ("?", "its contents are not base64"),
        ("ÄÄÄÄ", "its contents are not base64"),
    ],
)
def test_a_blob_that_is_no_disk_is_refused(contents: str, complaint: str) -> None:
    with pytest.raises(InvalidSpec, match=f"backend 'a': {complaint}"):
        blob_contents("a", BlobStorageBackend(base64=contents, readonly=False))


def test_block_sizes_are_those_of_the_backend() -> None:
    spec = spec_of(a=disk_part(), **a_backend(file_part(block_size=4096)))
    device = json.loads(values(spec, "-device")[-1])
    assert (device["logical_block_size"], device["physical_block_size"]) == (4096, 4096)


@pytest.mark.parametrize("size", [0, 256, 1000, 65536])
def test_a_block_size_that_no_disk_has_is_refused(size: int) -> None:
    with pytest.raises(InvalidSpec, match=f"backend 'a-backend': block_size is {size}, and must be a power of two"):
        words(spec_of(a=disk_part(), **a_backend(file_part(block_size=size))))


def test_a_serial_number_keeps_its_commas() -> None:
    assert json.loads(values(nvme(b"one,two"), "-device")[-1])["serial"] == "one,two"


@pytest.mark.parametrize("serial", [b"\xff", b"a\0b", b"new\nline"])
def test_a_serial_number_that_qemu_cannot_carry_is_refused(serial: bytes) -> None:
    with pytest.raises(InvalidSpec, match="disk 'a': its serial number is not printable ASCII"):
        words(nvme(serial))


def test_bridges_behind_bridges_come_after_them_whatever_the_order_of_the_spec() -> None:
    spec = spec_of(
        inner=bridge(2, bus=1, device=5),
        outer=bridge(1, bus=0, device=9),
        disk=disk_part("b", bus=2, device=0),
        b=file_part(),
    )
    devices = values(spec, "-device")
    assert devices[:2] == [
        "pci-bridge,id=bus1,chassis_nr=1,shpc=off,bus=pci.0,addr=0x9.0x0",
        "pci-bridge,id=bus2,chassis_nr=2,shpc=off,bus=bus1,addr=0x5.0x0",
    ]
    assert json.loads(devices[-1])["bus"] == "bus2"


def test_a_slot_with_several_functions_says_so_in_its_first() -> None:
    spec = spec_of(a=disk_part("x"), b=disk_part("y", function=3), x=file_part(), y=file_part())
    devices = [json.loads(device) for device in values(spec, "-device")[-2:]]
    assert ["multifunction" in device for device in devices] == [True, False]


def test_a_display_takes_a_slot_and_listens_on_a_socket() -> None:
    given = words(spec_of(), display_socket="/d/vnc,1.sock")
    assert given[-4:] == ["-device", "VGA,addr=0x2", "-vnc", "unix:/d/vnc,,1.sock"]
    with pytest.raises(InvalidSpec, match="PCI slot 2 is taken by the display"):
        words(spec_of(a=disk_part(device=2), **a_backend(file_part())), display_socket="/d")


def test_a_virtio_socket_where_the_host_has_them() -> None:
    assert values(spec_of(x=vsock(16)), "-device", has_vsock=True)[-1] == (
        "vhost-vsock-pci,guest-cid=16,bus=pci.0,addr=0x9.0x0"
    )
    with pytest.raises(InvalidSpec, match="guest_cid is 2, and must be from 3 to 4294967294"):
        words(spec_of(x=vsock(2)), has_vsock=True)


def test_hyper_v_is_refused_under_emulation_and_realised_under_kvm() -> None:
    interface = HyperVInterface(HyperVFeatures(features=frozenset({HyperVFeatureFlag.REFERENCE_TSC})))
    spec = replace(spec_of(), board=replace(spec_of().board, guest_hv_interface=interface))
    with pytest.raises(InvalidSpec, match=r"board\.guest_hv_interface: Hyper-V needs KVM"):
        words(spec)
    assert values(spec, "-cpu", accelerator="kvm") == ["host,hv-vpindex=on,hv-time=on"]


def test_two_devices_in_one_place_are_refused() -> None:
    spec = spec_of(a=disk_part(), b=disk_part(), **a_backend(file_part()))
    with pytest.raises(InvalidSpec, match=r"components 'a' and 'b' are both at PCI path 0\.4\.0"):
        words(spec)
