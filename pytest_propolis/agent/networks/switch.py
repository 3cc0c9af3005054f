"""A switch: forwards Ethernet frames between the ports of one host and the trunks to others, with injected faults."""

from __future__ import annotations

import asyncio
import random
from typing import Final, NamedTuple, Protocol

from ...agent_api.networks import NetworkFaults
from .capture import Capture

__all__ = ["ADDRESSES_BYTES", "Attachment", "Switch"]

ADDRESS_BYTES: Final = 6
ADDRESSES_BYTES: Final = 2 * ADDRESS_BYTES
"""The start of a frame: the addresses of its receiver and of its sender."""

GROUP_BIT: Final = 1
"""The multicast bit in an address's first byte."""


class Attachment(Protocol):
    """A source and destination of frames: a port or a trunk."""

    number: int | None
    """The number of the port; None for a trunk."""
    part: str
    """The id of the part of the network that it leads to: this one for a port, another one for a trunk."""

    @property
    def is_up(self) -> bool:
        """Whether there is a receiver."""

    def send(self, port: int, frame: bytes) -> None:
        """Forward a frame, or drop it if the receiver does not keep up.

        :param port: its source port, on any host.
        """


class _Location(NamedTuple):
    """The latest known location of an address."""

    port: int
    attachment: Attachment


class Switch:
    """One host's part of a network. All parts are connected directly: no frame passes over two trunks."""

    def __init__(self) -> None:
        self.capture = Capture()
        self._attachments: list[Attachment] = []
        self._locations: dict[bytes, _Location] = {}
        self._parts: dict[int, str] = {}
        self._faults = NetworkFaults()
        self._cuts: frozenset[frozenset[int]] = frozenset()
        self._random = random.Random()  # noqa: S311 # not for secrets

    def add(self, attachment: Attachment) -> None:
        self._attachments.append(attachment)

    def remove(self, attachment: Attachment) -> None:
        """Idempotent."""
        if attachment in self._attachments:
            self._attachments.remove(attachment)

    def order(self, faults: NetworkFaults) -> None:
        """Apply these faults to frames from now on, instead of the previous ones."""
        self._faults = faults
        self._cuts = frozenset(map(frozenset, faults.cuts))
        self._random.seed(faults.seed)

    def move_port(self, port: int, part: str | None) -> None:
        """Set the part of the network at which a port's card is; if None, learn it from the card's frames.

        Frames in flight from elsewhere no longer determine its location.
        """
        if part is None:
            self._parts.pop(port, None)
            return
        self._parts[port] = part
        left = [
            address
            for address, location in self._locations.items()
            if location.port == port and location.attachment.part != part
        ]
        for address in left:
            del self._locations[address]

    def receive(self, frame: bytes, *, port: int, attachment: Attachment) -> None:
        """Forward a frame from a port that has arrived over an attachment."""
        if len(frame) < ADDRESSES_BYTES:
            return
        sender = frame[ADDRESS_BYTES:ADDRESSES_BYTES]
        if not sender[0] & GROUP_BIT and self._parts.get(port, attachment.part) == attachment.part:
            known = self._locations.get(sender)
            if known is None or known.attachment is not attachment or known.port != port:
                self._locations[sender] = _Location(port, attachment)
        if attachment.number is None:
            self._forward(frame, port, attachment)
            return
        self.capture.add(frame)
        if self._faults.loss_percent and self._random.uniform(0, 100) < self._faults.loss_percent:
            return
        if self._faults.delay_ms:
            asyncio.get_running_loop().call_later(self._faults.delay_ms / 1000, self._forward, frame, port, attachment)
        else:
            self._forward(frame, port, attachment)

    def _forward(self, frame: bytes, port: int, attachment: Attachment) -> None:
        receiver = frame[:ADDRESS_BYTES]
        location = None if receiver[0] & GROUP_BIT else self._locations.get(receiver)
        if location is not None and location.attachment in self._attachments and location.attachment.is_up:
            if not self._is_cut(port, location.port):
                self._send(location.attachment, port, frame, came_from=attachment)
            return
        for other in self._attachments:
            if other.number is None or not self._is_cut(port, other.number):
                self._send(other, port, frame, came_from=attachment)

    def _send(self, attachment: Attachment, port: int, frame: bytes, *, came_from: Attachment) -> None:
        between_trunks = attachment.number is None and came_from.number is None
        if attachment is not came_from and not between_trunks:
            attachment.send(port, frame)

    def _is_cut(self, one: int, other: int) -> bool:
        return bool(self._cuts) and frozenset((one, other)) in self._cuts
