"""Repairs that are given up, of a volume in a QEMU without a guest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from engine_rig import DEADLINE_S

from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.qemu.monitor import MachineError
from pytest_propolis.engine.volumes.quorum import Quorum
from pytest_propolis.operating_system.child import NoJournal

SIZE_BYTES = 1 << 30
LATENCY_NS = 100_000_000


@pytest.fixture
def quorum() -> Quorum:
    return Quorum("volume", size_bytes=SIZE_BYTES, readonly=False)


@pytest_asyncio.fixture
async def machine(tmp_path: Path, quorum: Quorum) -> AsyncIterator[Machine]:
    qemu = await find_qemu(None)
    machine = Machine(
        program=qemu.system,
        arguments=[
            *qemu.arguments,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S"),
            *("-accel", "tcg,thread=single", "-machine", "q35", "-m", "64M", "-device", "isa-serial,chardev=com1"),
            *("-blockdev", json.dumps(quorum.node), "-device", "virtio-blk-pci,drive=volume"),
        ],
        log_path=tmp_path / "qemu.log",
        journal=NoJournal(),
        on_event=lambda _: None,
    )
    try:
        await machine.start()
        await machine.resume()
        yield machine
    finally:
        await machine.close()


async def add_null(machine: Machine, name: str, *, latency_ns: int = 0) -> str:
    """Add a replica without data; return its node."""
    options = {"node-name": name, "size": SIZE_BYTES, "latency-ns": latency_ns, "read-zeroes": True}
    await machine.execute("blockdev-add", driver="null-co", **options)
    return name


async def events_of(machine: Machine, repair: asyncio.Task[None], *, give_up: Quorum | None = None) -> list[str]:
    """Return what QEMU reports of a repair that fails, up to where the guest goes on."""
    reported: list[str] = []
    with machine.events("STOP", "RESUME", "JOB_STATUS_CHANGE") as events:
        async with asyncio.timeout(DEADLINE_S):
            while "RESUME" not in reported:
                name, data = await machine.next_event(events)
                reported.append(data.get("status", name))
                if give_up is not None and reported[-1] == "running":
                    await give_up.give_up_job(machine)
            with pytest.raises(MachineError):
                await repair
    return reported


async def test_a_repair_that_fails_is_cancelled_while_the_guest_stands_still(machine: Machine, quorum: Quorum) -> None:
    """QEMU 7.2 ends by SIGABRT when the guest writes meanwhile."""
    target = await add_null(machine, "replica")
    repair = asyncio.create_task(quorum.repair(machine, target=target, replaces=quorum.placeholders[0]))
    reported = await events_of(machine, repair)
    assert reported.index("paused") < reported.index("STOP") < reported.index("aborting") < reported.index("RESUME")


async def test_a_repair_that_is_given_up_is_cancelled_while_the_guest_stands_still(
    machine: Machine, quorum: Quorum
) -> None:
    for number, old in enumerate(quorum.placeholders):
        await quorum.swap(machine, old=old, new=await add_null(machine, f"good{number}", latency_ns=LATENCY_NS))
    target = await add_null(machine, "replica")
    repair = asyncio.create_task(quorum.repair(machine, target=target, replaces="good0"))
    reported = await events_of(machine, repair, give_up=quorum)
    assert reported.index("STOP") < reported.index("aborting")


async def test_a_repair_can_be_given_up_before_its_job_is_known_to_run(
    machine: Machine, quorum: Quorum, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, old in enumerate(quorum.placeholders):
        await quorum.swap(machine, old=old, new=await add_null(machine, f"good{number}", latency_ns=LATENCY_NS))
    target = await add_null(machine, "replica")
    execute = machine.execute

    async def execute_and_give_up(command: str, **arguments: Any) -> Any:
        answer = await execute(command, **arguments)
        if command == "blockdev-mirror":
            await quorum.give_up_job(machine)
        return answer

    monkeypatch.setattr(machine, "execute", execute_and_give_up)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(MachineError):
            await quorum.repair(machine, target=target, replaces="good0")
