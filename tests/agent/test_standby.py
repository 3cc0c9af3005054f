"""Forks are made ahead while the machine is idle, unless a number is set."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from pytest_propolis.agent.templates import standby
from pytest_propolis.agent.templates.fork_starter import ForkStarter
from pytest_propolis.agent.templates.standby import Standby
from pytest_propolis.engine.templates.template import Template
from pytest_propolis.errors import TemplateError

KIND = cast(Template, SimpleNamespace(key="kind"))


class FakeForks:
    """Counts the forks that it starts, and fails a given number of times."""

    def __init__(self, *, failures: int = 0) -> None:
        self.started = 0
        self.discarded = 0
        self.failures = failures

    async def start(self, *_arguments: object, **_options: object) -> Any:
        self.started += 1
        if self.failures:
            self.failures -= 1
            raise TemplateError("a fork does not start: it does not answer")
        return SimpleNamespace(fork=SimpleNamespace(has_ended=False))

    async def discard(self, _started: object) -> None:
        self.discarded += 1


class Processors:
    """A machine of one processor, as time goes by at each look."""

    def __init__(self) -> None:
        self.idle = False
        self.looks = 0
        self.idle_s = 0.0

    def __call__(self) -> float:
        self.looks += 1
        self.idle_s += standby.QUIET_S if self.idle else 0.0
        return self.idle_s

    async def looked_at(self, times: int) -> None:
        seen = self.looks
        while self.looks < seen + times:
            await asyncio.sleep(0)


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Processors:
    processors = Processors()
    monkeypatch.setattr(standby, "idle_s", processors)
    monkeypatch.setattr(standby, "QUIET_S", 1e-6)
    monkeypatch.setattr(standby, "QUIET_AFTER_MISS_S", 1e-6)
    monkeypatch.setattr(standby, "available_mib", lambda: 1 << 20)
    return processors


def keeping(forks: FakeForks, per_kind: int | Literal["auto"]) -> Standby:
    return Standby(cast(ForkStarter, forks), cast(Any, SimpleNamespace), per_kind=per_kind)


async def test_on_a_busy_machine_none_are_made_until_it_is_idle(processors: Processors) -> None:
    forks = FakeForks()
    ahead = keeping(forks, "auto")
    assert await ahead.claim(KIND, Path("/template")) is None
    await processors.looked_at(10)
    assert forks.started == 0
    processors.idle = True
    while not ahead.ready:
        await asyncio.sleep(0)
    assert await ahead.claim(KIND, Path("/template")) is not None
    await ahead.close()
    assert forks.discarded == forks.started - 1


async def test_as_many_as_were_asked_for_are_made_on_a_busy_machine_too(processors: Processors) -> None:
    forks = FakeForks()
    ahead = keeping(forks, 3)
    await ahead.claim(KIND, Path("/template"))
    while ahead.ready < 3:
        await asyncio.sleep(0)
    assert not processors.idle
    await ahead.close()
    assert forks.discarded == 3


async def test_a_start_that_fails_is_tried_again(processors: Processors) -> None:
    forks = FakeForks(failures=standby.MOST_FAILURES - 1)
    ahead = keeping(forks, 1)
    await ahead.claim(KIND, Path("/template"))
    while not ahead.ready:
        await asyncio.sleep(0)
    assert forks.started == standby.MOST_FAILURES
    await ahead.close()


async def test_a_kind_whose_starts_keep_failing_is_given_up_until_it_is_claimed_again(processors: Processors) -> None:
    forks = FakeForks(failures=standby.MOST_FAILURES)
    ahead = keeping(forks, 1)
    await ahead.claim(KIND, Path("/template"))
    assert ahead._making is not None
    await ahead._making
    assert (forks.started, ahead.ready) == (standby.MOST_FAILURES, 0)
    await ahead.claim(KIND, Path("/template"))
    while not ahead.ready:
        await asyncio.sleep(0)
    await ahead.close()


async def test_when_there_are_as_many_as_may_be_the_oldest_kind_gives_way(
    processors: Processors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "MOST", 3)
    forks = FakeForks()
    ahead = keeping(forks, 2)
    for number in range(2):
        await ahead.claim(cast(Template, SimpleNamespace(key=f"kind {number}")), Path("/template"))
        while ahead.ready < min(3, 2 * (number + 1)):
            await asyncio.sleep(0)
    while len(ahead._ready["kind 1"]) < 2:
        await asyncio.sleep(0)
    assert [len(ahead._ready[f"kind {number}"]) for number in range(2)] == [1, 2]
    await ahead.close()
