"""A host: what it offers, and what of it is in use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from .needs import Needs

__all__ = ["HostKind", "HostSpec", "HostState"]

HostKind: TypeAlias = tuple[bool, int, int, frozenset[str]]


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What a host offers.

    :param slots: how many VM tests it runs at the same time; a template that is being made takes one, too.
    :param memory_mib: for all VMs together.
    :param cpus: virtual CPUs for all VMs together.
    :param labels: what it has.
    :param speed: 1.0 is the reference: a test of 10 s takes 20 s on a host of speed 0.5.
    :param templates: guests whose templates are there already.
    """

    name: str
    slots: int
    memory_mib: int
    cpus: int
    labels: frozenset[str] = frozenset()
    speed: float = 1.0
    templates: frozenset[str] = field(default=frozenset())

    @property
    def kind(self) -> HostKind:
        """What decides `could_fit`: fleets have many hosts of few kinds."""
        return self.slots > 0, self.cpus, self.memory_mib, self.labels

    def could_fit(self, needs: Needs) -> bool:
        """Return whether it could run a test if it did nothing else."""
        return (
            self.slots > 0
            and self.cpus >= needs.cpus
            and self.memory_mib >= needs.memory_mib
            and needs.labels <= self.labels
        )


class HostState:
    """What a host has left, and which templates it has. It refuses to give more than it has."""

    __slots__ = (
        "alive",
        "building",
        "cpus",
        "host",
        "memory_mib",
        "order",
        "running",
        "slots",
        "speed",
        "templates",
    )

    def __init__(self, host: HostSpec, order: int) -> None:
        self.host: Final = host
        self.order: Final = order
        """Its rank among all hosts: what is decided for several of them is decided in this order."""
        self.speed = host.speed
        self.alive = True
        self.slots, self.memory_mib, self.cpus = host.slots, host.memory_mib, host.cpus
        self.running = 0
        """Tests that hold something of it."""
        self.templates = set(host.templates)
        self.building: dict[str, float] = {}
        """Guest -> when its template will probably be there."""

    def fits(self, needs: Needs) -> bool:
        """Return whether it has now what a test needs, templates aside."""
        if needs.exclusive and (self.running or self.building):
            return False
        return self.slots > 0 and self.cpus >= needs.cpus and self.memory_mib >= needs.memory_mib

    def could_fit(self, needs: Needs) -> bool:
        """Return whether it could run a test if it did nothing else."""
        return self.host.could_fit(needs)

    def take(self, needs: Needs) -> None:
        """Let a test have what it needs."""
        slots = self.host.slots if needs.exclusive else 1
        if not self.alive or self.slots < slots or self.cpus < needs.cpus or self.memory_mib < needs.memory_mib:
            raise AssertionError(f"{self.host.name} does not have {needs}")
        self.slots -= slots
        self.cpus -= needs.cpus
        self.memory_mib -= needs.memory_mib
        self.running += 1

    def give_back(self, needs: Needs) -> None:
        """Take back what a test held."""
        self.slots += self.host.slots if needs.exclusive else 1
        self.cpus += needs.cpus
        self.memory_mib += needs.memory_mib
        self.running -= 1

    def start_building(self, guest: str, ready_s: float) -> None:
        """Hold a slot for a template that is being made."""
        if self.slots < 1 or guest in self.templates or guest in self.building:
            raise AssertionError(f"{self.host.name} cannot make a template of {guest}")
        self.slots -= 1
        self.building[guest] = ready_s

    def end_building(self, guest: str, *, made: bool) -> None:
        """Free the slot of a template that was made, or could not be made."""
        if self.building.pop(guest, None) is not None:
            self.slots += 1
        if made:
            self.templates.add(guest)
