"""What a test needs of hosts while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Needs", "Way"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a test holds on each of its hosts from its start to its end.

    Plain values only: it travels over an execnet channel or as JSON (`dataclasses.asdict`, `Needs(**values)`).

    :param guest: the guest whose template a host must have first; None if the test uses no template.
    :param memory_mib: memory of all its VMs on one host.
    :param cpus: virtual CPUs of all its VMs on one host.
    :param hosts: on how many distinct hosts, all at the same time; 0 for a test without a VM.
    :param labels: what each of the hosts must have: ``zfs``, ``kvm``, a server program, a label of the user's.
    :param exclusive: the test shares none of its hosts with another one.
    """

    guest: str | None = None
    memory_mib: int = 0
    cpus: int = 0
    hosts: int = 1
    labels: frozenset[str] = frozenset()
    exclusive: bool = False

    def __post_init__(self) -> None:
        if min(self.memory_mib, self.cpus, self.hosts) < 0:
            raise ValueError(f"memory_mib, cpus and hosts cannot be negative: {self}")
        object.__setattr__(self, "labels", frozenset(self.labels))


class Way(Enum):
    """How tests come to their hosts."""

    HOSTLESS = auto()
    NEXT = auto()
    """The next host that has room."""
    GATHERED = auto()
    """Several at the same time, or one that is emptied first."""

    @classmethod
    def of(cls, needs: Needs) -> Way:
        if needs.hosts == 0:
            return cls.HOSTLESS
        return cls.GATHERED if needs.hosts > 1 or needs.exclusive else cls.NEXT
