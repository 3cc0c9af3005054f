"""The pytest project that a person stands in: what its plugins and its conftest.py add."""

from __future__ import annotations

import pytest

from ..errors import ConfigError
from ..guests.registry import GuestRegistry

__all__ = ["guests_here"]


def guests_here() -> GuestRegistry:
    """All guests that a test in this directory could have: built-in ones, and those of plugins and of ``conftest.py``.

    pytest itself reads its configuration for that, and stops before it looks for tests.

    :raises ConfigError: when it cannot; what it says goes to standard error.
    """
    reader = _Reader()
    status = pytest.main([], plugins=[reader])
    if reader.guests is None:
        raise ConfigError(
            f"pytest cannot read its configuration in this directory (exit status {int(status)})",
            hint="see what it says above, or go to another directory",
        )
    return reader.guests


class _Reader:
    """A plugin that takes the place of pytest's own main part."""

    guests: GuestRegistry | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> pytest.ExitCode:
        adapters = config.hook.pytest_propolis_guests(config=config)
        self.guests = GuestRegistry(adapter for some in adapters for adapter in some)
        return pytest.ExitCode.OK
