"""A server with a newer version of the API works as far as this client supports its responses."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_document import examples, operations, ref_name, schemas

import pytest_propolis.propolis_api as api
from pytest_propolis.propolis_api.reading import UnknownVariant, read

ANSWERS: Final = sorted({name for operation in operations() if (name := ref_name(operation.answer or {}))})
MAPS: Final = ("components",)
"""Objects whose keys are names of the user's, not fields."""

quickly = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def with_more_fields(value: Any, *, is_map: bool = False) -> Any:
    """Add a field to every object."""
    match value:
        case dict():
            more = {key: with_more_fields(part, is_map=key in MAPS) for key, part in value.items()}
            return more if is_map else {**more, "of_version_9": {"deep": [1, None]}}
        case list():
            return [with_more_fields(part) for part in value]
    return value


def answer_of(name: str) -> Any:
    return getattr(api, name)


@pytest.mark.parametrize("name", ANSWERS)
@given(data=st.data())
@quickly
def test_fields_that_are_unknown_are_passed_over(name: str, data: st.DataObject) -> None:
    value = data.draw(examples(schemas()[name]))
    newer = json.dumps(with_more_fields(value)).encode()
    assert read(newer, answer_of(name)) == msgspec.json.decode(json.dumps(value), type=answer_of(name))


def states(state: str) -> bytes:
    migration = {"migration_in": {"id": "00000000-0000-0000-0000-000000000007", "state": "Teleport"}}
    return json.dumps({"gen": 4, "state": state, "migration": migration}).encode()


def test_a_word_that_is_unknown_is_its_text() -> None:
    answer = read(states("Hibernating"), api.InstanceStateMonitorResponse)
    assert answer.state == "Hibernating"
    assert str(answer.state) == "Hibernating"
    assert answer.state not in set(api.InstanceState)
    assert answer.migration.migration_in is not None
    assert answer.migration.migration_in.state == "Teleport"
    assert json.loads(msgspec.json.encode(answer))["state"] == "Hibernating"


def test_a_word_that_is_known_is_the_member_beside_one_that_is_not() -> None:
    assert read(states("Running"), api.InstanceStateMonitorResponse).state is api.InstanceState.RUNNING


def test_an_unknown_word_is_no_member_from_then_on() -> None:
    read(states("Hibernating"), api.InstanceStateMonitorResponse)
    with pytest.raises(ValueError, match="Hibernating"):
        api.InstanceState("Hibernating")


def test_a_component_of_an_unknown_kind_is_kept_as_it_came() -> None:
    new = {"type": "quantum_disk", "component": {"qubits": 5}}
    com1 = {"type": "serial_port", "component": {"num": "com1", "baud": 9600}}
    answer = read(spec({"q": new, "com1": com1}), api.InstanceSpecGetResponse)
    assert isinstance(answer.spec, api.PresentSpec)
    assert answer.spec.value.components == {
        "q": UnknownVariant(new),
        "com1": api.SerialPortComponent(api.SerialPort(num=api.SerialPortNumber.COM1)),
    }


def spec(components: dict[str, Any]) -> bytes:
    board = {"cpus": 1, "memory_mb": 64, "chipset": {"type": "i440_fx", "value": {"enable_pcie": False}}}
    some_id = "00000000-0000-0000-0000-000000000007"
    metadata: dict[str, Any] = {"project_id": some_id, "silo_id": some_id, "sled_id": some_id}
    metadata |= {"sled_model": "m", "sled_revision": 1, "sled_serial": "s"}
    properties = {"id": some_id, "name": "one", "description": "", "metadata": metadata}
    value = {"board": board, "components": components}
    answer = {"properties": properties, "state": "Running", "spec": {"type": "Present", "value": value}}
    return json.dumps(answer).encode()


STATE: Final = api.InstanceStateMonitorResponse
WRONG: Final[list[tuple[bytes, type]]] = [
    (b'{"gen": 4, "migration": {}}', STATE),
    (b'{"gen": "4", "state": "Running", "migration": {}}', STATE),
    (b'{"gen": 4, "state": 7, "migration": {}}', STATE),
    (b'{"gen": 4, "state": "Running", "migration": []}', STATE),
    (b"[]", api.InstanceGetResponse),
    (b"<h1>", api.InstanceGetResponse),
    (spec({"com1": {"type": "serial_port", "component": {"baud": 1}}}), api.InstanceSpecGetResponse),
]


@pytest.mark.parametrize(("content", "kind"), WRONG)
def test_an_answer_that_lacks_what_the_api_promises_is_refused_as_before(content: bytes, kind: type) -> None:
    with pytest.raises(msgspec.DecodeError) as strict:
        msgspec.json.decode(content, type=kind)
    with pytest.raises(msgspec.DecodeError) as caught:
        read(content, kind)
    assert str(caught.value) == str(strict.value)
