"""The client speaks the OpenAPI document: every operation, to a real HTTP server on a UNIX socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import UUID

import msgspec
import pytest
import uvicorn
from openapi_document import Operation, Schema, operations, resolved, violations
from websockets.asyncio.client import ClientConnection

import pytest_propolis.propolis_api as api
from pytest_propolis.errors import AgentError, ApiError
from pytest_propolis.propolis_api.client import (
    ANSWER_TIMEOUT_S,
    ENSURE_TIMEOUT_S,
    VOLUME_TIMEOUT_S,
    Endpoint,
    PropolisClient,
)
from pytest_propolis.propolis_api.connection.http import HttpAnswer

Message = dict[str, Any]
OPERATIONS: Final = {operation.name: operation for operation in operations()}
PREFIX: Final = "/vms/3f2a"
ID: Final = UUID(int=7)

REQUEST: Final = api.InstanceEnsureRequest(
    properties=api.InstanceProperties(
        id=ID,
        name="one",
        description="",
        metadata=api.InstanceMetadata(
            project_id=ID, silo_id=ID, sled_id=ID, sled_model="m", sled_revision=1, sled_serial="s"
        ),
    ),
    init=api.MigrationTargetInit(api.FromMigration(migration_id=ID, replace_components={}, src_addr="[::1]:12400")),
)

CALLS: Final[Mapping[str, Callable[[PropolisClient], Awaitable[Any]]]] = {
    "instance_ensure": lambda client: client.instance_ensure(REQUEST),
    "instance_get": lambda client: client.instance_get(),
    "instance_spec_get": lambda client: client.instance_spec_get(),
    "instance_state_put": lambda client: client.instance_state_put(api.InstanceStateRequested.REBOOT),
    "instance_state_monitor": lambda client: client.instance_state_monitor(3),
    "instance_migrate_status": lambda client: client.instance_migrate_status(),
    "instance_serial_history_get": lambda client: client.instance_serial_history(
        from_start=1, most_recent=2, max_bytes=3
    ),
    "instance_issue_nmi": lambda client: client.issue_nmi(),
    "disk_volume_status": lambda client: client.disk_volume_status("root-backend"),
    "instance_issue_crucible_snapshot_request": lambda client: client.issue_crucible_snapshot("root-backend", ID),
    "instance_issue_crucible_vcr_request": lambda client: client.issue_crucible_vcr("root-backend", '{"a": 1}'),
    "instance_serial": lambda client: client.instance_serial(from_start=1, most_recent=2),
    "instance_migrate_start": lambda client: client.instance_migrate_start(ID),
}

STATUS: Final = {"migration_in": None, "migration_out": {"id": str(ID), "state": "Sync"}}
PROPERTIES: Final = msgspec.to_builtins(REQUEST.properties)
ANSWERS: Final[Mapping[str, Any]] = {
    "instance_ensure": {"migrate": {"migration_id": str(ID)}},
    "instance_get": {"instance": {"properties": PROPERTIES, "state": "Running"}},
    "instance_spec_get": {
        "properties": PROPERTIES,
        "spec": {"type": "WaitingForMigrationSource"},
        "state": "Migrating",
    },
    "instance_state_put": None,
    "instance_state_monitor": {"gen": 3, "state": "Running", "migration": STATUS},
    "instance_migrate_status": STATUS,
    "instance_serial_history_get": {"data": [104, 105, 255], "last_byte_offset": 3},
    "instance_issue_nmi": None,
    "disk_volume_status": {"volume_info": {"volume": {"read_only_parent": None, "sub_volumes": []}}},
    "instance_issue_crucible_snapshot_request": None,
    "instance_issue_crucible_vcr_request": "started",
}


@dataclass(slots=True)
class Recorder:
    """An ASGI application that notes every request, and answers what it is told to."""

    answer: tuple[int, bytes] = (200, b"null")
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answering.set()

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        body = b"" if scope["type"] == "websocket" else await _body(receive)
        self.seen.append(
            {
                "method": scope.get("method", "GET"),
                "path": scope["path"],
                "raw_path": scope["raw_path"].decode(),
                "query": parse_qs(scope["query_string"].decode()),
                "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
                "body": body,
            }
        )
        await self.answering.wait()
        kind = "websocket.http" if scope["type"] == "websocket" else "http"
        if scope["type"] == "websocket" and self.answer[0] == 101:
            await _echo(receive, send)
            return
        status, content = self.answer
        headers = [(b"content-type", b"application/json")]
        await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.response.body", "body": content})


async def _body(receive: Callable[..., Any]) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


async def _echo(receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


class InThisLoop(uvicorn.Server):
    """A server that leaves signals to pytest, and leaves when told to instead of looking ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaving = asyncio.Event()

    async def main_loop(self) -> None:
        await self.leaving.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(recorder: Recorder, listener: socket.socket) -> AsyncIterator[None]:
    listener.listen()
    config = uvicorn.Config(recorder, lifespan="off", log_level="error", ws="websockets-sansio")
    server = InThisLoop(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.force_exit = True
        server.leaving.set()
        await task


@pytest.fixture
async def recorder(tmp_path: Path) -> AsyncIterator[Recorder]:
    recorder = Recorder()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        async with serving(recorder, listener):
            yield recorder


@pytest.fixture
async def client(recorder: Recorder, tmp_path: Path) -> AsyncIterator[PropolisClient]:
    async with PropolisClient(Endpoint(base_url=f"http://agent{PREFIX}", uds=tmp_path / "s"), vm="alice") as client:
        yield client


def test_every_operation_of_the_document_is_called_here() -> None:
    assert CALLS.keys() == OPERATIONS.keys()
    assert ANSWERS.keys() == {name for name, operation in OPERATIONS.items() if not operation.upgrades}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_request_is_what_the_document_says(name: str, client: PropolisClient, recorder: Recorder) -> None:
    await _call(name, client, recorder)
    (seen,) = recorder.seen
    operation = OPERATIONS[name]
    assert _parameters(operation, seen["path"]) == _expected_parameters(operation)
    assert seen["method"] == operation.method
    assert seen["query"].keys() == operation.names_in("query")
    assert seen["headers"]["api-version"] == "5.0.0"
    if operation.body is None:
        assert seen["body"] == b""
    else:
        assert seen["headers"]["content-type"] == "application/json"
        assert list(violations(operation.body, json.loads(seen["body"]))) == []


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read_as_the_document_says(name: str, client: PropolisClient, recorder: Recorder) -> None:
    schema = OPERATIONS[name].answer
    if schema is not None:
        assert list(violations(schema, ANSWERS[name])) == []
    result = await _call(name, client, recorder)
    assert json.loads(msgspec.json.encode(result)) == ANSWERS[name]


async def _call(name: str, client: PropolisClient, recorder: Recorder) -> Any:
    operation = OPERATIONS[name]
    content = b"" if operation.answer is None else json.dumps(ANSWERS[name]).encode()
    recorder.answer = (operation.status, content)
    result = await CALLS[name](client)
    if isinstance(result, ClientConnection):
        await result.close()
    return result


def _parameters(operation: Operation, path: str) -> dict[str, str]:
    pattern = PREFIX + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", operation.path)
    match = re.fullmatch(pattern, path)
    assert match, f"{path} is not {operation.path}"
    return match.groupdict()


def _expected_parameters(operation: Operation) -> dict[str, str]:
    values = {
        parameter["name"]: str(ID) if parameter["schema"].get("format") == "uuid" else "root-backend"
        for parameter in operation.parameters
        if parameter["in"] == "path"
    }
    assert values.keys() == set(re.findall(r"\{(\w+)\}", operation.path))
    return values


async def test_only_what_is_given_is_asked(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (200, json.dumps(ANSWERS["instance_serial_history_get"]).encode())
    await client.instance_serial_history(from_start=0)
    recorder.answer = (101, b"")
    async with client.instance_serial():
        pass
    async with client.instance_serial(most_recent=5):
        pass
    assert [seen["query"] for seen in recorder.seen] == [{"from_start": ["0"]}, {}, {"most_recent": ["5"]}]


async def test_a_disk_id_stays_one_segment_of_the_path(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (200, b'"started"')
    await client.issue_crucible_vcr("a/b ?ü", "{}")
    assert recorder.seen[0]["raw_path"] == f"{PREFIX}/instance/disk/a%2Fb%20%3F%C3%BC/vcr"


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_refusal_is_an_api_error(name: str, client: PropolisClient, recorder: Recorder) -> None:
    body = {"error_code": "NoInstance", "message": "Server not initialized (no instance)", "request_id": "r-1"}
    recorder.answer = (424, json.dumps(body).encode())
    with pytest.raises(ApiError) as caught:
        await CALLS[name](client)
    error = caught.value
    assert (error.status, error.error_code, error.request_id) == (424, "NoInstance", "r-1")
    assert (error.message, error.vm, error.operation) == ("Server not initialized (no instance)", "alice", name)
    assert error.hint is not None
    assert "no active instance" in error.hint


async def test_a_refusal_without_a_code_points_at_the_log(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (500, b'{"message": "VM initialization failed: no", "request_id": "r-2"}')
    with pytest.raises(ApiError) as caught:
        await client.instance_get()
    assert (caught.value.error_code, caught.value.request_id) == (None, "r-2")
    assert "request r-2" in str(caught.value)


@pytest.mark.parametrize("content", [b"<h1>Bad gateway</h1>", b"", b"\xff\xfe", b'{"detail": "proxy"}', b"[]"])
@pytest.mark.parametrize("name", ["instance_get", "instance_serial"])
async def test_an_error_of_another_program_is_an_api_error(
    name: str, content: bytes, client: PropolisClient, recorder: Recorder
) -> None:
    recorder.answer = (502, content)
    with pytest.raises(ApiError) as caught:
        await CALLS[name](client)
    assert caught.value.status == 502
    assert caught.value.message.startswith("Bad Gateway")
    assert (caught.value.error_code, caught.value.request_id) == (None, None)


async def test_a_redirect_is_not_followed(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (307, b"")
    with pytest.raises(ApiError, match="Temporary Redirect"):
        await client.instance_get()
    assert len(recorder.seen) == 1


async def test_an_answer_of_another_kind_is_an_api_error(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (200, b'{"instance": {"properties": null}}')
    with pytest.raises(ApiError, match=r"no InstanceGetResponse.*\$\.instance\.properties") as caught:
        await client.instance_get()
    assert caught.value.status == 200


@pytest.mark.parametrize("name", OPERATIONS)
async def test_no_server_is_an_agent_error(name: str, tmp_path: Path) -> None:
    async with PropolisClient(Endpoint(base_url="http://agent", uds=tmp_path / "s"), vm="alice") as client:
        with pytest.raises(AgentError, match="No such file") as caught:
            await CALLS[name](client)
    assert (caught.value.vm, caught.value.operation) == ("alice", name)
    assert str(tmp_path / "s") in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["instance_get", "instance_serial"])
async def test_a_refused_connection_is_an_agent_error(name: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        async with PropolisClient(Endpoint(base_url="http://agent", uds=tmp_path / "s")) as client:
            with pytest.raises(AgentError, match="Connection refused"):
                await CALLS[name](client)


@pytest.mark.parametrize("name", ["instance_get", "instance_state_monitor", "instance_serial"])
async def test_a_lost_connection_is_an_agent_error(name: str, tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    endpoint = Endpoint(base_url="http://agent", uds=tmp_path / "s")
    async with await asyncio.start_unix_server(hang_up, tmp_path / "s"), PropolisClient(endpoint) as client:
        with pytest.raises(AgentError, match="does not answer"):
            await CALLS[name](client)


async def test_silence_is_an_agent_error_that_says_how_long(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answering.clear()
    with pytest.raises(AgentError, match="is silent") as caught:
        await client._send("instance_get", "GET", "/instance", timeout_s=0.05)
    assert caught.value.waited_s is not None
    assert caught.value.waited_s >= 0.05


async def test_a_silent_upgrade_is_an_agent_error(
    client: PropolisClient, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_propolis.propolis_api.connection.transport.CONNECT_TIMEOUT_S", 0.05)
    recorder.answering.clear()
    with pytest.raises(AgentError, match="is silent"):
        await client.instance_serial()


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_operation_waits_as_long_as_it_may_take(
    name: str, client: PropolisClient, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    ask = client._http.request

    async def note(*args: Any, timeout_s: float | None, **options: Any) -> HttpAnswer:
        limits.append(timeout_s)
        return await ask(*args, timeout_s=timeout_s, **options)

    monkeypatch.setattr(client._http, "request", note)
    await _call(name, client, recorder)
    long = {
        "instance_state_monitor": None,
        "instance_ensure": ENSURE_TIMEOUT_S,
        "instance_issue_crucible_vcr_request": VOLUME_TIMEOUT_S,
        "instance_issue_crucible_snapshot_request": VOLUME_TIMEOUT_S,
    }
    assert limits == [long.get(name, ANSWER_TIMEOUT_S)]


async def test_a_cancelled_wait_leaves_the_client_usable(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answering.clear()
    waiting = asyncio.create_task(client.instance_state_monitor(9))
    while not recorder.seen:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    recorder.answering.set()
    await _call("instance_get", client, recorder)


async def test_other_operations_go_on_beside_a_wait(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answering.clear()
    recorder.answer = (200, json.dumps(ANSWERS["instance_state_monitor"]).encode())
    waiting = [asyncio.create_task(client.instance_state_monitor(9)) for _ in range(120)]
    async with asyncio.timeout(20):
        while len(recorder.seen) < len(waiting):
            await asyncio.sleep(0.01)
    recorder.answering.set()
    assert {answer.gen for answer in await asyncio.gather(*waiting)} == {3}


async def test_the_console_carries_large_frames_uncompressed(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (101, b"")
    large = bytes(3 << 20)
    async with client.instance_serial() as console:
        await console.send(large)
        assert await console.recv() == large
    assert "sec-websocket-extensions" not in recorder.seen[0]["headers"]


async def test_an_idle_console_is_never_pinged(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (101, b"")
    async with client.instance_serial() as console:
        assert console.ping_interval is None
        assert console.keepalive_task is None


async def test_leaving_a_console_closes_it(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (101, b"")
    async with client.instance_serial() as console:
        pass
    assert console.close_code == 1000


@pytest.fixture
async def console(client: PropolisClient, recorder: Recorder) -> AsyncIterator[ClientConnection]:
    recorder.answer = (101, b"")
    async with client.instance_serial() as console:
        yield console


async def test_a_fixture_may_keep_a_console_open_over_its_yield(console: ClientConnection) -> None:
    await console.send(b"ls\n")
    assert await console.recv() == b"ls\n"


@pytest.mark.parametrize("path", ["", "/", PREFIX, f"{PREFIX}/"])
async def test_a_tcp_endpoint_with_any_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    recorder = Recorder()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
        async with serving(recorder, listener), PropolisClient(Endpoint(base_url=base_url)) as client:
            await _call("instance_get", client, recorder)
            await _call("instance_serial", client, recorder)
    prefix = path.rstrip("/")
    assert [seen["path"] for seen in recorder.seen] == [f"{prefix}/instance", f"{prefix}/instance/serial"]


async def test_closing_twice_is_fine(client: PropolisClient, recorder: Recorder) -> None:
    await _call("instance_get", client, recorder)
    await client.aclose()
    await client.aclose()


async def test_no_certificates_are_read_without_tls(client: PropolisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: Any, **_options: Any) -> None:
        raise AssertionError("certificates are read")

    monkeypatch.setattr(ssl, "create_default_context", load)
    await client.issue_nmi()


def test_answers_without_content_are_null_in_the_document() -> None:
    def nothing(schema: Schema | None) -> bool:
        return schema is None or resolved(schema).get("enum") == [None]

    assert {name for name in ANSWERS if ANSWERS[name] is None} == {
        name for name, operation in OPERATIONS.items() if nothing(operation.answer) and not operation.upgrades
    }
