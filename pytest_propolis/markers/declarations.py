"""The markers that tests declare, and the checks of their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import pytest

__all__ = ["MARKERS", "MarkerError", "declared", "descriptions", "needs_hosts"]

MOST_HOSTS: Final = 64


class MarkerError(Exception):
    """Raised when a marker's arguments are wrong; the text names the test, the marker, and the correct argument."""


def cold_boot() -> dict[str, Any]:
    """the VMs of this test boot from cold, instead of being forked from a booted guest"""
    return {}


def guest_os(*names: str) -> dict[str, Any]:
    """the test runs once per guest; without names it runs once, with the default guest, and any will do"""
    for name in names:
        _require(isinstance(name, str) and bool(name), f"{name!r} is not the name of a guest")
    _require(len(set(names)) == len(names), "a guest is named twice")
    return {"names": names}


def multi_node(n: int, *, labels: Collection[str] = ()) -> dict[str, Any]:
    """the test needs n distinct hosts, which remote_hosts gives it; each with all of the labels"""
    _require(_is_number(n, 1, MOST_HOSTS), f"{n!r} is not a number of hosts from 1 to {MOST_HOSTS}")
    return {"hosts": n, "labels": _labels(labels)}


def requires(
    *,
    zfs: bool = False,
    kvm: bool = False,
    memory_mib: int = 0,
    cpus: int = 0,
    server: str | None = None,
    labels: Collection[str] = (),
) -> dict[str, Any]:
    """the test needs a host with ZFS, with KVM, with so much memory, with these labels"""
    for name, value in (("zfs", zfs), ("kvm", kvm)):
        _require(isinstance(value, bool), f"{name} must be True or False, and is {value!r}")
    _require(_is_number(memory_mib, 0, 1 << 30), f"memory_mib must be a number of MiB, and is {memory_mib!r}")
    _require(_is_number(cpus, 0, 4096), f"cpus must be a number of processors, and is {cpus!r}")
    servers = ("engine", "propolis")
    if server is not None and server not in servers:
        raise ValueError(
            f"server must be {' or '.join(map(repr, servers))}, and is {server!r}; {_closest(server, servers)}"
        )
    return {
        "zfs": zfs,
        "kvm": kvm,
        "memory_mib": memory_mib,
        "cpus": cpus,
        "server": server,
        "labels": _labels(labels),
    }


def retry_elsewhere() -> dict[str, Any]:
    """the test runs again on another host if its host is lost while it runs"""
    return {}


MARKERS: Final[Mapping[str, Callable[..., dict[str, Any]]]] = MappingProxyType(
    {function.__name__: function for function in (cold_boot, guest_os, multi_node, requires, retry_elsewhere)}
)
"""Every marker, by name. A new one is a function above, and an entry here."""


def descriptions() -> list[str]:
    """Return the lines that ``pytest --markers`` shows."""
    return [
        f"{name}{inspect.signature(function).replace(return_annotation=inspect.Signature.empty)}: {function.__doc__}"
        for name, function in MARKERS.items()
    ]


def declared(node: pytest.Item | pytest.Collector | pytest.Metafunc) -> dict[str, dict[str, Any]]:
    """Return the checked arguments of a test's markers, by marker. The closest of several markers of a name counts.

    :raises MarkerError: when arguments are wrong.
    """
    source = node.definition if isinstance(node, pytest.Metafunc) else node
    found = {}
    for name, function in MARKERS.items():
        if (marker := source.get_closest_marker(name)) is not None:
            found[name] = _checked(source.nodeid, function, marker)
    return found


def _checked(test: str, function: Callable[..., dict[str, Any]], marker: pytest.Mark) -> dict[str, Any]:
    signature = inspect.signature(function)
    for keyword in marker.kwargs:
        if keyword not in signature.parameters:
            hint = _closest(keyword, signature.parameters) or f"it takes {', '.join(signature.parameters) or 'none'}"
            raise MarkerError(f"{test}: the marker {marker.name} has no argument {keyword!r}; {hint}")
    try:
        signature.bind(*marker.args, **marker.kwargs)
        return function(*marker.args, **marker.kwargs)
    except (TypeError, ValueError) as error:
        raise MarkerError(f"{test}: the marker {marker.name}: {error}") from None


def _closest(value: object, allowed: Iterable[object]) -> str:
    from ..field_checks import closest  # here, because a run without mistakes does not pay for it

    return closest(value, allowed)


def _labels(labels: object) -> frozenset[str]:
    _require(
        not isinstance(labels, str)
        and isinstance(labels, Collection)
        and all(isinstance(label, str) and label for label in labels),
        f"labels must be a list of words, and is {labels!r}",
    )
    assert isinstance(labels, Collection)
    return frozenset(labels)


def _is_number(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def needs_hosts(item: pytest.Item) -> bool:
    """Return whether a test uses VMs or hosts."""
    return "propolis" in getattr(item, "fixturenames", ())
