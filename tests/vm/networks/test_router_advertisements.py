"""The router advertisements of a network: their form, and a guest that forms its address by them."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from pytest_propolis import ConfigError, Nic, VmFactory
from pytest_propolis.agent.networks.router import RouterAdvertiser, is_solicitation

CLIENT = b"\x02\x11\x22\x33\x44\x55"
ALL_ROUTERS = ipaddress.IPv6Address("ff02::2").packed


def solicitation(*, kind: int = 133, hops: int = 255, protocol: int = 58) -> bytes:
    message = struct.pack("!BBHI", kind, 0, 0, 0)
    header = struct.pack("!IHBB", 6 << 28, len(message), protocol, hops) + bytes(16) + ALL_ROUTERS
    return b"\x33\x33\x00\x00\x00\x02" + CLIENT + b"\x86\xdd" + header + message


def test_a_solicitation_is_told_from_other_frames() -> None:
    assert is_solicitation(solicitation())
    assert not is_solicitation(solicitation(kind=135))
    assert not is_solicitation(solicitation(hops=64))
    assert not is_solicitation(solicitation(protocol=17))
    assert not is_solicitation(solicitation()[:50])
    assert not is_solicitation(b"\xff" * 6 + CLIENT + b"\x08\x00" + bytes(60))


def test_an_advertisement_has_the_prefix_and_no_router() -> None:
    frame = RouterAdvertiser("fd00:10:100::/64").advertisement
    packet, message = frame[14:], frame[54:]
    pseudo_header = packet[8:40] + struct.pack("!II", len(message), 58)
    words = pseudo_header + message
    assert sum(struct.unpack(f"!{len(words) // 2}H", words)) % 0xFFFF == 0, "the checksum"
    assert message[0] == 134
    assert message[6:8] == bytes(2), "its lifetime as a router"
    assert message[16:20] == bytes((3, 4, 64, 0xC0))
    assert message[32:48] == ipaddress.IPv6Address("fd00:10:100::").packed


async def test_guests_form_their_addresses_and_reach_each_other(vm_factory: VmFactory) -> None:
    lan = vm_factory.network("lan", slaac=True)
    vms = [await vm_factory.start(name, guest="alpine", nics=(Nic(network=lan),)) for name in ("one", "other")]
    addresses = []
    for vm in vms:
        # The interface came up before the module that knows IPv6. Alpine would add a temporary address.
        await vm.run("modprobe ipv6; sysctl -w net.ipv6.conf.eth0.use_tempaddr=0")
        await vm.run("ip link set eth0 down && ip link set eth0 up")
        shown = "ip -6 addr show dev eth0 | grep -v tentative | grep -o 'fd00[^/]*'"
        addresses.append(ipaddress.IPv6Address(await vm.run(f"until {shown}; do sleep 0.1; done")))
    assert addresses[0] != addresses[1]
    assert all(address in lan.prefix for address in addresses)
    await vms[0].run(f"ping -6 -c 1 -w 20 {addresses[1]}")
    with pytest.raises(ConfigError, match="network 'lan' was created with slaac=True"):
        vm_factory.network("lan", slaac=False)
