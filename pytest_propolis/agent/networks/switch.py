"""A switch: forwards Ethernet frames between the ports of one host and the trunks to others, with injected faults."""

from __future__ import annotations

import asyncio
import random
from typing import Final, NamedTuple, Protocol

from ...agent_api.networks import NetworkFaults
from .capture import Capture

__all__ = ["ADDRESSES_BYTES", "Leg", "Switch"]

ADDRESS_BYTES: Final = 6
ADDRESSES_BYTES: Final = 2 * ADDRESS_BYTES
"""The start of a frame: the addresses of its receiver and of its sender."""

GROUP_BIT: Final = 1
"""The multicast bit in an address's first byte."""


class Leg(Protocol):
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


class _Place(NamedTuple):
    """The latest known location of an address."""

    port: int
    leg: Leg


class Switch:
    """One host's part of a network. All parts are connected with each other: no frame goes over two trunks."""

    def __init__(self) -> None:
        self.capture = Capture()
        self._legs: list[Leg] = []
        self._places: dict[bytes, _Place] = {}
        self._parts: dict[int, str] = {}
        self._faults = NetworkFaults()
        self._cuts: frozenset[frozenset[int]] = frozenset()
        self._random = random.Random()  # noqa: S311 # not for secrets

    def add(self, leg: Leg) -> None:
        self._legs.append(leg)

    def remove(self, leg: Leg) -> None:
        """Removing twice is fine."""
        if leg in self._legs:
            self._legs.remove(leg)

    def order(self, faults: NetworkFaults) -> None:
        """Apply these faults to frames from now on, instead of the previous ones."""
        self._faults = faults
        self._cuts = frozenset(map(frozenset, faults.cuts))
        self._random.seed(faults.seed)

    def place(self, port: int, part: str | None) -> None:
        """Set the part of the network at which a port's card is; if None, learn it from the card's frames.

        Frames in flight from elsewhere no longer determine its location.
        """
        if part is None:
            self._parts.pop(port, None)
            return
        self._parts[port] = part
        left = [address for address, place in self._places.items() if place.port == port and place.leg.part != part]
        for address in left:
            del self._places[address]

    def take(self, frame: bytes, *, port: int, leg: Leg) -> None:
        """Forward a frame from a port that has arrived over a leg."""
        if len(frame) < ADDRESSES_BYTES:
            return
        sender = frame[ADDRESS_BYTES:ADDRESSES_BYTES]
        if not sender[0] & GROUP_BIT and self._parts.get(port, leg.part) == leg.part:
            self._places[sender] = _Place(port, leg)
        if leg.number is None:
            self._pass_on(frame, port, leg)
            return
        self.capture.add(frame)
        if self._faults.loss_percent and self._random.uniform(0, 100) < self._faults.loss_percent:
            return
        if self._faults.delay_ms:
            asyncio.get_running_loop().call_later(self._faults.delay_ms / 1000, self._pass_on, frame, port, leg)
        else:
            self._pass_on(frame, port, leg)

    def _pass_on(self, frame: bytes, port: int, leg: Leg) -> None:
        receiver = frame[:ADDRESS_BYTES]
        place = None if receiver[0] & GROUP_BIT else self._places.get(receiver)
        if place is not None and place.leg in self._legs and place.leg.is_up:
            if not self._is_cut(port, place.port):
                self._send(place.leg, port, frame, came_from=leg)
            return
        for other in self._legs:
            if other.number is None or not self._is_cut(port, other.number):
                self._send(other, port, frame, came_from=leg)

    def _send(self, leg: Leg, port: int, frame: bytes, *, came_from: Leg) -> None:
        between_trunks = leg.number is None and came_from.number is None
        if leg is not came_from and not between_trunks:
            leg.send(port, frame)

    def _is_cut(self, one: int, other: int) -> bool:
        return bool(self._cuts) and frozenset((one, other)) in self._cuts
