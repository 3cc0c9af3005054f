"""Imports without pytest's import hook and without garbage collections."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence

import pytest

from pytest_propolis.session.internals import quick_imports


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    yield
    if was_enabled:
        gc.enable()


def rewrites(finders: Sequence[object]) -> bool:
    return any(type(finder).__name__ == "AssertionRewritingHook" for finder in finders)


@pytest.mark.parametrize("collects", [True, False])
def test_everything_is_as_before_when_modules_are_imported(collects: bool) -> None:
    (gc.enable if collects else gc.disable)()
    before = list(sys.meta_path)
    assert rewrites(before)
    with quick_imports():
        assert (gc.isenabled(), rewrites(sys.meta_path)) == (False, False)
    assert (gc.isenabled(), sys.meta_path) == (collects, before)


def test_everything_is_as_before_when_an_import_fails() -> None:
    gc.enable()
    before = list(sys.meta_path)
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert (gc.isenabled(), sys.meta_path) == (True, before)


def test_a_finder_that_is_added_meanwhile_stays() -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            return None

    before = list(sys.meta_path)
    try:
        with quick_imports():
            sys.meta_path.insert(0, Finder)
        assert Finder in sys.meta_path
        assert [finder for finder in sys.meta_path if finder is not Finder] == before
    finally:
        sys.meta_path.remove(Finder)
