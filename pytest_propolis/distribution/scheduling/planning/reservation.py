"""Slots that are kept for long tests until their template is made."""

from __future__ import annotations

import math
from typing import Final

from ..backlog import Backlog
from ..fleet import Fleet
from ..host import HostState

__all__ = ["Reservation"]

LONG_SHARE: Final = 0.6
"""A test is long if it takes this share of the time until the run ends: it cannot wait for others to end."""


class Reservation:
    """Keeps slots of a host that makes templates: else the tests of the first template would take all of them.

    Tests that are long themselves get any slot, and so do those that end before the next template is made.
    """

    def __init__(self, fleet: Fleet, backlog: Backlog) -> None:
        self.long_s = 0.0
        """From which duration on a test is long."""
        self._fleet = fleet
        self._backlog = backlog
        self._now_s = 0.0
        self._shares: dict[str, float] = {}
        """Guest -> the share of the slots of its hosts that its long tests need."""

    def look_ahead(self, slack_s: float, longest_s: float) -> None:
        """Count the long tests of the guests whose templates are being made.

        :param slack_s: how long the run will probably last.
        :param longest_s: how long a test takes at most: unknown ones, which rank higher, are short mostly.
        """
        self.long_s = LONG_SHARE * slack_s
        slots: dict[str, int] = {}
        building: set[str] = set()
        for state in self._fleet.living:
            building.update(state.building)
            for guest in (*state.templates, *state.building):
                slots[guest] = slots.get(guest, 0) + state.host.slots
        self._shares = {
            guest: self._backlog.count_between(guest, self.long_s, longest_s) / slots[guest] for guest in building
        }

    def set_time(self, now_s: float) -> None:
        """Let it know the time in s."""
        self._now_s = now_s

    def gap_s(self, state: HostState, slots: int) -> float:
        """How long the tests may take, on a host of speed 1.0, that begin on a host now; infinite if nothing is kept.

        :param slots: how many of its slots are free.
        """
        if not state.building:
            return math.inf
        kept = sum(self._shares.get(guest, 0.0) for guest in state.building) * state.host.slots
        until_s = min(state.building.values()) - self._now_s
        # A template that is overdue may take any time.
        return math.inf if slots > kept or until_s <= 0 else until_s * state.speed
