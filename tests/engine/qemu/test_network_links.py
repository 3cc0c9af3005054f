"""Virtio network backends and cards as words of QEMU's command line."""

from __future__ import annotations

from uuid import UUID

import pytest

from pytest_propolis.engine.invalid_spec import InvalidSpec
from pytest_propolis.engine.qemu.devices.network import mac_address, network_parts
from pytest_propolis.engine.qemu.devices.pci import PciBuses
from pytest_propolis.engine.qemu.machine_part import MachinePart, PartKind
from pytest_propolis.propolis_api import DlpiNetworkBackend, PciPath, VirtioNetworkBackend, VirtioNic

ID = UUID("a1b2c3d4-0000-4000-8000-00000000e5f6")


def card(backend: str = "net", device: int = 8) -> VirtioNic:
    return VirtioNic(backend_id=backend, interface_id=ID, pci_path=PciPath(bus=0, device=device, function=0))


def parts(**components: object) -> list[MachinePart]:
    return list(network_parts(components, PciBuses(components, pcie=False)))


def link(name: str) -> dict[str, object]:
    network, _ = parts(card=card(), net=VirtioNetworkBackend(vnic_name=name))
    properties = dict(network.properties)
    assert properties.pop("id") == "net1"
    return properties


def test_a_card_is_plugged_into_its_link_and_keeps_its_address() -> None:
    _, device = parts(card=card(), net=VirtioNetworkBackend(vnic_name="user"))
    place = {"bus": "pci.0", "addr": "0x8.0x0"}
    mac = "02:a1:b2:c3:e5:f6"
    assert device == (
        "card",
        PartKind.DEVICE,
        {"driver": "virtio-net-pci", **place, "mac": mac, "romfile": "", "netdev": "net1"},
    )
    assert mac_address(ID) == "02:a1:b2:c3:e5:f6"


@pytest.mark.parametrize(
    ("name", "netdev"),
    [
        ("user", {"type": "user"}),
        ("user:isolated", {"type": "user", "restrict": True}),
        ("unix:/a:b,c.sock", {"type": "stream", "server": False, "addr": {"type": "unix", "path": "/a:b,c.sock"}}),
        (
            "multicast:230.0.0.1:4321",
            {"type": "socket", "mcast": "230.0.0.1:4321", "localaddr": "127.0.0.1"},
        ),
    ],
)
def test_what_a_link_is_follows_from_its_name(name: str, netdev: dict[str, object]) -> None:
    assert link(name) == netdev


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("vnic0", "there is no link 'vnic0' on this host; a link is 'user'"),
        ("", "there is no link '' on this host"),
        ("user:other", "there is no link 'user:other'"),
        ("unix:relative", "'relative' is not an absolute path"),
        ("unix:/" + "x" * 107, "is not an absolute path of at most 107 bytes"),
        ("multicast:127.0.0.1:99", "'127.0.0.1:99' is not an IPv4 multicast address and a port"),
        ("multicast:230.0.0.1:0", "is not an IPv4 multicast address and a port"),
        ("multicast:230.0.0.1:65536", "is not an IPv4 multicast address and a port"),
        ("multicast:some.name:1", "is not an IPv4 multicast address and a port"),
        ("multicast:230.0.0.1:²", "is not an IPv4 multicast address and a port"),
    ],
)
def test_a_link_that_this_host_cannot_have_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(InvalidSpec, match="backend 'net': ") as caught:
        link(name)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("components", "complaint"),
    [
        ({"card": card()}, "card 'card' names backend 'net', which is not a network backend of this spec"),
        ({"net": VirtioNetworkBackend(vnic_name="user")}, "backend 'net' is not used by any device"),
        (
            {"one": card(), "two": card(device=9), "net": VirtioNetworkBackend(vnic_name="user")},
            "card 'two': backend 'net' is used by another card already",
        ),
        ({"card": card(), "net": DlpiNetworkBackend(vnic_name="v")}, "backend 'net': DLPI links are of illumos"),
    ],
)
def test_cards_and_links_come_in_pairs(components: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidSpec, match=complaint):
        parts(**components)
