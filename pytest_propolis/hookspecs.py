"""Hooks that other plugins implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .guests.adapter import GuestAdapter
    from .vm.vm import TestVm


@pytest.hookspec
def pytest_propolis_guests(config: pytest.Config) -> Iterable[GuestAdapter]:  # type: ignore[empty-body]
    """Return guest adapters to add to the built-in ones. Called once, when the first VM is asked for."""


@pytest.hookspec
def pytest_propolis_vm_created(vm: TestVm, config: pytest.Config) -> None:
    """A VM was made for a test; it does not run yet. Called in the test's event loop."""
