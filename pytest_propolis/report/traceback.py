"""The traceback of one of this package's errors, reduced to the user's own code."""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import pytest

from ..errors import PropolisError

__all__ = ["shorten"]

PACKAGE: Final = Path(__file__).parents[1]
STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
"""Directories inside the standard library's, which may contain the user's own code."""


def shorten(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Omit frames of this package, pytest-asyncio and the standard library.

    The text of such an error explains the failure, and a traceback can only add its origin in the user's own code.
    Without any such frame, the fixture's line stays.
    """
    if not isinstance(excinfo.value, PropolisError):
        return
    foreign = _foreign_prefixes()
    entries = list(_entries(excinfo.tb))
    own = [entry for entry in entries if not _is_foreign(_path(entry), foreign)]
    shown = own or [entry for entry in entries if _path(entry).parent == PACKAGE / "fixtures"] or entries
    excinfo.traceback = pytest.ExceptionInfo.from_exc_info((excinfo.type, excinfo.value, _chain(shown))).traceback


def _entries(entry: TracebackType | None) -> Iterator[TracebackType]:
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _chain(entries: Iterable[TracebackType]) -> TracebackType:
    """Return these entries as a new traceback: pytest follows the links of the original one, and ignores the filter."""
    chain = None
    for entry in reversed(list(entries)):
        chain = TracebackType(chain, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    assert chain is not None
    return chain


def _path(entry: TracebackType) -> Path:
    return Path(entry.tb_frame.f_code.co_filename)


def _foreign_prefixes() -> tuple[Path, ...]:
    import pluggy
    import pytest_asyncio

    return (PACKAGE, *(Path(inspect.getfile(part)).parent for part in (pytest.Item, pluggy, pytest_asyncio)))


def _is_foreign(path: Path, prefixes: tuple[Path, ...]) -> bool:
    standard = path.is_relative_to(STANDARD_LIBRARY) and not INSTALLED.intersection(path.parts)
    return standard or any(path.is_relative_to(prefix) for prefix in prefixes)
