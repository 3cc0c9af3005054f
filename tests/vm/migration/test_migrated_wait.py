"""Waiting until a guest has migrated. Servers in the test, whose hand-over is held."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from migration_rig import migrated, migration_rig, spec_of

from pytest_propolis.engine.migration.failure import MigrationFailed
from pytest_propolis.engine.migration.protocol import HandedOver, Message, MigrationChannel
from pytest_propolis.propolis_api import InstanceState, InstanceStateMonitorResponse, MigrationState
from pytest_propolis.propolis_api.client import PropolisClient
from pytest_propolis.vm.migration import until_migrated


@pytest.mark.parametrize("handed_over", [True, False])
async def test_a_migration_is_done_when_the_guest_is_handed_over_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_over: bool
) -> None:
    decided = asyncio.Event()
    send = MigrationChannel.send

    async def send_when_decided(channel: MigrationChannel, message: Message) -> None:
        if isinstance(message, HandedOver):
            await decided.wait()
            if not handed_over:
                raise MigrationFailed("the source keeps its guest")
        await send(channel, message)

    monitor = PropolisClient.instance_state_monitor
    seen: list[MigrationState] = []

    async def monitor_and_keep(client: PropolisClient, gen: int) -> InstanceStateMonitorResponse:
        if seen[-1:] == [MigrationState.FINISH]:
            decided.set()  # it was seen, and what comes next is waited for
        answer = await monitor(client, gen)
        seen.extend(side.state for side in (answer.migration.migration_in,) if side)
        return answer

    monkeypatch.setattr(MigrationChannel, "send", send_when_decided)
    monkeypatch.setattr(PropolisClient, "instance_state_monitor", monitor_and_keep)
    async with migration_rig(tmp_path) as rig:
        source, target = await rig.node("source"), await rig.node("target")
        await source.run(spec_of())
        await target.migrate_from(source.address)
        async with asyncio.timeout(60):
            failure = await until_migrated(target.client, None)
        assert decided.is_set()
        if handed_over:
            assert failure is None
            await migrated(source, target)
        else:
            assert failure
            await target.wait_for(InstanceState.FAILED)
            await source.wait_for(InstanceState.RUNNING)
