"""The channel by which commands and files reach a guest, if neither the test nor the settings name one."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from pytest_propolis import CapabilityMissing, VmFactory
from pytest_propolis.errors import ConfigError
from pytest_propolis.guests.adapter import GuestAdapter
from pytest_propolis.guests.micro import Micro
from pytest_propolis.settings import ENGINE, Settings
from pytest_propolis.vm.config import Nic, VmConfig
from pytest_propolis.vm.disks.kinds import AttachedDisk, DataDisk
from pytest_propolis.vm.disks.layout import placed
from pytest_propolis.vm.instance_spec.builder import free_slot, instance_spec
from pytest_propolis.vm.instance_spec.pci_slots import PCI_SLOTS


class WithoutDriver(Micro):
    """A guest whose adapter says nothing of the driver."""

    guest_ports: ClassVar[bool] = GuestAdapter.guest_ports


def chosen(*, guest: GuestAdapter | None = None, server: str = ENGINE, channel: Any = "auto", **fields: Any) -> str:
    complete = placed(VmConfig(**fields).completed(Settings(channel=channel, server=server)), guest or Micro())
    assert complete.config.channel is not None
    assert complete.config.has_ports == (complete.config.channel == "port")
    return complete.config.channel


def test_ports_are_chosen_for_a_guest_with_the_driver() -> None:
    assert chosen() == "port"
    assert chosen(guest=WithoutDriver()) == "console"


@pytest.mark.parametrize("server", ["/opt/propolis-server", "http://127.0.0.1:12400"])
def test_another_server_than_the_engine_has_the_console(server: str) -> None:
    assert chosen(server=server) == "console"


def test_a_device_in_the_slot_of_the_ports_and_a_full_bus_leave_the_console() -> None:
    disk = DataDisk(name="data", size_mib=1, pci_slot=30)
    assert chosen(disks=(disk,)) == "console"
    assert chosen(nics=tuple(Nic(name=f"nic-{number}") for number in range(29))) == "port"
    assert chosen(nics=tuple(Nic(name=f"nic-{number}") for number in range(30))) == "console"


def test_a_test_has_precedence_over_the_settings() -> None:
    assert chosen(channel="console") == "console"
    assert placed(VmConfig(channel="port").completed(Settings(channel="console")), Micro()).config.channel == "port"
    assert placed(VmConfig(channel="auto").completed(Settings(channel="console")), Micro()).config.channel == "port"
    assert placed(VmConfig(channel="console").completed(Settings(channel="port")), Micro()).config.channel == "console"


def test_ports_that_do_not_fit_are_refused_if_they_are_required() -> None:
    with pytest.raises(ConfigError, match="the guest ports"):
        chosen(channel="port", disks=(DataDisk(name="data", size_mib=1, pci_slot=30),))


def test_a_disk_that_is_attached_later_gets_no_slot_of_a_device_that_is_not_in_the_spec() -> None:
    slots = [slot for slot in PCI_SLOTS if slot not in (2, 17, 30)]
    disks = [AttachedDisk(name=f"d{slot}", path="/nothing", interface="virtio", pci_slot=slot) for slot in slots]
    spec = instance_spec(cpus=1, memory_mib=64, disks=disks, boot_order=())
    assert free_slot(spec, reserved=(2, 30)) == 17
    assert free_slot(spec, reserved=(17,)) == 30
    with pytest.raises(ConfigError, match="no free slot"):
        free_slot(spec, reserved=(2, 17, 30))


@pytest.mark.requires(server="engine")
async def test_a_guest_is_driven_over_ports_unless_it_is_to_be_driven_over_its_console(vm_factory: VmFactory) -> None:
    over_port = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, channel="auto")
    assert (await over_port.run_result("echo out; echo err >&2", separate_stderr=True)).stderr == b"err\n"
    over_console = await vm_factory.start("plain", guest="micro", cpus=1, memory_mib=256, channel="console")
    assert await over_console.run("readlink /proc/self/fd/1") == "/dev/ttyS0"
    with pytest.raises(CapabilityMissing):
        await over_console.run_result("true", separate_stderr=True)
