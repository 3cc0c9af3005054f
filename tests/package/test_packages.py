"""The size of packages: what a reader has to look through to find a module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest_propolis

ROOT: Final = Path(pytest_propolis.__file__).parent
MOST_MODULES: Final = 15


def test_no_package_has_more_modules_than_a_reader_can_survey() -> None:
    packages = {path.parent for path in ROOT.rglob("__init__.py")}
    sizes = {package: len([path for path in package.glob("*.py") if path.stem != "__init__"]) for package in packages}
    assert {str(package): size for package, size in sizes.items() if size > MOST_MODULES} == {}


def test_no_module_has_the_name_of_a_test() -> None:
    assert [path for path in ROOT.rglob("*.py") if re.match(r"test_|.*_test$", path.stem)] == []
