"""The status of runs as lines for a terminal of any width."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from .snapshot import HostStatus, RunningTest, Snapshot, WaitingTests

__all__ = ["fit", "run_lines"]

NARROW: Final = 60
"""Below this width, in cells, what is less important is left out."""

ELLIPSIS: Final = "…"


def run_lines(snapshot: Snapshot, *, width: int, now_s: float) -> Iterator[str]:
    """Yield what a person wants to know of a run, each line at most so many cells wide.

    The order is that of importance: lines at the end may be cut off.
    """
    wide = width >= NARROW
    for line in (
        _summary(snapshot, now_s, wide=wide),
        *_hosts(snapshot, now_s, wide=wide),
        *_running(snapshot.running, now_s, width=width),
        *_waiting(snapshot.waiting),
    ):
        yield fit(line, width)


def _summary(snapshot: Snapshot, now_s: float, *, wide: bool) -> str:
    total = str(snapshot.tests or "?")
    parts = [f"{snapshot.finished}/{total} tests"]
    if snapshot.failed:
        parts.append(f"{snapshot.failed} failed")
    parts += [age(now_s - snapshot.since), f"{snapshot.forks_per_s:.1f} forks/s"]
    if wide:
        parts.append(f"pid {snapshot.run} in {snapshot.directory}")
    return ", ".join(parts)


def _hosts(snapshot: Snapshot, now_s: float, *, wide: bool) -> Iterator[str]:
    name = max((cells(host.name) for host in snapshot.hosts), default=0)
    for host in snapshot.hosts:
        yield f"  {pad(host.name, name)}  {_host(host, now_s, wide=wide)}".rstrip()


def _host(host: HostStatus, now_s: float, *, wide: bool) -> str:
    if host.state == "lost":
        return "lost"
    parts = [f"{host.used}/{host.slots} slots"]
    if wide and host.used_memory_mib:
        parts.append(f"{host.used_memory_mib}/{host.memory_mib} MiB")
    parts += [f"making {made.guest} for {age(now_s - made.since)}" for made in host.making]
    if wide and host.templates:
        parts.append(f"templates: {', '.join(host.templates)}")
    return ", ".join(parts)


def _running(tests: Sequence[RunningTest], now_s: float, *, width: int) -> Iterator[str]:
    if tests:
        yield "running"
    rows = [(age(now_s - test.since), ",".join(test.hosts) or "-", test.worker, test.test) for test in _oldest(tests)]
    widths = [max(map(cells, column)) for column in list(zip(*rows, strict=True))[:3]] if rows else []
    for row in rows:
        columns = row[:3] if width >= NARROW else row[:1]
        head = "  ".join(pad(text, size) for text, size in zip(columns, widths, strict=False) if size)
        yield f"  {head}  {fit_end(row[3], width - cells(head) - 4)}"


def _oldest(tests: Iterable[RunningTest]) -> list[RunningTest]:
    return sorted(tests, key=lambda test: test.since)


def _waiting(waiting: Sequence[WaitingTests]) -> Iterator[str]:
    if waiting:
        yield f"waiting: {sum(some.count for some in waiting)}"
    for some in sorted(waiting, key=lambda some: -some.count):
        yield f"  {some.count:>4}  {some.reason}" if some.count > 1 else f"     1  {some.tests[0]}: {some.reason}"


def age(seconds: float) -> str:
    """Return how long ago something was: ``7s``, ``3m04s``, ``2h05m``."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def cells(text: str) -> int:
    """Return how many cells a text takes on a terminal."""
    return sum(map(_width, text))


def pad(text: str, width: int) -> str:
    """Return a text with spaces behind it up to a width."""
    return text + " " * (width - cells(text))


def fit(text: str, width: int) -> str:
    """Return a text without control characters, cut off at its end where it is wider than so many cells."""
    text = _plain(text)
    return text if cells(text) <= width else _taken(text, width - 1) + ELLIPSIS[: max(0, width)]


def fit_end(text: str, width: int) -> str:
    """Return the same, cut off at its beginning: the end of a node id identifies it best."""
    text = _plain(text)
    return text if cells(text) <= width else ELLIPSIS[: max(0, width)] + _taken(text[::-1], width - 1)[::-1]


def _taken(text: str, width: int) -> str:
    taken, used = [], 0
    for character in text:
        used += _width(character)
        if used > width:
            break
        taken.append(character)
    return "".join(taken)


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
