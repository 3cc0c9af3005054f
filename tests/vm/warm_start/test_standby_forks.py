"""Forks that stand by: like any other, ready at once, and idle until then."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from own_agents import Factories, template_in

from pytest_propolis.agent_api.templates import ForkVm
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.propolis_api.client import PropolisClient
from pytest_propolis.settings import ChannelKind
from pytest_propolis.vm.instance_spec.builder import instance_properties

pytestmark = pytest.mark.requires(server="engine")

MICRO: dict[str, Any] = {"guest": "micro", "cpus": 1, "memory_mib": 128}


@pytest.mark.parametrize("channel", [pytest.param("console", marks=pytest.mark.slow), "port"])
async def test_a_fork_that_stood_by_is_like_any_other(factories: Factories, channel: ChannelKind) -> None:
    async with factories("run", standby=1) as factory:
        micro = {**MICRO, "channel": channel}
        first = await factory.start("first", **micro)
        assert "exec" in first.phases.took_s
        seeds = [await first.run("cat /proc/sys/kernel/random/uuid")]
        for number in range(50):
            vm = await factory.start(f"vm{number}", **micro)
            seeds.append(await vm.run("cat /proc/sys/kernel/random/uuid"))
            if "exec" not in vm.phases.took_s:
                break
            await vm.aclose()
        else:
            pytest.fail("none stood by")
        assert len(set(seeds)) == len(seeds)
        assert await vm.run("hostname") == vm.name
        assert vm.console_tail()[-1:] == (vm.name,)


@pytest.mark.slow
async def test_who_has_a_fork_run_need_not_wake_it_if_it_stood_by(factories: Factories, artifact_dir: Path) -> None:
    async with factories("run", standby=1) as factory:
        agent = factory.agent
        vm = await factory.start("vm", **MICRO)
        key = template_in(artifact_dir).name
        properties = instance_properties("asked")
        for number in range(50):
            request = ForkVm(
                template=key, name=f"asked{number}", group="run", log_path="/dev/null", run=properties, typed="hello"
            )
            forked = await agent.fork_vm(request)
            async with PropolisClient(agent.endpoint(forked.path)) as client:
                seen = (await client.instance_get()).instance
            assert seen.properties == properties
            assert seen.state is not InstanceState.FAILED
            await agent.remove_vm(forked.id)
            if forked.typed and not forked.took_s:
                break
        else:
            pytest.fail("none stood by")
        assert await vm.run("hostname") == "vm"


@pytest.mark.slow
async def test_what_stands_by_is_kept_from_the_processor(factories: Factories) -> None:
    async with factories("run", standby=1) as factory:
        await factory.start("vm", **MICRO)
        agent = (await factory.agent.info()).pid
        async with asyncio.timeout(60):
            while "T" not in _states_of_children(agent):
                await factory.agent.info()


def _states_of_children(pid: int) -> list[str]:
    states = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == pid:
                states.append(state)
    return states


@pytest.mark.slow
async def test_no_fork_stands_by_where_none_is_wanted(factories: Factories) -> None:
    async with factories("run", standby=0) as factory:
        for number in range(3):
            assert "exec" in (await factory.start(f"vm{number}", **MICRO)).phases.took_s
