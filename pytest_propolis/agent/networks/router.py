"""Router advertisements of a port: they tell its card the prefix of the network, and of no router."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

__all__ = ["RouterAdvertiser", "is_solicitation"]

ETHERNET: Final = struct.Struct("!6s6sH")
IPV6: Final = struct.Struct("!IHBB16s16s")
"""Version, class and flow label; length; protocol; hop limit; source; destination."""

ADVERTISEMENT: Final = struct.Struct("!BBHBBHII")
"""Type, code, checksum; hop limit, flags, lifetime as a router, reachable time, time between solicitations."""

PREFIX: Final = struct.Struct("!BBBBIII16s")
"""Type, length in units of 8 bytes, length of the prefix, flags, lifetimes valid and preferred, reserved, prefix."""

SOURCE_ADDRESS: Final = struct.Struct("!BB6s")

IPV6_TYPE: Final = 0x86DD
ICMPV6: Final = 58
SOLICITATION_TYPE: Final = 133
ADVERTISEMENT_TYPE: Final = 134
HOPS: Final = 255
"""What has another hop limit came over a router, and is no message of neighbours."""

ON_LINK_AND_AUTONOMOUS: Final = 0xC0
FOREVER: Final = 0xFFFFFFFF
MAC: Final = b"\x02\x00\x00\x00\x00\xfe"
OWN: Final = ipaddress.IPv6Address("fe80::ff:fe00:fe").packed
"""The link-local address of that MAC address."""

ALL_NODES: Final = ipaddress.IPv6Address("ff02::1").packed
ALL_NODES_MAC: Final = b"\x33\x33\x00\x00\x00\x01"


def is_solicitation(frame: bytes) -> bool:
    """Return whether a frame asks the routers of its network to advertise themselves."""
    start = ETHERNET.size
    if len(frame) < start + IPV6.size + 8 or int.from_bytes(frame[12:14]) != IPV6_TYPE:
        return False
    _, _, protocol, hops, _, _ = IPV6.unpack_from(frame, start)
    return (protocol, hops, frame[start + IPV6.size]) == (ICMPV6, HOPS, SOLICITATION_TYPE)


class RouterAdvertiser:
    """Advertises a prefix, from which the guest forms its addresses itself; they never expire.

    :param prefix: of 64 bits: ``fd00:10:100::/64``.
    """

    def __init__(self, prefix: str) -> None:
        network = ipaddress.IPv6Network(prefix)
        options = PREFIX.pack(
            3, 4, network.prefixlen, ON_LINK_AND_AUTONOMOUS, FOREVER, FOREVER, 0, network.network_address.packed
        ) + SOURCE_ADDRESS.pack(1, 1, MAC)
        self.advertisement: Final = _frame(options)
        """The frame that answers a solicitation, to all nodes of the port."""


def _frame(options: bytes) -> bytes:
    message = _advertisement(0) + options
    pseudo_header = OWN + ALL_NODES + struct.pack("!II", len(message), ICMPV6)
    message = _advertisement(_checksum(pseudo_header + message)) + options
    header = IPV6.pack(6 << 28, len(message), ICMPV6, HOPS, OWN, ALL_NODES)
    return ETHERNET.pack(ALL_NODES_MAC, MAC, IPV6_TYPE) + header + message


def _advertisement(checksum: int) -> bytes:
    return ADVERTISEMENT.pack(ADVERTISEMENT_TYPE, 0, checksum, 64, 0, 0, 0, 0)  # 0: it is no default router


def _checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
