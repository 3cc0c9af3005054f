"""The names that the package offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pytest_propolis
from pytest_propolis import errors

IMPORT_AND_LIST = """
import sys
before = set(sys.modules)
import pytest_propolis
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


@pytest.mark.parametrize("name", pytest_propolis.__all__)
def test_a_public_name_is_what_its_own_module_has(name: str) -> None:
    offered = getattr(pytest_propolis, name)

    assert offered.__name__ == name
    assert offered is getattr(sys.modules[offered.__module__], name)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(pytest_propolis.__all__)


def test_public_names_are_sorted() -> None:
    assert pytest_propolis.__all__ == sorted(pytest_propolis.__all__)


def test_dir_shows_the_public_names() -> None:
    assert set(pytest_propolis.__all__) <= set(dir(pytest_propolis))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TestVN'"):
        pytest_propolis.TestVN  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_nothing_beyond_the_standard_library() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_LIST], capture_output=True, text=True, check=True, timeout=60
    )

    loaded = set(finished.stdout.split())
    assert "pytest_propolis" in loaded
    assert loaded - {"pytest_propolis"} <= sys.stdlib_module_names
