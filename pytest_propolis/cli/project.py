"""The pytest project that a person stands in: what its plugins and its conftest.py add."""

from __future__ import annotations

from typing import Final

import pytest

from ..errors import ConfigError
from ..guests.registry import GuestRegistry

__all__ = ["guests_here"]


_ARGUMENTS: Final = ("-p", "propolis", "--assert=plain")
"""Load this plugin also where pytest loads none by itself, and rewrite nothing: what this process has imported already
cannot be rewritten any more, and pytest would warn of it."""


def guests_here() -> GuestRegistry:
    """All guests that a test in this directory could have: built-in ones, and those of plugins and of ``conftest.py``.

    pytest itself reads its configuration for that, and stops before it looks for tests.

    :raises ConfigError: when it cannot; what pytest says goes to standard error.
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
    """A plugin that takes the place of pytest's own main part."""

    guests: GuestRegistry | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> pytest.ExitCode:
        adapters = config.hook.pytest_propolis_guests(config=config)
        self.guests = GuestRegistry(adapter for some in adapters for adapter in some)
        return pytest.ExitCode.OK
