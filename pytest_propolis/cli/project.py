"""The pytest project in the working directory: what its plugins and its conftest.py add."""

from __future__ import annotations

from typing import Final

import pytest

from ..errors import ConfigError
from ..guests.registry import GuestRegistry

__all__ = ["guests_here"]


_ARGUMENTS: Final = ("-p", "propolis", "--assert=plain")
"""Load this plugin even if plugin autoloading is off, and rewrite no assertions: pytest would warn that modules already
imported by this process cannot be rewritten."""


def guests_here() -> GuestRegistry:
    """Return all guests available to tests in this directory: built-in ones, and those of plugins and ``conftest.py``.

    pytest itself loads its configuration for this, and stops before collection.

    :raises ConfigError: if it cannot; pytest's messages go to standard error.
    """
    reader = _Reader()
    try:
        status = pytest.main([*_ARGUMENTS], plugins=[reader])
    except Exception as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error
    if reader.guests is None:
        raise _unreadable(f"exit status {int(status)}")
    return reader.guests


def _unreadable(why: str) -> ConfigError:
    return ConfigError(
        f"pytest cannot read its configuration in this directory ({why})",
        hint="see what `pytest --collect-only` says here, or go to another directory",
    )


class _Reader:
    """A plugin that replaces pytest's main loop."""

    guests: GuestRegistry | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> pytest.ExitCode:
        adapters = config.hook.pytest_propolis_guests(config=config)
        self.guests = GuestRegistry(adapter for some in adapters for adapter in some)
        return pytest.ExitCode.OK
