"""The marker ``multi_node``: how many hosts a test needs at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

__all__ = ["DESCRIPTION", "HostsNeeded", "hosts_needed"]

DESCRIPTION: Final = "multi_node(n, labels=()): the test needs n distinct hosts, which remote_hosts gives it"
MOST: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsNeeded:
    """The hosts that a test needs at once."""

    count: int
    labels: frozenset[str]


def hosts_needed(node: pytest.Item | pytest.Collector) -> HostsNeeded | None:
    """Return what the marker of a test says; None without one.

    :raises pytest.UsageError: when its arguments are wrong, naming the test.
    """
    marker = node.get_closest_marker("multi_node")
    if marker is None:
        return None
    where = f"{node.nodeid}: the marker multi_node"
    if set(marker.kwargs) - {"n", "labels"}:
        wrong = ", ".join(sorted(set(marker.kwargs) - {"n", "labels"}))
        raise pytest.UsageError(f"{where} has no argument {wrong}: it takes n and labels")
    if len(marker.args) + ("n" in marker.kwargs) != 1:
        raise pytest.UsageError(f"{where} takes one number of hosts, as in multi_node(2)")
    count = marker.args[0] if marker.args else marker.kwargs["n"]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise pytest.UsageError(f"{where}: {count!r} is not a number of hosts from 1 to {MOST}")
    labels = marker.kwargs.get("labels", ())
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise pytest.UsageError(f"{where}: labels must be a list of words, and is {labels!r}")
    return HostsNeeded(count=count, labels=frozenset(labels))
