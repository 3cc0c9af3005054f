"""Detect changes of the files that an agent was started from."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Installation"]

_PACKAGE: Final = Path(__file__).absolute().parents[1]


class Installation:
    """This project's modules, the directory of installed distributions, and the Python program, as they are now.

    An upgrade of a dependency changes the directory that it is installed in.
    """

    def __init__(self) -> None:
        self._seen = frozenset(_fingerprints())

    def has_changed(self) -> bool:
        """Return whether any of them was changed, added or removed since. Takes a few milliseconds."""
        return frozenset(_fingerprints()) != self._seen


def _fingerprints() -> Iterator[tuple[str, int, int]]:
    distributions = Path(str(msgspec.__file__)).absolute().parents[1]
    for path in (Path(sys.executable), distributions):
        yield _fingerprint(path)
    if _PACKAGE.is_dir():
        yield from _modules(str(_PACKAGE))
    else:
        yield _fingerprint(next(path for path in _PACKAGE.parents if path.exists()))  # the zip that it is in


def _modules(directory: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(directory) as found:
        for item in found:
            if item.name.endswith(".py"):
                status = item.stat()
                yield item.path, status.st_size, status.st_mtime_ns
            elif item.is_dir() and item.name != "__pycache__":
                yield from _modules(item.path)


def _fingerprint(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_size, status.st_mtime_ns
