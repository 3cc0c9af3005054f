"""The guest with ZFS, for the tests of its pool."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from zfs_guest import DebianZfs, make_pool

from pytest_propolis import TestVm
from pytest_propolis.guests.adapter import GuestAdapter
from pytest_propolis.session.run import Run


@pytest.hookimpl
def pytest_propolis_guests() -> list[GuestAdapter]:
    return [DebianZfs()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(propolis: Run) -> AsyncIterator[TestVm]:
    """A guest with ZFS and the pool ``tank``."""
    async with propolis.vm_factory() as factory:
        vm = await factory.start("zfs", guest="debian-zfs", memory_mib=1536, boot="cold")
        await make_pool(vm, "tank")
        yield vm
