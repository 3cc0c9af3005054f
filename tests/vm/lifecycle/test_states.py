"""A VM's life through the API: states, status codes, ends of all kinds. QEMU runs, no guest comes up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pytest
import pytest_asyncio
from raw_http import http
from websockets.exceptions import ConnectionClosed

from pytest_propolis.errors import ApiError, ConsoleClosed, ConsoleError, ShellError
from pytest_propolis.propolis_api import (
    FromMigration,
    FromSpec,
    InstanceEnsureRequest,
    InstanceState,
    InstanceStateRequested,
    MigrationTargetInit,
    SpecInit,
)
from pytest_propolis.propolis_api.client import PropolisClient
from pytest_propolis.session.run import Run
from pytest_propolis.vm.config import Nic
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

Call = Callable[[PropolisClient], Awaitable[object]]

NEEDS_A_VM: dict[str, Call] = {
    "instance_get": lambda client: client.instance_get(),
    "instance_spec_get": lambda client: client.instance_spec_get(),
    "state_monitor": lambda client: client.instance_state_monitor(0),
    "migrate_status": lambda client: client.instance_migrate_status(),
}
NEEDS_AN_ACTIVE_VM: dict[str, Call] = {
    "run": lambda client: client.instance_state_put(InstanceStateRequested.RUN),
    "stop": lambda client: client.instance_state_put(InstanceStateRequested.STOP),
    "reboot": lambda client: client.instance_state_put(InstanceStateRequested.REBOOT),
    "serial_history": lambda client: client.instance_serial_history(from_start=0),
    "nmi": lambda client: client.issue_nmi(),
    "volume replacement": lambda client: client.issue_crucible_vcr("disk-backend", "{}"),
}
OF_VOLUMES: dict[str, Call] = {
    "volume status": lambda client: client.disk_volume_status("disk-backend"),
    "snapshots": lambda client: client.issue_crucible_snapshot("disk-backend", uuid4()),
}

UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory(propolis: Run) -> AsyncIterator[VmFactory]:
    async with propolis.vm_factory() as factory:
        yield factory


@pytest_asyncio.fixture(loop_scope="module")
async def vm(factory: VmFactory, request: pytest.FixtureRequest) -> TestVm:
    """A server without a VM."""
    return await factory.create(f"vm{abs(hash(request.node.name))}", guest="micro", cpus=1, memory_mib=128)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unborn(factory: VmFactory) -> TestVm:
    """A server that never had a VM."""
    return await factory.create("unborn", guest="micro")


async def status_of(call: Awaitable[object]) -> int:
    with pytest.raises(ApiError) as caught:
        await call
    return caught.value.status


async def states_until(vm: TestVm, last: InstanceState) -> list[tuple[int, InstanceState]]:
    """Return the states that the state monitor reports, from the first generation to that state."""
    seen: list[tuple[int, InstanceState]] = []
    while not seen or seen[-1][1] is not last:
        answer = await vm.client.instance_state_monitor(seen[-1][0] + 1 if seen else 0)
        seen.append((answer.gen, answer.state))
    return seen


def request_for(vm: TestVm) -> InstanceEnsureRequest:
    return InstanceEnsureRequest(properties=vm.properties, init=SpecInit(FromSpec(spec=vm.spec)))


@pytest.mark.parametrize("name", [*NEEDS_A_VM, *NEEDS_AN_ACTIVE_VM, *OF_VOLUMES])
async def test_before_the_first_ensure_everything_answers_424(unborn: TestVm, name: str) -> None:
    call = (NEEDS_A_VM | NEEDS_AN_ACTIVE_VM | OF_VOLUMES)[name]
    with pytest.raises(ApiError) as caught:
        await call(unborn.client)
    assert (caught.value.status, caught.value.error_code) == (424, "NoInstance")
    assert caught.value.message == "Server not initialized (no instance)"


async def test_before_the_first_ensure_the_serial_websocket_is_accepted_and_dropped(unborn: TestVm) -> None:
    connection = await unborn.client.instance_serial(from_start=0)
    with pytest.raises(ConnectionClosed):
        await connection.recv()


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "complaint"),
    [
        ("GET", "/instance", {"api-version": "99.0.0"}, b"", "server does not support this API version: 99.0.0"),
        ("GET", "/instance", {"api-version": "5.0.1"}, b"", "server does not support this API version: 5.0.1"),
        ("GET", "/instance", {"api-version": "five"}, b"", 'bad value for header "api-version"'),
        (
            "PUT",
            "/instance/state",
            {"content-type": "text/plain"},
            b'"Run"',
            'expected content type "application/json"',
        ),
        ("GET", "/instance/serial/history?from_start=0&from_start=1", {}, b"", "duplicate field `from_start`"),
        ("GET", "/instance/serial?from_start=0&from_start=1", UPGRADE, b"", "duplicate field `from_start`"),
        ("GET", "/instance/serial", UPGRADE | {"api-version": "99.0.0"}, b"", "does not support this API version"),
    ],
)
async def test_what_upstream_cannot_read_answers_400(
    unborn: TestVm, method: str, path: str, headers: dict[str, str], body: bytes, complaint: str
) -> None:
    async with http(unborn) as client:
        answer = await client.request(method, path, content=body, headers=headers)
    assert answer.status_code == 400
    assert complaint in answer.json()["message"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("version", ["1.0.0", "5.0.0"])
async def test_older_versions_of_the_api_are_served(unborn: TestVm, version: str) -> None:
    async with http(unborn) as client:
        answer = await client.get("/instance", headers={"api-version": version})
    assert answer.status_code == 424


@pytest.mark.parametrize(
    "address", ["", "no address", "127.0.0.1:99999", "http://[::1", "http+unix:///x", "ftp://h:1", ":80"]
)
async def test_a_source_s_address_that_cannot_be_read_answers_400(vm: TestVm, address: str) -> None:
    init = FromMigration(migration_id=uuid4(), replace_components={}, src_addr=address)
    with pytest.raises(ApiError, match="src_addr") as caught:
        await vm.client.instance_ensure(InstanceEnsureRequest(properties=vm.properties, init=MigrationTargetInit(init)))
    assert caught.value.status == 400
    assert await status_of(vm.client.instance_get()) == 424  # nothing was begun


@pytest.mark.requires(server="engine")
async def test_the_agent_s_log_has_the_ids_of_refused_requests(unborn: TestVm) -> None:
    with pytest.raises(ApiError) as caught:
        await unborn.client.instance_get()
    assert unborn.endpoint.uds is not None
    assert f"request {caught.value.request_id}: 424" in unborn.endpoint.uds.with_name("agent.log").read_text()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/instance", b"{"),
        ("PUT", "/instance", b"{}"),
        ("PUT", "/instance/state", b'"Sleep"'),
        ("PUT", "/instance/state", b""),
        ("GET", "/instance/state-monitor", b'{"gen": -1}'),
        ("GET", "/instance/state-monitor", b""),
    ],
)
async def test_a_body_that_is_not_the_apis_answers_400(unborn: TestVm, method: str, path: str, body: bytes) -> None:
    async with http(unborn) as client:
        answer = await client.request(method, path, content=body)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("unable to parse JSON body: ")


@pytest.mark.requires(server="engine")
async def test_an_unknown_vm_and_an_unknown_path_answer_404(unborn: TestVm) -> None:
    async with http(unborn) as client:
        assert (await client.get(f"{unborn.endpoint.base_url.rpartition('/')[0]}/0123/instance")).status_code == 404
        assert (await client.get("/instance/nothing")).status_code == 404
        assert (await client.post("/instance")).status_code == 405


async def test_a_vm_is_created_then_runs_then_stops_and_the_monitor_counts(vm: TestVm) -> None:
    await vm.ensure()
    assert await states_until(vm, InstanceState.CREATING) == [(1, InstanceState.CREATING)]
    watching = asyncio.create_task(states_until(vm, InstanceState.DESTROYED))
    await vm.run_instance()
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.stop()
    seen = await watching
    order = [
        *(InstanceState.CREATING, InstanceState.STARTING, InstanceState.RUNNING),
        *(InstanceState.STOPPING, InstanceState.STOPPED, InstanceState.DESTROYED),
    ]
    # States in between may be skipped, but each has its generation.
    assert all(order[gen - 1] is state for gen, state in seen)
    assert seen[-1] == (6, InstanceState.DESTROYED)


async def test_a_second_ensure_answers_409_also_with_the_same_vm(vm: TestVm) -> None:
    await vm.ensure()
    with pytest.raises(ApiError) as caught:
        await vm.client.instance_ensure(request_for(vm))
    assert (caught.value.status, caught.value.error_code) == (409, "AlreadyInitialized")


async def test_what_was_created_already_is_run_and_booted(vm: TestVm) -> None:
    await vm.ensure()
    await vm.ensure()
    await vm.launch()
    await vm.launch()
    await vm.boot()
    await vm.boot()
    assert await vm.run("echo hello") == "hello"


@pytest.mark.requires(server="engine")
async def test_a_fork_is_launched_and_booted_twice(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro", boot="warm")
    await vm.ensure()
    await vm.launch()
    await vm.boot()
    assert vm.boot_kind == "warm"
    await vm.boot()
    assert await vm.run("echo hello") == "hello"


@pytest.mark.parametrize("channel", ["console", pytest.param("port", marks=pytest.mark.requires(server="engine"))])
async def test_a_guest_that_was_launched_and_not_waited_for_takes_no_commands_yet(
    vm_factory: VmFactory, channel: Literal["console", "port"]
) -> None:
    vm = await vm_factory.create(guest="micro", channel=channel, boot="cold")
    await vm.launch()
    with pytest.raises(ShellError, match="takes no commands yet") as refused:
        await vm.run("echo hello")
    assert "wait_to_boot" in str(refused.value.hint)
    await vm.boot()
    assert await vm.run("echo hello") == "hello"
    await vm.reset()
    with pytest.raises(ShellError, match="takes no commands yet"):
        await vm.get("/etc/passwd", Path("passwd"))


async def test_a_stopped_vm_boots_again(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="micro")
    await vm.stop()
    await vm.boot()
    assert (vm.boot_kind, await vm.run("echo hello")) == ("cold", "hello")


async def test_reboot_before_run_answers_403(vm: TestVm) -> None:
    await vm.ensure()
    with pytest.raises(ApiError) as caught:
        await vm.client.instance_state_put(InstanceStateRequested.REBOOT)
    assert caught.value.status == 403
    assert caught.value.error_code is not None
    assert caught.value.error_code.startswith("instance state change not allowed: ")


async def test_repeated_run_is_ignored(vm: TestVm) -> None:
    await vm.launch()
    await vm.run_instance()
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.run_instance()
    assert (await vm.client.instance_state_monitor(0)).gen == 3


@contextlib.asynccontextmanager
async def stalled_in_a_reboot(vm: TestVm, propolis: Run) -> AsyncIterator[None]:
    """A running VM whose QEMU answers nothing, so that its driver stays in a reboot."""
    await vm.launch()
    await vm.wait_for_state(InstanceState.RUNNING)
    pid = await qemu_pid(vm, propolis)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await vm.client.instance_state_put(InstanceStateRequested.REBOOT)
        await vm.wait_for_state(InstanceState.REBOOTING)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def qemu_pid(vm: TestVm, propolis: Run) -> int | None:
    async with await propolis.host.client() as agent:
        (pid,) = [listed.pid for listed in await agent.list_vms() if vm.endpoint.base_url.endswith(listed.id)]
    return pid


@pytest.mark.requires(server="engine")
async def test_a_reboot_during_a_reboot_is_ignored(vm: TestVm, propolis: Run) -> None:
    async with stalled_in_a_reboot(vm, propolis):
        for _ in range(3):
            await vm.client.instance_state_put(InstanceStateRequested.REBOOT)
        await vm.run_instance()
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.stop()
    # Creating, Starting, Running; once Rebooting, Running; Stopping, Stopped, Destroyed.
    assert (await vm.client.instance_state_monitor(0)).gen == 8


@pytest.mark.requires(server="engine")
async def test_a_stop_does_not_wait_for_a_qemu_that_is_frozen(vm: TestVm, propolis: Run) -> None:
    async with stalled_in_a_reboot(vm, propolis):
        await vm.client.instance_state_put(InstanceStateRequested.STOP)
        await vm.wait_for_state(InstanceState.DESTROYED)
        assert await qemu_pid(vm, propolis) is None


async def test_when_run_down_the_last_state_stays_readable_and_requests_answer_424(vm: TestVm) -> None:
    await vm.launch()
    await vm.stop()
    assert await vm.get_state() is InstanceState.DESTROYED
    assert (await vm.client.instance_spec_get()).state is InstanceState.DESTROYED
    for call in NEEDS_AN_ACTIVE_VM.values():
        assert await status_of(call(vm.client)) == 424
    last = await vm.client.instance_state_monitor(0)
    with pytest.raises(ApiError) as caught:
        await vm.client.instance_state_monitor(last.gen + 1)
    assert (caught.value.status, caught.value.error_code) == (410, "NoInstance")


async def test_a_server_can_be_used_again_and_counts_from_one(vm: TestVm) -> None:
    await vm.launch()
    await vm.stop()
    await vm.client.instance_ensure(request_for(vm))
    answer = await vm.client.instance_state_monitor(0)
    assert (answer.gen, answer.state) == (1, InstanceState.CREATING)
    assert (await vm.client.instance_serial_history(from_start=0)).last_byte_offset == 0


@pytest.mark.parametrize("name", OF_VOLUMES)
async def test_a_file_disk_has_no_volume_to_ask(vm: TestVm, name: str) -> None:
    await vm.ensure()
    with pytest.raises(ApiError, match="disk-backend") as caught:
        await OF_VOLUMES[name](vm.client)
    assert caught.value.status == 404


async def test_migration_status_is_empty(vm: TestVm) -> None:
    await vm.ensure()
    status = await vm.client.instance_migrate_status()
    assert (status.migration_in, status.migration_out) == (None, None)


async def test_history_needs_exactly_one_place(vm: TestVm) -> None:
    await vm.ensure()
    for places in ({}, {"from_start": 0, "most_recent": 0}):
        assert await status_of(vm.client.instance_serial_history(**places)) == 400
    async with http(vm) as client:
        for value in ("-1", "x", "1.5", ""):
            assert (await client.get("/instance/serial/history", params={"from_start": value})).status_code == 400


@pytest.mark.requires(server="engine")
async def test_a_qemu_that_is_killed_is_a_failed_vm_that_can_be_made_again(vm: TestVm, propolis: Run) -> None:
    await vm.launch()
    await vm.wait_for_state(InstanceState.RUNNING)
    pid = await qemu_pid(vm, propolis)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await vm.wait_for_state(InstanceState.FAILED)
    assert await qemu_pid(vm, propolis) is None
    with pytest.raises(ConsoleClosed):
        await vm.wait_for_serial_output("anything", timeout_s=10)
    await vm.client.instance_ensure(request_for(vm))
    assert await vm.get_state() is InstanceState.CREATING


async def test_there_is_no_console_before_there_is_a_vm(unborn: TestVm) -> None:
    with pytest.raises(ConsoleError, match="there is no console yet"):
        await unborn.wait_for_serial_output("anything")


async def test_a_refused_vm_leaves_its_name_free(vm_factory: VmFactory) -> None:
    with pytest.raises(ApiError, match="there is no link 'vnic0'"):
        await vm_factory.start(guest="micro", nics=(Nic(link="vnic0"),), boot="cold")
    vm = await vm_factory.start(guest="micro", boot="cold")
    assert await vm.run("echo hello") == "hello"
