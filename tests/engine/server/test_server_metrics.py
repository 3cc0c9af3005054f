"""`propolis serve --metric-addr`: the metrics of an instance, from its creation to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from server_program import DEADLINE_S, ServerProgram, ended, machine, server_program, start

from pytest_propolis.oximeter.collector import Collector, NotCollected
from pytest_propolis.oximeter.samples import ProducerSamples, Sample
from pytest_propolis.oximeter.virtual_machine import RESET, VCPU_USAGE
from pytest_propolis.propolis_api import InstanceState, InstanceStateRequested
from pytest_propolis.propolis_api.connection.endpoint import Endpoint

BIOS: Final = ("bios", "127.0.0.1:0", "--accelerator", "tcg")


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers have their directories."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory) / "propolis"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector.opened() as collector, asyncio.timeout(DEADLINE_S):
        yield collector


async def instance_of(server: ServerProgram) -> UUID:
    return (await server.client.instance_get()).instance.properties.id


async def collected(collector: Collector, instance: UUID) -> list[list[Sample]]:
    await collector.wait_for_producer(instance)
    results = await collector.collect(instance)
    return [result.info for result in results if isinstance(result, ProducerSamples)]


async def test_an_instance_is_a_producer_from_its_creation_to_its_end(collector: Collector, base: Path) -> None:
    async with server_program(*BIOS, "--metric-addr", collector.address) as server:
        for _ in range(2):
            before = collector.registrations
            await server.ensure(machine())
            instance = await instance_of(server)
            usage, resets = await collected(collector, instance)
            assert collector.registrations == before + 1, "there was nothing to register without an instance"
            assert {sample.timeseries_name for sample in usage} == {VCPU_USAGE}
            assert [sample.fields["state"] for sample in usage] == ["run", "idle", "waiting"]
            assert {sample.fields["vcpu_id"] for sample in usage} == {0}
            (reset,) = resets
            assert (reset.timeseries_name, reset.measurement.datum.cumulative.value) == (RESET, 0)
            assert reset.fields["instance_id"] == str(instance)
            await server.run()
            await server.client.instance_state_put(InstanceStateRequested.REBOOT)
            while (await collected(collector, instance))[1][0].measurement.datum.cumulative.value != 1:
                await asyncio.sleep(0.1)
            await server.client.instance_state_put(InstanceStateRequested.STOP)
            await server.wait_for(InstanceState.DESTROYED)
            with pytest.raises(NotCollected, match="does not answer: Connection refused"):
                await collector.collect(instance)
        status, errors = await server.end()
    assert status == 0, errors
    assert list(base.iterdir()) == []


async def test_a_server_on_ipv6_serves_its_metrics_there(collector: Collector) -> None:
    async with server_program("bios", "[::1]:0", "--accelerator", "tcg", "--metric-addr", collector.address) as server:
        await server.ensure(machine())
        instance = await instance_of(server)
        await collected(collector, instance)
        (endpoint,) = collector.endpoints(instance)
        assert Endpoint.at(endpoint.address).host_and_port[0] == "::1"


async def test_a_registry_that_is_not_there_does_not_matter_to_the_vm(base: Path) -> None:
    async with server_program(*BIOS, "--metric-addr", "127.0.0.1:9") as server:
        await server.ensure(machine())
        await server.run()
        assert server.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            while b"another attempt" not in (told := await server.process.stderr.readline()):
                assert told, "it has ended"
        assert b"not registered at 127.0.0.1:9: Connection refused; another attempt in 0.25 s" in told
        await server.client.instance_state_put(InstanceStateRequested.STOP)
        await server.wait_for(InstanceState.DESTROYED)
        status, errors = await server.end()
    assert status == 0
    assert "Traceback" not in errors
    assert list(base.iterdir()) == []


async def test_the_metrics_end_with_a_qemu_that_is_killed(collector: Collector) -> None:
    async with server_program(*BIOS, "--metric-addr", collector.address) as server:
        await server.ensure(machine())
        await server.run()
        instance = await instance_of(server)
        await collected(collector, instance)
        (qemu,) = (
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if b"qemu-system" in _read(process / "cmdline") and f"PPid:\t{server.process.pid}" in _status(process)
        )
        os.kill(qemu, signal.SIGKILL)
        await server.wait_for(InstanceState.FAILED)
        with pytest.raises(NotCollected):
            await collector.collect(instance)
        assert (await server.end())[0] == 0


async def test_an_instance_that_migrates_is_polled_at_its_new_place(collector: Collector) -> None:
    options = (*BIOS, "--metric-addr", collector.address)
    async with server_program(*options) as source, server_program(*options) as target:
        await source.ensure(machine())
        await source.run()
        left = await instance_of(source)
        await collected(collector, left)
        await target.migrate_from(source)
        await target.wait_for(InstanceState.RUNNING)
        arrived = await instance_of(target)
        usage, resets = await collected(collector, arrived)
        assert len(usage) == 3
        assert resets[0].measurement.datum.cumulative.value == 0
        await source.wait_for(InstanceState.DESTROYED)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--metric-addr", "dns"), "'dns' finds the registry by the internal DNS of an Oxide rack"),
        (("--metric-addr", "DNS"), "which this platform does not have; give its IP:PORT"),
        (("--metric-addr", "nexus:12221"), "'nexus:12221' is neither disable nor dns nor IP:PORT"),
        (("--metric-addr", "127.0.0.1"), "'127.0.0.1' is neither disable nor dns nor IP:PORT"),
        (("--metric-addr", "127.0.0.1:99999"), "'127.0.0.1:99999' is neither disable nor dns nor IP:PORT"),
        (("--metric-addr", ""), "'' is neither disable nor dns nor IP:PORT"),
        (("--metric-addr", "127.0.0.1:0"), "'127.0.0.1:0' is where a registry listens, which is never at port 0"),
    ],
)
async def test_a_bad_address_for_metrics_ends_with_usage(
    base: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    status, errors = await ended(await start(*BIOS, *arguments))
    assert (status, errors.partition(":")[0]) == (2, "Usage")
    assert complaint in " ".join(errors.split())
    assert not base.exists()


async def test_metrics_need_a_server_with_an_ip_address(tmp_path: Path) -> None:
    status, errors = await ended(await start("bios", f"unix:{tmp_path}/s", "--metric-addr", "127.0.0.1:9"))
    assert status == 2
    assert "--metric-addr needs IP:PORT, where the server listens" in errors


async def test_metrics_are_disabled_in_words_as_upstream(base: Path) -> None:
    async with server_program(*BIOS, "--metric-addr", "Disable") as server:
        await server.ensure(machine())
        status, errors = await server.end()
    assert status == 0
    assert "register" not in errors


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _status(process: Path) -> str:
    return _read(process / "status").decode()
