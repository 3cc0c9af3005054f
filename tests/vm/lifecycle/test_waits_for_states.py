"""Waits for a state of a VM: by its name, and for one that cannot come. QEMU runs, no guest comes up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from pytest_propolis.errors import ConfigError, VmStateError
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory(propolis: Run) -> AsyncIterator[VmFactory]:
    async with propolis.vm_factory() as factory:
        yield factory


@pytest_asyncio.fixture(loop_scope="module")
async def vm(factory: VmFactory, request: pytest.FixtureRequest) -> TestVm:
    """A server without a VM."""
    return await factory.create(f"vm{abs(hash(request.node.name))}", guest="micro", cpus=1, memory_mib=128)


async def test_a_state_that_cannot_come_any_more_is_not_waited_for(vm: TestVm) -> None:
    await vm.launch()
    await vm.stop()
    with pytest.raises(VmStateError, match="Destroyed, and will not be Running any more"):
        await vm.wait_for_state(InstanceState.RUNNING)


async def test_a_state_is_waited_for_by_its_name(vm: TestVm) -> None:
    await vm.launch()
    await vm.wait_for_state("Running", timeout_s=60)


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        ("Runing", "did you mean 'Running'?"),
        ("running", "did you mean 'Running'?"),
        (None, "it must be 'Creating' or"),
        (5, "it must be 'Creating' or"),
        (["Running"], "it must be 'Creating' or"),
    ],
)
async def test_what_is_no_state_is_refused_at_once(vm: TestVm, state: Any, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await vm.wait_for_state(state)
    assert f"the state to wait for is {state!r}" in caught.value.message
    assert hint in (caught.value.hint or "")
