"""The requirements of a project's tests, the hosts that meet them, and the reasons for skips."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import pytest

from ..markers.declarations import needs_hosts
from ..markers.requirements import Unmet, able_hosts, requirements_of, unmet
from ..session.internals import skip_reason
from ..session.stash import SETTINGS

__all__ = ["Explanation", "as_json", "as_lines", "explain"]

SHOWN: Final = 3
"""How many tests are named of those that run and need the same."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of one test before it runs.

    :param needs: its requirements on hosts, as text; empty if it has none.
    :param hosts: the hosts that meet them, regardless of other tests.
    :param obstacle: why it will be skipped; None if it will run.
    """

    test: str
    needs: str
    hosts: tuple[str, ...]
    obstacle: Unmet | None


def explain(item: pytest.Item) -> Explanation:
    """Explain a collected test. Start nothing except the probes of its requirements."""
    if marked := skip_reason(item):
        return Explanation(item.nodeid, _needs(item), (), Unmet(f"its marker says: {marked}"))
    if not needs_hosts(item):
        return Explanation(item.nodeid, "", (), None)
    hosts = able_hosts(requirements_of(item), item.config.stash[SETTINGS])
    return Explanation(item.nodeid, _needs(item), hosts, unmet(item))


def _needs(item: pytest.Item) -> str:
    if not needs_hosts(item):
        return ""
    settings, needed = item.config.stash[SETTINGS], requirements_of(item)
    parts = [
        "1 host" if needed.hosts == 1 else f"{needed.hosts} hosts",
        f"the guest {needed.guest or settings.guest}",
        f"{needed.memory_mib or settings.memory_mib} MiB",
        f"{needed.cpus or settings.cpus} CPUs",
    ]
    parts += [f"the label {label}" for label in sorted(needed.labels)]
    parts += [name for name, wanted in (("ZFS", needed.zfs), ("KVM", needed.kvm)) if wanted]
    if needed.server:
        parts.append("a propolis-server" if needed.server == "propolis" else "the engine")
    return ", ".join(parts)


def as_lines(tests: Sequence[Explanation]) -> Iterator[str]:
    """Yield a table: the tests that will be skipped, by reason, and the requirements of the others."""
    skipped = [(test, test.obstacle) for test in tests if test.obstacle]
    for (obstacle, needs), group in _grouped(skipped, lambda found: (found[1], found[0].needs)):
        yield f"skipped: {obstacle.reason}"
        if needs:
            yield f"  needs  {needs}"
        if obstacle.remedy:
            yield f"  ->     {obstacle.remedy}"
        yield from (f"  {test.test}" for test, _ in group)
    running = [test for test in tests if not test.obstacle]
    for (needs, hosts), alike in _grouped(running, lambda test: (test.needs, test.hosts)):
        yield f"can run on {', '.join(hosts)}" if hosts else "needs no host"
        if needs:
            yield f"  needs  {needs}"
        yield from (f"  {test.test}" for test in alike[:SHOWN])
        if len(alike) > SHOWN:
            yield f"  ... and {len(alike) - SHOWN} more"
    yield f"{len(tests) - len(skipped)} tests will run, and {len(skipped)} will be skipped."


_Thing = TypeVar("_Thing")
_Key = TypeVar("_Key", bound=Hashable)


def _grouped(things: Iterable[_Thing], key: Callable[[_Thing], _Key]) -> Iterable[tuple[_Key, list[_Thing]]]:
    """Group items by key, in the order in which keys first occur."""
    groups: dict[_Key, list[_Thing]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups.items()


def as_json(tests: Iterable[Explanation]) -> list[dict[str, object]]:
    """Return the table as objects for JSON, one for each test."""
    return [
        {
            "test": test.test,
            "needs": test.needs,
            "hosts": list(test.hosts),
            "skipped": test.obstacle is not None,
            "reason": test.obstacle.reason if test.obstacle else "",
            "remedy": test.obstacle.remedy if test.obstacle else "",
        }
        for test in tests
    ]
