"""A VM is removed when several requests arrive at once, as from a finalizer and a broken lifeline."""

from __future__ import annotations

import asyncio

from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory


async def test_a_vm_that_is_removed_several_times_at_once_is_gone(vm_factory: VmFactory, propolis: Run) -> None:
    vm = await vm_factory.create("vm", guest="micro")
    await vm.ensure()
    async with await propolis.host.client() as agent, asyncio.timeout(20):
        await asyncio.gather(*(agent.remove_vm(vm.id) for _ in range(8)))
        assert vm.id not in [listed.id for listed in await agent.list_vms()]
