"""The pytest project in the working directory, and the guests of its plugins and its conftest.py."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import pytest

from ..errors import ConfigError
from ..guests.registry import GuestRegistry
from ..session.ini_file import ini_directory, ini_values

__all__ = ["Project", "guests_here", "project_here", "tests_here"]

_Found = TypeVar("_Found")

_ARGUMENTS: Final = ("-p", "propolis", "--assert=plain")
"""Load this plugin even if plugin autoloading is off, and rewrite no assertions: pytest would warn that modules already
imported by this process cannot be rewritten."""


@dataclass(frozen=True, slots=True)
class Project:
    """The guests and settings of a project.

    :param guests: the built-in guests, and those of its plugins and ``conftest.py``.
    :param ini: the values of this plugin in its configuration file, by option name.
    :param ini_directory: the directory of that file.
    """

    guests: GuestRegistry
    ini: Mapping[str, str]
    ini_directory: Path


def guests_here() -> GuestRegistry:
    """Return the guests of `project_here`."""
    return project_here().guests


def project_here() -> Project:
    """Return the project in this directory.

    pytest itself loads its configuration for this, and stops before collection.

    :raises ConfigError: if it cannot; pytest's messages go to standard error.
    """
    reader = _Reader()
    try:
        status = pytest.main([*_ARGUMENTS], plugins=[reader])
    except Exception as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error
    if reader.project is None:
        raise _unreadable(f"exit status {int(status)}")
    return reader.project


def tests_here(arguments: Sequence[str], look: Callable[[pytest.Item], _Found]) -> list[_Found]:
    """Collect tests as ``pytest`` in this directory would, and inspect each. None is run.

    :param arguments: further ones for pytest: paths, options.
    :raises ConfigError: if they cannot be collected, with pytest's output.
    """
    collector = _Collector(look)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            status = pytest.main([*_ARGUMENTS, "--collect-only", "-q", *arguments], plugins=[collector])
    except Exception as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise ConfigError(
            f"pytest cannot collect the tests (exit status {int(status)}): {output.getvalue().strip()}",
            hint="see what `pytest --collect-only` says here",
        )
    return collector.found


def _unreadable(why: str) -> ConfigError:
    return ConfigError(
        f"pytest cannot read its configuration in this directory ({why})",
        hint="see what `pytest --collect-only` says here, or go to another directory",
    )


class _Reader:
    """A plugin that replaces pytest's main loop."""

    project: Project | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> pytest.ExitCode:
        adapters = config.hook.pytest_propolis_guests(config=config)
        guests = GuestRegistry(adapter for some in adapters for adapter in some)
        self.project = Project(guests, ini_values(config), ini_directory(config))
        return pytest.ExitCode.OK


class _Collector(Generic[_Found]):
    """A plugin that inspects the collected tests."""

    def __init__(self, look: Callable[[pytest.Item], _Found]) -> None:
        self._look = look
        self.found: list[_Found] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.found = [self._look(item) for item in session.items]
