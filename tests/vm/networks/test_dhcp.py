"""The DHCP server of a network: its answers, and a guest that asks for its address."""

from __future__ import annotations

import struct

import pytest

from pytest_propolis import ConfigError, Nic, VmFactory
from pytest_propolis.agent.networks.dhcp import DhcpServer, is_for_server

CLIENT = b"\x02\x11\x22\x33\x44\x55"
COOKIE = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, INFORM = 1, 2, 3, 4, 5, 6, 8
OURS, OTHERS = bytes((10, 100, 0, 7)), bytes((10, 100, 0, 8))
SERVER = bytes((10, 100, 0, 254))


def request(kind: int, *options: tuple[int, bytes], address: bytes = bytes(4), port: int = 67) -> bytes:
    message = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0xCAFE, 0, 0) + address + bytes(12) + CLIENT.ljust(16, b"\0")
    message += bytes(192) + COOKIE + bytes((0, 53, 1, kind))
    message += b"".join(bytes((code, len(value))) + value for code, value in options) + b"\xff"
    udp = struct.pack("!HHHH", 68, port, 8 + len(message), 0) + message
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    return b"\xff" * 6 + CLIENT + b"\x08\x00" + header + udp


def answered(frame: bytes) -> tuple[int, bytes] | None:
    """Return the type of the answer, and the address in it."""
    assert is_for_server(frame)
    answer = DhcpServer("10.100.0.7/24").answer(frame)
    if answer is None:
        return None
    assert sum(struct.unpack("!10H", answer[14:34])) % 0xFFFF == 0, "the checksum of its header"
    assert struct.unpack("!HH", answer[34:38]) == (67, 68)
    assert answer[46:50] == bytes((0, 0, 0xCA, 0xFE)), "the transaction"
    options = answer[42 + 240 :]
    assert options[:2] == bytes((53, 1))
    return options[2], answer[58:62]


@pytest.mark.parametrize(
    ("frame", "answer"),
    [
        (request(DISCOVER), (OFFER, OURS)),
        (request(REQUEST, (50, OURS), (54, SERVER)), (ACK, OURS)),
        (request(REQUEST, address=OURS), (ACK, OURS)),
        (request(REQUEST, (50, OTHERS)), (NAK, bytes(4))),
        (request(REQUEST, (50, OURS), (54, OTHERS)), None),
        (request(INFORM, address=OURS), (ACK, OURS)),
        (request(DECLINE), None),
        (request(DISCOVER)[:100], None),
        (request(DISCOVER).replace(COOKIE, bytes(4)), None),
        (request(DISCOVER)[:284] + bytes((53,)), None),
    ],
    ids=[
        "discover",
        "request",
        "renew",
        "other address",
        "other server",
        "inform",
        "decline",
        "cut",
        "bootp",
        "option",
    ],
)
def test_a_request_has_its_answer(frame: bytes, answer: tuple[int, bytes] | None) -> None:
    assert answered(frame) == answer


def test_other_frames_are_not_for_the_server() -> None:
    assert not is_for_server(request(DISCOVER, port=68))
    assert not is_for_server(b"\xff" * 6 + CLIENT + b"\x08\x06" + bytes(28))
    assert not is_for_server(b"")


async def test_a_guest_gets_its_address_by_dhcp(vm_factory: VmFactory) -> None:
    lan = vm_factory.network("lan", dhcp=True)
    vm = await vm_factory.start(guest="alpine", nics=(Nic(network=lan),))
    assert "inet " not in await vm.run("ip addr show dev eth0")
    await vm.run("ip link set eth0 up && udhcpc -i eth0 -n -q")
    assert f"inet {vm.address(lan)}/24 " in await vm.run("ip addr show dev eth0")
    with pytest.raises(ConfigError, match="network 'lan' was created with dhcp=True"):
        vm_factory.network("lan", dhcp=False)
