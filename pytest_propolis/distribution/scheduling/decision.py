"""What the scheduler decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["BuildTemplate", "Decision", "EndWorker", "Relocate", "Start"]


class Start(NamedTuple):
    """Have a worker run tests, one after the other, on these hosts.

    :param tests: node ids; more than one only for very short tests with the same needs.
    :param hosts: their names: as many as the tests need.
    :param following: the test that the worker is to know as the next one; None if there is none, or none is asked for.
    """

    worker: str
    tests: tuple[str, ...]
    hosts: tuple[str, ...]
    following: str | None = None


@dataclass(frozen=True, slots=True)
class BuildTemplate:
    """Have a host make the template of a guest, before a test asks for it."""

    host: str
    guest: str


@dataclass(frozen=True, slots=True)
class EndWorker:
    """Tell a worker that no test follows."""

    worker: str


@dataclass(frozen=True, slots=True)
class Relocate:
    """Have a worker run a test again that has lost its hosts while it ran.

    :param hosts: as many as the test needs, not all of which may have its template; none if too few are left for it.
    """

    worker: str
    test: str
    hosts: tuple[str, ...]


Decision = Start | BuildTemplate | EndWorker | Relocate
