"""The PCI buses of a spec: which there are, and where a device sits on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from ....propolis_api import PciPath, PciPciBridge
from ...invalid_spec import InvalidSpec

__all__ = ["DISPLAY_SLOT", "GUEST_PORTS_SLOT", "PciBuses"]

DISPLAY_SLOT: Final = 2
"""Where the display sits, if there is one: where PCs have it."""

GUEST_PORTS_SLOT: Final = 30
"""Where the controller of the guest ports sits, if there is one: behind what a spec describes."""

SLOTS: Final = 32
FUNCTIONS: Final = 8


class _Chipset(NamedTuple):
    root_bus: str
    reserved: Mapping[int, str]


_I440FX: Final = _Chipset("pci.0", {0: "the host bridge", 1: "the ISA bridge"})
_Q35: Final = _Chipset("pcie.0", {0: "the host bridge", 31: "the ISA bridge"})


class PciBuses:
    """The root bus and those behind bridges.

    :param components: the components of a spec, by key.
    :param pcie: whether the root bus is PCI Express.
    :param display: whether a display takes a slot.
    :param guest_ports: whether guest ports take one.
    :raises InvalidSpec: naming the component whose place is impossible or taken.
    """

    def __init__(
        self, components: Mapping[str, Any], *, pcie: bool, display: bool = False, guest_ports: bool = False
    ) -> None:
        self._chipset = _Q35 if pcie else _I440FX
        self._reserved = {
            **self._chipset.reserved,
            **({DISPLAY_SLOT: "the display"} if display else {}),
            **({GUEST_PORTS_SLOT: "the guest ports"} if guest_ports else {}),
        }
        self._taken: dict[PciPath, str] = {}
        self._bridges = {key: part for key, part in components.items() if isinstance(part, PciPciBridge)}
        self._names = {0: self._chipset.root_bus}
        for key, bridge in self._bridges.items():
            if bridge.downstream_bus in self._names:
                raise InvalidSpec(f"component {key!r}: there is a PCI bus {bridge.downstream_bus} already")
            self._names[bridge.downstream_bus] = f"bus{bridge.downstream_bus}"
        for key, component in components.items():
            if (path := getattr(component, "pci_path", None)) is not None:
                self._reserve(key, path)
        self._require_first_functions()

    @property
    def guest_ports_place(self) -> str:
        """The words that put the controller of the guest ports in its place."""
        return f"bus={self._chipset.root_bus},addr={GUEST_PORTS_SLOT:#x}"

    def place(self, path: PciPath) -> str:
        """The words that put a device there."""
        return ",".join(f"{key}={'on' if value is True else value}" for key, value in self.properties(path).items())

    def properties(self, path: PciPath) -> dict[str, str | bool]:
        """The properties that put a device there."""
        place: dict[str, str | bool] = {
            "bus": self._names[path.bus],
            "addr": f"{path.device:#x}.{path.function:#x}",
        }
        return {**place, "multifunction": True} if path.function == 0 and self._has_siblings(path) else place

    def bridges(self) -> Iterator[str]:
        """The arguments for the bridges, each after the one that it sits behind.

        :raises InvalidSpec: when a bridge sits behind itself.
        """
        waiting = dict(self._bridges)
        present = {0}
        while waiting:
            ready = [key for key, bridge in waiting.items() if bridge.pci_path.bus in present]
            if not ready:
                raise InvalidSpec(f"component {min(waiting)!r}: this PCI bridge sits behind itself")
            for key in ready:
                bridge = waiting.pop(key)
                present.add(bridge.downstream_bus)
                yield from ("-device", self._bridge(bridge))

    def _bridge(self, bridge: PciPciBridge) -> str:
        number = bridge.downstream_bus
        # The hot-plug controller would take slot 0 of the new bus.
        return f"pci-bridge,id={self._names[number]},chassis_nr={number},shpc=off,{self.place(bridge.pci_path)}"

    def _reserve(self, key: str, path: PciPath) -> None:
        place = f"{path.bus}.{path.device}.{path.function}"
        if path.bus not in self._names:
            raise InvalidSpec(f"component {key!r}: PCI bus {path.bus} does not exist: add a bridge for it")
        if path.device >= SLOTS or path.function >= FUNCTIONS:
            raise InvalidSpec(f"component {key!r}: PCI path {place} is out of range")
        if path.bus == 0 and path.device in self._reserved:
            raise InvalidSpec(f"component {key!r}: PCI slot {path.device} is taken by {self._reserved[path.device]}")
        if (other := self._taken.setdefault(path, key)) != key:
            raise InvalidSpec(f"components {other!r} and {key!r} are both at PCI path {place}")

    def _require_first_functions(self) -> None:
        for path, key in self._taken.items():
            if PciPath(bus=path.bus, device=path.device, function=0) not in self._taken:
                place = f"{path.bus}.{path.device}"
                raise InvalidSpec(f"component {key!r}: guests look for no function of PCI slot {place} but for 0 first")

    def _has_siblings(self, path: PciPath) -> bool:
        return any((other.bus, other.device) == (path.bus, path.device) for other in self._taken if other != path)
