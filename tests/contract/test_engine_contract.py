"""The responses of a running engine, checked against the models and the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from openapi_document import Operation, document, operations, schemas, violations

import pytest_propolis.propolis_api as api
from pytest_propolis.session.run import Run
from pytest_propolis.settings import ENGINE
from pytest_propolis.vm.vm import TestVm

document()  # skips where there is none

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPERATIONS = {operation.name: operation for operation in operations()}


@dataclass(frozen=True)
class Server:
    """A server and a client of its API that is not the project's."""

    vm: TestVm
    http: httpx.AsyncClient


@asynccontextmanager
async def new_server(run: Run) -> AsyncIterator[Server]:
    """A server that has never had an instance."""
    async with run.vm_factory() as factory:
        vm = await factory.create(guest="micro", cpus=1, memory_mib=256)
        transport = httpx.AsyncHTTPTransport(uds=str(vm.endpoint.uds) if vm.endpoint.uds else None)
        async with httpx.AsyncClient(transport=transport, base_url=vm.endpoint.base_url, timeout=30) as client:
            yield Server(vm, client)


@asynccontextmanager
async def new_instance(run: Run) -> AsyncIterator[Server]:
    async with new_server(run) as server:
        answer = require_answer(
            await ask(server.http, "instance_ensure", ensure_request(server.vm)), api.InstanceEnsureResponse
        )
        assert answer.migrate is None
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def empty(propolis: Run) -> AsyncIterator[Server]:
    """A server without an instance."""
    async with new_server(propolis) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def created(propolis: Run) -> AsyncIterator[Server]:
    """A server whose instance has been ensured, and not started."""
    async with new_instance(propolis) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(propolis: Run) -> AsyncIterator[httpx.AsyncClient]:
    """A server whose instance runs."""
    async with started(propolis) as http:
        yield http


@asynccontextmanager
async def started(run: Run) -> AsyncIterator[httpx.AsyncClient]:
    async with new_server(run) as server:
        require_answer(await ask(server.http, "instance_ensure", ensure_request(server.vm)), api.InstanceEnsureResponse)
        require_answer(await ask(server.http, "instance_state_put", "Run"))
        answer = require_answer(
            await ask(server.http, "instance_state_monitor", {"gen": 3}), api.InstanceStateMonitorResponse
        )
        assert (answer.gen, answer.state) == (3, api.InstanceState.RUNNING)
        yield server.http


async def ask(http: httpx.AsyncClient, name: str, body: Any = None, **query: Any) -> tuple[Operation, httpx.Response]:
    operation = OPERATIONS[name]
    path = operation.path.replace("{id}", "disk-backend")
    path = path.replace("{snapshot_id}", "11111111-1111-4111-8111-111111111111")
    content = None if body is None else msgspec.json.encode(body)
    return operation, await http.request(operation.method, path, content=content, params=query)


def require_answer(asked: tuple[Operation, httpx.Response], model: Any = None) -> Any:
    """The answer is the document's, and ours: with the status, valid, and nothing in it that the model loses."""
    operation, response = asked
    assert response.status_code == operation.status, response.text
    if model is None:
        assert response.content in (b"", b"null")
        return None
    assert response.headers["content-type"] == "application/json"
    raw = json.loads(response.content)
    assert operation.answer is not None
    assert list(violations(operation.answer, raw)) == []
    decoded = msgspec.json.decode(response.content, type=model)
    assert json.loads(msgspec.json.encode(decoded)) == raw
    return decoded


def require_error(asked: tuple[Operation, httpx.Response], status: int) -> api.Error:
    _, response = asked
    assert response.status_code == status, response.text
    raw = json.loads(response.content)
    assert list(violations(schemas()["Error"], raw)) == []
    error = msgspec.json.decode(response.content, type=api.Error)
    assert response.headers["x-request-id"] == error.request_id
    assert set(raw) <= {"error_code", "message", "request_id"}
    return error


def ensure_request(vm: TestVm) -> api.InstanceEnsureRequest:
    return api.InstanceEnsureRequest(properties=vm.properties, init=api.SpecInit(api.FromSpec(spec=vm.spec)))


async def test_errors_before_the_first_ensure(empty: Server) -> None:
    for name in ("instance_get", "instance_spec_get", "instance_migrate_status", "instance_issue_nmi"):
        require_error(await ask(empty.http, name), 424)
    require_error(await ask(empty.http, "instance_state_put", "Run"), 424)
    require_error(await ask(empty.http, "instance_state_monitor", {"gen": 0}), 424)
    require_error(await ask(empty.http, "instance_serial_history_get", from_start=0), 424)


async def test_bad_requests(empty: Server) -> None:
    require_error(await ask(empty.http, "instance_ensure", {}), 400)
    require_error(await ask(empty.http, "instance_state_put", "Sleep"), 400)
    require_error(await ask(empty.http, "instance_state_monitor", {"gen": "one"}), 400)


async def test_what_is_wrong_with_the_path_or_the_query_comes_before_the_state(empty: Server) -> None:
    for path in (
        "/instance/migrate/no-uuid/start",
        "/instance/serial/history?from_start=-1",
        "/instance/serial/history?from_start=0&max_bytes=18446744073709551616",
        "/instance/serial/history?from_start=" + "1" * 5000,
        "/instance/serial",
    ):
        response = await empty.http.get(path)
        require_error((OPERATIONS["instance_get"], response), 400)
    response = await empty.http.post("/instance/disk/x/snapshot/no-uuid")
    require_error((OPERATIONS["instance_get"], response), 400)


async def test_what_the_router_refuses_has_the_form_of_the_api(empty: Server) -> None:
    require_error((OPERATIONS["instance_get"], await empty.http.get("/nothing")), 404)
    # The agent's router takes no line break in a path; a server program finds that there is no instance.
    line_break = await empty.http.get("/instance/disk/%0A/status")
    require_error((OPERATIONS["instance_get"], line_break), 404 if empty.vm.server == ENGINE else 424)
    response = await empty.http.delete("/instance")
    require_error((OPERATIONS["instance_get"], response), 405)
    assert {"GET", "PUT"} <= set(response.headers["allow"].split(", "))


async def test_a_second_ensure_is_refused(created: Server) -> None:
    require_error(await ask(created.http, "instance_ensure", ensure_request(created.vm)), 409)


async def test_instance_and_spec(created: Server) -> None:
    got = require_answer(await ask(created.http, "instance_get"), api.InstanceGetResponse)
    assert got.instance.properties == created.vm.properties
    spec = require_answer(await ask(created.http, "instance_spec_get"), api.InstanceSpecGetResponse)
    assert (spec.properties, spec.spec.value) == (created.vm.properties, created.vm.spec)
    assert got.instance.state is spec.state is api.InstanceState.CREATING


async def test_denied_state_changes(created: Server) -> None:
    require_error(await ask(created.http, "instance_state_put", "Reboot"), 403)


async def test_the_status_of_migrations(running: httpx.AsyncClient) -> None:
    require_answer(await ask(running, "instance_migrate_status"), api.InstanceMigrateStatusResponse)


async def test_serial_history(running: httpx.AsyncClient) -> None:
    for query in ({"from_start": 0}, {"most_recent": 10}, {"from_start": 0, "max_bytes": 1}):
        asked = await ask(running, "instance_serial_history_get", **query)
        require_answer(asked, api.InstanceSerialConsoleHistoryResponse)
    require_error(await ask(running, "instance_serial_history_get"), 400)


async def test_nmi(running: httpx.AsyncClient) -> None:
    require_answer(await ask(running, "instance_issue_nmi"))


async def test_disks_that_are_on_no_volume_are_not_found(running: httpx.AsyncClient) -> None:
    require_error(await ask(running, "disk_volume_status"), 404)
    require_error(await ask(running, "instance_issue_crucible_vcr_request", {"vcr_json": "{}"}), 404)
    require_error(await ask(running, "instance_issue_crucible_snapshot_request"), 404)


async def test_the_end(propolis: Run) -> None:
    async with started(propolis) as http:
        require_answer(await ask(http, "instance_state_put", "Stop"))
        state = None
        gen = 0
        while state is not api.InstanceState.DESTROYED:
            answer = require_answer(
                await ask(http, "instance_state_monitor", {"gen": gen}), api.InstanceStateMonitorResponse
            )
            gen, state = answer.gen + 1, answer.state
        require_error(await ask(http, "instance_state_monitor", {"gen": gen}), 410)
        require_answer(await ask(http, "instance_get"), api.InstanceGetResponse)
        require_error(await ask(http, "instance_state_put", "Stop"), 424)
