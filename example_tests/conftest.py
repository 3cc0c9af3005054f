"""A VM for a whole module: tests that do not disturb each other need not boot one each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from pytest_propolis import TestVm
from pytest_propolis.session.run import Run


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_vm(propolis: Run) -> AsyncIterator[TestVm]:
    """The default guest, booted once for all tests of a module."""
    async with propolis.vm_factory() as factory:
        yield await factory.start("shared")
