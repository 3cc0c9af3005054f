"""A test as the scheduler sees it."""

from __future__ import annotations

from typing import NamedTuple

from .needs import Needs

__all__ = ["Item"]


class Item(NamedTuple):
    """A collected test.

    :param id: its node id.
    :param needs: what it needs of hosts.
    :param module: what it has in common with its neighbours, by which unknown durations are estimated.
    :param estimate_s: what earlier runs measured, on a host of speed 1.0; None if it never ran.
    """

    id: str
    needs: Needs
    module: str
    estimate_s: float | None = None
