"""The client speaks the OpenAPI document: every operation, its answers and its refusals, on a real HTTP server."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from client_operations import ANSWERS, CALLS, ID, OPERATIONS, PREFIX, call
from openapi_document import Operation, Schema, resolved, violations
from recording_server import Recorder, recording

from pytest_propolis.errors import ApiError
from pytest_propolis.propolis_api.client import Endpoint, PropolisClient


@pytest.fixture
async def recorder(tmp_path: Path) -> AsyncIterator[Recorder]:
    async with recording(tmp_path / "s") as recorder:
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
    await call(name, client, recorder)
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
    result = await call(name, client, recorder)
    assert json.loads(msgspec.json.encode(result)) == ANSWERS[name]


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
    with pytest.raises(ApiError, match=r"not a valid InstanceGetResponse.*\$\.instance\.properties") as caught:
        await client.instance_get()
    assert caught.value.status == 200


def test_answers_without_content_are_null_in_the_document() -> None:
    def nothing(schema: Schema | None) -> bool:
        return schema is None or resolved(schema).get("enum") == [None]

    assert {name for name in ANSWERS if ANSWERS[name] is None} == {
        name for name, operation in OPERATIONS.items() if nothing(operation.answer) and not operation.upgrades
    }
