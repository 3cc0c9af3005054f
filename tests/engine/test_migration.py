"""Migration between two servers of one agent, as the API shows it: states, phases, ends of all kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis.fixtures.run import Run
from pytest_propolis.propolis_api import InstanceState, MigrationState
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.test_vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMORY_MIB = 128


@pytest_asyncio.fixture(loop_scope="module")
async def factory(propolis: Run) -> AsyncIterator[VmFactory]:
    async with propolis.vm_factory() as factory:
        yield factory


@pytest_asyncio.fixture(loop_scope="module")
async def vm(factory: VmFactory) -> TestVm:
    return await factory.start("vm", guest="micro", cpus=1, memory_mib=MEMORY_MIB)


async def test_the_guest_lives_on_at_the_target_and_the_source_is_destroyed(factory: VmFactory, vm: TestVm) -> None:
    await vm.run("word=before; mkdir /tmp/d; cd /tmp/d")
    target = await factory.successor(vm)
    await target.migrate_from(vm)
    assert await target.run("echo $word; pwd") == "before\n/tmp/d"
    await target.wait_for_state(InstanceState.RUNNING)
    await vm.wait_for_state(InstanceState.DESTROYED)
    came, left = await target.get_migration_state(), await vm.get_migration_state()
    assert came.migration_in
    assert came.migration_in.state is MigrationState.FINISH
    assert left.migration_out
    assert left.migration_out.state is MigrationState.FINISH
    assert came.migration_in.id == left.migration_out.id
