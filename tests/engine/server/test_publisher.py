"""The public state of a VM, as its observers see it."""

from __future__ import annotations

import asyncio

import pytest

from pytest_propolis.engine.server.publisher import PublisherGone, StatePublisher
from pytest_propolis.propolis_api import InstanceState


async def test_the_first_generation_is_one() -> None:
    publisher = StatePublisher(InstanceState.CREATING)
    seen = await publisher.wait_for(0)
    assert (seen.gen, seen.state) == (1, InstanceState.CREATING)
    assert await publisher.wait_for(1) == seen
    assert (seen.migration.migration_in, seen.migration.migration_out) == (None, None)


async def test_each_publication_is_one_generation_also_of_the_same_state() -> None:
    publisher = StatePublisher(InstanceState.CREATING)
    for gen in range(2, 5):
        publisher.publish(InstanceState.RUNNING)
        assert publisher.snapshot().gen == gen


async def test_observers_wait_for_their_generation_and_no_longer() -> None:
    publisher = StatePublisher(InstanceState.CREATING)
    second, third = (asyncio.create_task(publisher.wait_for(gen)) for gen in (2, 3))
    await asyncio.sleep(0)
    publisher.publish(InstanceState.STARTING)
    assert (await second).state is InstanceState.STARTING
    assert not third.done()
    publisher.publish(InstanceState.RUNNING)
    assert (await third).gen == 3


async def test_a_slow_observer_skips_states() -> None:
    publisher = StatePublisher(InstanceState.CREATING)
    observer = asyncio.create_task(publisher.wait_for(2))
    await asyncio.sleep(0)
    publisher.publish(InstanceState.STARTING)
    publisher.publish(InstanceState.RUNNING)
    seen = await observer
    assert (seen.gen, seen.state) == (3, InstanceState.RUNNING)


async def test_the_end_answers_those_who_wait_for_more() -> None:
    publisher = StatePublisher(InstanceState.CREATING)
    observers = [asyncio.create_task(publisher.wait_for(gen)) for gen in (2, 3)]
    await asyncio.sleep(0)
    publisher.publish(InstanceState.DESTROYED)
    publisher.close()
    assert (await observers[0]).state is InstanceState.DESTROYED
    with pytest.raises(PublisherGone):
        await observers[1]
    with pytest.raises(PublisherGone):
        await publisher.wait_for(9)


async def test_the_last_state_can_be_read_after_the_end() -> None:
    publisher = StatePublisher(InstanceState.CREATING)
    publisher.publish(InstanceState.FAILED)
    publisher.close()
    assert (await publisher.wait_for(2)).state is InstanceState.FAILED
    assert publisher.state is InstanceState.FAILED
