"""The DHCP server of a port: it has one address, that of the port's card."""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ["DhcpServer", "is_for_server"]

ETHERNET: Final = struct.Struct("!6s6sH")
IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
UDP: Final = struct.Struct("!HHHH")
BOOTP: Final = struct.Struct("!BBBBIHH4s4s4s4s16s192x4s")
"""Operation, hardware type, length of hardware addresses, hops, transaction, seconds, flags, the addresses of the
client, for the client, of the server and of a relay, the client's hardware address, and the cookie."""

IPV4_TYPE: Final = 0x0800
UDP_PROTOCOL: Final = 17
SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
REPLY: Final = 2
COOKIE: Final = b"\x63\x82\x53\x63"
BROADCAST: Final = b"\xff" * 6
MAC: Final = b"\x02\x00\x00\x00\x00\xfe"
INFINITE_LEASE: Final = b"\xff" * 4
LEAST_BYTES: Final = 300
"""Some clients ignore shorter messages."""


class _Option(IntEnum):
    PAD = 0
    MASK = 1
    REQUESTED = 50
    LEASE = 51
    TYPE = 53
    SERVER = 54
    END = 255


class _Type(IntEnum):
    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    ACK = 5
    NAK = 6
    INFORM = 8


class _Request(NamedTuple):
    """A message of a client.

    :param address: the address that the client has already; zeros for none.
    """

    transaction: int
    flags: int
    address: bytes
    hardware: bytes
    options: dict[int, bytes]


def is_for_server(frame: bytes) -> bool:
    """Return whether a frame is from a DHCP client to a server."""
    start = ETHERNET.size
    if len(frame) < start + IPV4.size or int.from_bytes(frame[12:14]) != IPV4_TYPE or frame[start + 9] != UDP_PROTOCOL:
        return False
    udp = start + (frame[start] & 0xF) * 4
    return int.from_bytes(frame[udp + 2 : udp + 4]) == SERVER_PORT


class DhcpServer:
    """Answers the client of one card. The lease has no end; there is neither a router nor a name server.

    :param address: the card's, with the length of the network's prefix: ``10.100.0.1/24``.
    """

    def __init__(self, address: str) -> None:
        interface = ipaddress.IPv4Interface(address)
        self._address = interface.ip.packed
        self._mask = interface.netmask.packed
        self._own = interface.network[-2].packed

    def answer(self, frame: bytes) -> bytes | None:
        """Return the answer to a frame that `is_for_server`; None if it has none."""
        request = _parsed(frame)
        if request is None:
            return None
        match int.from_bytes(request.options.get(_Option.TYPE, b"")):
            case _Type.DISCOVER:
                return self._reply(request, _Type.OFFER)
            case _Type.REQUEST if request.options.get(_Option.SERVER, self._own) == self._own:
                wanted = request.options.get(_Option.REQUESTED, request.address)
                return self._reply(request, _Type.ACK if wanted == self._address else _Type.NAK)
            case _Type.INFORM:
                return self._reply(request, _Type.ACK)
        return None  # it has chosen another server, or declines, or has left

    def _reply(self, request: _Request, kind: _Type) -> bytes:
        given = bytes(4) if kind is _Type.NAK else self._address
        nothing = bytes(4)
        head = (REPLY, 1, 6, 0, request.transaction, 0, request.flags, request.address, given, self._own, nothing)
        message = BOOTP.pack(*head, request.hardware, COOKIE) + _option(_Option.TYPE, bytes((kind,)))
        message += _option(_Option.SERVER, self._own)
        if kind is not _Type.NAK:
            message += _option(_Option.MASK, self._mask) + _option(_Option.LEASE, INFINITE_LEASE)
        message = (message + bytes((_Option.END,))).ljust(LEAST_BYTES, b"\0")
        udp = UDP.pack(SERVER_PORT, CLIENT_PORT, UDP.size + len(message), 0)  # 0: without a checksum
        return ETHERNET.pack(BROADCAST, MAC, IPV4_TYPE) + _ip_header(self._own, len(udp + message)) + udp + message


def _parsed(frame: bytes) -> _Request | None:
    """Return the message in a frame; None if it is malformed."""
    start = ETHERNET.size + (frame[ETHERNET.size] & 0xF) * 4 + UDP.size
    try:
        *_, transaction, _seconds, flags, address, _given, _server, _relay, hardware, cookie = BOOTP.unpack_from(
            frame, start
        )
    except struct.error:
        return None
    if cookie != COOKIE:
        return None
    return _Request(transaction, flags, address, hardware, _options(frame[start + BOOTP.size :]))


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _Option.END:
        if data[at] == _Option.PAD:
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 0
        found[data[at]] = data[at + 2 : at + 2 + size]
        at += 2 + size
    return found


def _option(option: _Option, value: bytes) -> bytes:
    return bytes((option, len(value))) + value


def _ip_header(source: bytes, size: int) -> bytes:
    """Return the header of a broadcast packet."""
    fields = (0x45, 0, IPV4.size + size, 0, 0, 64, UDP_PROTOCOL)
    header = IPV4.pack(*fields, 0, source, b"\xff" * 4)
    total = sum(struct.unpack("!10H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return IPV4.pack(*fields, total ^ 0xFFFF, source, b"\xff" * 4)
