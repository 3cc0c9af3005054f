"""The size of packages: what a reader has to look through to find a module."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest_propolis

ROOT: Final = Path(pytest_propolis.__file__).parent
TESTS: Final = Path(__file__).parents[1]
MOST_MODULES: Final = 15


def test_no_package_has_more_modules_than_a_reader_can_survey() -> None:
    packages = {path.parent for path in ROOT.rglob("__init__.py")}
    sizes = {package: len([path for path in package.glob("*.py") if path.stem != "__init__"]) for package in packages}
    assert {str(package): size for package, size in sizes.items() if size > MOST_MODULES} == {}


def test_no_directory_of_tests_has_more_modules_than_a_reader_can_survey() -> None:
    sizes = Counter(path.parent for path in TESTS.rglob("*.py"))
    assert {str(directory): size for directory, size in sizes.items() if size > MOST_MODULES} == {}


def test_no_module_has_the_name_of_a_test() -> None:
    assert [path for path in ROOT.rglob("*.py") if re.match(r"test_|.*_test$", path.stem)] == []
