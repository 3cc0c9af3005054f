"""Guests on an SSH host against guests here: how much longer a command and a fork take there."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from statistics import median
from typing import Final

from pytest_propolis.hosts.ssh_host import SshHost
from pytest_propolis.vm.factory import VmFactory

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import milliseconds, timed_block
from .ssh_hosts import SshRig, can_make_rigs, connected_hosts, ssh_rig

__all__ = ["factory_on", "measure"]

BLOCKS: Final = 10
BLOCK: Final = 50
WARM_UP: Final = 50
FORKS: Final = 15
COMMAND_BOUND_S: Final = 0.6e-3
FORK_BOUND_S: Final = 10e-3


def measure(options: Options) -> list[Figure]:
    if not can_make_rigs():
        say("ssh_guests: no hosts can be made here; it takes root, and sshd")
        return []
    with ssh_rig("h1") as rig:
        return asyncio.run(_measure(rig, options))


async def _measure(rig: SshRig, options: Options) -> list[Figure]:
    async with Harness.open(options) as harness:
        with connected_hosts(rig, ["h1"]) as hosts:
            async with factory_on(hosts, harness) as there:
                return [await _commands(harness, there, options), await _forks(harness, there, options)]


async def _commands(harness: Harness, there: VmFactory, options: Options) -> Figure:
    """Run commands in a guest here and one there, in turns."""
    near = await harness.factory.start("near", guest="micro")
    far = await there.start("far", guest="micro")
    near_s: list[float] = []
    far_s: list[float] = []
    for vm in (near, far):
        await timed_block(lambda vm=vm: vm.run("true"), WARM_UP)  # type: ignore[misc]
    for _ in range(options.repeated(BLOCKS)):
        near_s += await timed_block(lambda: near.run("true"), BLOCK)
        far_s += await timed_block(lambda: far.run("true"), BLOCK)
    for vm in (near, far):
        await vm.aclose()
    return _added('added to run("true")', near_s, far_s, bound_s=COMMAND_BOUND_S)


async def _forks(harness: Harness, there: VmFactory, options: Options) -> Figure:
    """Start forks of templates here and there, in turns, up to the result of their first command."""
    near_s, far_s = [], []
    for _ in range(options.repeated(FORKS)):
        near_s.append(await _first_command_s(harness.factory))
        far_s.append(await _first_command_s(there))
    return _added("added to a fork, up to its first command", near_s, far_s, bound_s=FORK_BOUND_S)


async def _first_command_s(factory: VmFactory) -> float:
    began = time.perf_counter()
    vm = await factory.start(f"vm{len(factory.vms)}", guest="micro")
    await vm.run("true")
    took_s = time.perf_counter() - began
    assert vm.boot_kind == "warm"
    await vm.aclose()
    return took_s


def _added(name: str, near_s: Sequence[float], far_s: Sequence[float], *, bound_s: float) -> Figure:
    added_s = median(far_s) - median(near_s)
    say(f"ssh_guests: {name}, load {os.getloadavg()[0]:.1f}")
    return Figure(
        name=f"{name}, n={len(far_s)}",
        measured=f"{milliseconds(added_s)} (quickest {milliseconds(min(far_s) - min(near_s))})",
        floor=f"here {milliseconds(median(near_s))} (quickest {milliseconds(min(near_s))})",
        bound=f"<= {milliseconds(bound_s)}",
        met=added_s <= bound_s,
    )


def factory_on(hosts: list[SshHost], harness: Harness) -> AbstractAsyncContextManager[VmFactory]:
    """Open a factory of VMs on SSH hosts."""
    return VmFactory.on(
        hosts,
        settings=harness.settings,
        guests=harness.guests,
        group="benchmark",
        log_dir=harness.directory / secrets.token_hex(4),
        progress=say,
        made=lambda vm: None,
        artifact=lambda name: None,
    )
