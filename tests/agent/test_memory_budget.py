"""VMs are admitted while there is memory for them."""

from __future__ import annotations

import asyncio

import pytest

from pytest_propolis.agent import budget
from pytest_propolis.agent.budget import MemoryBudget, fork_cost_mib
from pytest_propolis.errors import HostBusy, ResourceExhausted


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "HOLD_S", 0.01)


def host(*, total: int = 1600, available: int = 1600) -> MemoryBudget:
    return MemoryBudget(total=lambda: total, available=lambda: available)


async def test_vms_are_admitted_up_to_the_limit_and_not_beyond() -> None:
    memory = host()
    await memory.reserve("one", 1000)
    await memory.reserve("two", 500)
    with pytest.raises(HostBusy, match="1500 of 1500 MiB are reserved for 2 VMs"):
        await memory.reserve("three", 1)


async def test_what_is_given_back_admits_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "HOLD_S", 60)
    memory = host()
    await memory.reserve("one", 1000)
    waiting = asyncio.create_task(memory.reserve("two", 1000))
    await asyncio.sleep(0)
    assert not waiting.done()
    memory.release("one")
    await waiting


async def test_what_others_have_taken_counts_too() -> None:
    memory = host(available=700)
    await memory.reserve("one", 100)
    await memory.reserve("two", 600)
    with pytest.raises(HostBusy, match="700 MiB are free now"):
        await memory.reserve("three", 601)


async def test_who_is_alone_is_let_in() -> None:
    await host(available=10).reserve("one", 1000)


async def test_what_will_never_fit_is_an_error_at_once() -> None:
    with pytest.raises(ResourceExhausted, match="2000 MiB of memory does not fit on this host: it can give 1500 MiB"):
        await host().reserve("one", 2000)


async def test_giving_back_twice_is_fine() -> None:
    memory = host()
    await memory.reserve("one", 1000)
    await memory.reserve("two", 500)
    memory.release("one")
    memory.release("one")
    memory.release("never")
    with pytest.raises(HostBusy, match="500 of 1500 MiB are reserved for 1 VMs"):
        await memory.reserve("three", 1001)


def test_a_fork_counts_for_less_than_its_memory() -> None:
    assert fork_cost_mib(512) == 192
