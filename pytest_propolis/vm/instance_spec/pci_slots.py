"""Which PCI slot of the root bus each device of a VM gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from ...errors import ConfigError

__all__ = [
    "BOOT_DISK_CANDIDATES",
    "BOOT_DISK_SLOT",
    "DISK_CANDIDATES",
    "DISPLAY_SLOT",
    "GUEST_PORTS_SLOT",
    "NIC_CANDIDATES",
    "PCI_SLOTS",
    "SlotRequest",
    "assign_slots",
]

PCI_SLOTS: Final = range(2, 32)
"""Those that a device can have; the ones below belong to the chipset."""

DISPLAY_SLOT: Final = 2
"""Where the display sits, if there is one: where PCs have it."""

GUEST_PORTS_SLOT: Final = 30
"""Where the controller of the guest ports sits, if there is one."""

BOOT_DISK_SLOT: Final = 4
"""Where PHD puts the boot disk; data disks follow it."""

FIRST_NIC_SLOT: Final = 16
"""Where network cards begin, which PHD has none of."""

DISK_CANDIDATES: Final = (*range(BOOT_DISK_SLOT, 32), 3, 2)

# A guest finds disks in the order of their slots, and is to find this one first.
BOOT_DISK_CANDIDATES: Final = (BOOT_DISK_SLOT, 3, 2, *range(BOOT_DISK_SLOT + 1, 32))

NIC_CANDIDATES: Final = (*range(FIRST_NIC_SLOT, 32), *range(FIRST_NIC_SLOT - 1, 1, -1))


class SlotRequest(NamedTuple):
    """A device that needs a slot.

    :param slot: the slot that was chosen for it; None for a free one.
    :param candidates: where to look for a free one, in this order.
    """

    device: str
    slot: int | None
    candidates: Iterable[int]


def assign_slots(requests: Iterable[SlotRequest], *, reserved: Mapping[int, str]) -> list[int]:
    """Return a slot for each device: the chosen one, else the first candidate that no device has.

    :param reserved: what is in slots that no device can have.
    :raises ConfigError: when a chosen slot is taken, or no slot is free.
    """
    requests = tuple(requests)
    taken = {**reserved}
    for request in requests:
        if request.slot is not None:
            _reserve(taken, request.slot, request.device)
    return [_free_slot(taken, request) if request.slot is None else request.slot for request in requests]


def _free_slot(taken: dict[int, str], request: SlotRequest) -> int:
    for slot in request.candidates:
        if slot not in taken:
            taken[slot] = request.device
            return slot
    raise ConfigError(
        f"no PCI slot is free for {request.device!r}", hint=f"a VM has {len(PCI_SLOTS)} slots; use fewer devices"
    )


def _reserve(taken: dict[int, str], slot: int, device: str) -> None:
    if slot in taken:
        raise ConfigError(
            f"pci_slot {slot} of {device!r} is taken by {taken[slot]!r}",
            hint="choose another slot, or leave pci_slot out for a free one",
        )
    taken[slot] = device
