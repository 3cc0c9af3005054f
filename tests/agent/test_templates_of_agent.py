"""The agent's templates: each is made by one client, and found by the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from agent_rig import AgentRig
from migration_rig import spec_of

from pytest_propolis.agent_api.boot_source import Firmware
from pytest_propolis.agent_api.messages import Fault
from pytest_propolis.agent_api.templates import ForkVm, FreezeVm, TemplateMaking, TemplateNeeded
from pytest_propolis.errors import BootError, TemplateError
from pytest_propolis.propolis_api import FromSpec, InstanceEnsureRequest, SpecInit
from pytest_propolis.vm.instance_spec.builder import instance_properties

DEADLINE_S = 60.0
NEEDED = TemplateNeeded(
    title="nothing",
    boot=Firmware(),
    spec=spec_of(),
    properties=instance_properties("template"),
    disks=(),
    guest="nothing",
    log_path="",
)
FROZEN = FreezeVm(session="", console="", warmup_input="", warmup_marker="")


class Offers:
    """The VMs that clients were offered to make a template of."""

    def __init__(self, rig: AgentRig) -> None:
        self.rig = rig
        self.made: asyncio.Queue[TemplateMaking] = asyncio.Queue()

    def get(self, client: str = "client") -> asyncio.Task[str]:
        """Have a client request the template."""
        progress: Callable[[str], None] = lambda line: None  # noqa: E731
        return asyncio.create_task(
            self.rig.templates.get(client, NEEDED, progress=progress, on_build_needed=self.made.put_nowait)
        )

    async def next(self) -> TemplateMaking:
        async with asyncio.timeout(DEADLINE_S):
            return await self.made.get()


@pytest.fixture
def offers(rig: AgentRig) -> Offers:
    return Offers(rig)


async def make(rig: AgentRig, offers: Offers) -> str:
    """Make the template of a machine without a guest."""
    getting = offers.get()
    making = await offers.next()
    vm = rig.registry.find_vm(making.id)
    assert vm is not None
    assert vm.engine is not None
    init = SpecInit(FromSpec(spec=making.spec))
    await vm.engine.ensure(InstanceEnsureRequest(properties=NEEDED.properties, init=init))
    rig.templates.freeze(making.id, FROZEN)
    return await getting


async def test_it_is_made_once_and_then_found(rig: AgentRig, offers: Offers) -> None:
    key = await make(rig, offers)
    assert await offers.get() == key
    assert offers.made.empty()
    assert rig.registry.list_vms() == []


async def test_a_fork_of_it_belongs_to_the_client_that_requests_it(rig: AgentRig, offers: Offers) -> None:
    key = await make(rig, offers)
    forked = await rig.templates.fork("client", ForkVm(template=key, name="fork", group="test", log_path=""))
    (listed,) = rig.registry.list_vms()
    assert (listed.id, listed.name, listed.client) == (forked.id, "fork", "client")


async def test_a_client_that_gives_up_ends_the_wait_of_all_with_its_reason(rig: AgentRig, offers: Offers) -> None:
    await rig.registry.admit("other", pid=os.getpid())
    waiting = [offers.get("client"), offers.get("other")]
    making = await offers.next()
    rig.templates.give_up(making.id, Fault.of(BootError("no prompt came", console_tail=("panic",))))
    for request in waiting:
        with pytest.raises(BootError, match="no prompt came") as caught:
            await request
        assert caught.value.console_tail == ("panic",)
    assert offers.made.empty()
    assert rig.registry.list_vms() == []


async def test_one_that_could_not_be_made_is_tried_again_by_the_next_run_only(rig: AgentRig, offers: Offers) -> None:
    first = offers.get()
    rig.templates.give_up((await offers.next()).id, Fault.of(BootError("no prompt came")))
    with pytest.raises(BootError):
        await first
    with pytest.raises(TemplateError, match="no prompt came"):
        await offers.get()
    assert offers.made.empty()
    rig.templates.forget_failures()
    await make(rig, offers)


async def test_a_vm_that_is_no_template_cannot_be_frozen(rig: AgentRig) -> None:
    vm = await rig.registry.create_vm("client", rig.vm())
    with pytest.raises(TemplateError, match=f"VM {vm.id} is not about to become a template"):
        rig.templates.freeze(vm.id, FROZEN)


async def test_a_fork_of_an_unknown_template_is_refused(rig: AgentRig) -> None:
    with pytest.raises(TemplateError, match="template nothing does not exist any more"):
        await rig.templates.fork("client", ForkVm(template="nothing", name="fork", group="test", log_path=""))
