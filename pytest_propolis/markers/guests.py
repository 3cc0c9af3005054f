"""The marker ``guest_os``: a test runs once per guest that it names."""

from __future__ import annotations

import pytest

from .declarations import MarkerError, declared
from .requirements import GUEST_FIXTURE, guest_named

__all__ = ["parametrize_guests"]


def parametrize_guests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test with its guests, and check the arguments of all its markers.

    Errors are those of the collection, so that a misspelt marker does not look like a test that passes.
    """
    try:
        found = declared(metafunc)
        names = found.get("guest_os", {}).get("names", ())
        for name in names:
            guest_named(metafunc.config, name)
    except (MarkerError, pytest.UsageError) as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if names:
        if GUEST_FIXTURE not in metafunc.fixturenames:
            metafunc.fixturenames.append(GUEST_FIXTURE)
        metafunc.parametrize(GUEST_FIXTURE, names, indirect=True)
