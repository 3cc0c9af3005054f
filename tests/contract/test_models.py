"""The models equal the OpenAPI document."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from comparison import Comparison, our_classes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_document import Schema, document, examples, schemas, spoilt, violations

import pytest_propolis.propolis_api as api
from pytest_propolis.errors import ConfigError

NAMES = sorted(schemas())

quickly = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_and_the_type_of_its_name_say_the_same(name: str) -> None:
    assert list(Comparison(schemas()).named(name)) == []


def test_the_models_have_nothing_that_the_document_lacks() -> None:
    comparison = Comparison(schemas())
    for name in NAMES:
        assert list(comparison.named(name)) == []
    assert our_classes() - comparison.met == set()


def test_the_document_is_of_the_version_that_the_client_announces() -> None:
    assert document()["info"]["version"] == api.API_VERSION


@pytest.mark.parametrize("name", NAMES)
def test_any_change_of_a_schema_is_seen(name: str) -> None:
    changed = list(changes(schemas()[name]))
    assert changed
    for what, other in changed:
        assert list(Comparison({**schemas(), name: other}).named(name)), f"{name}: {what} goes unseen"


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@quickly
def test_what_the_document_allows_is_read_and_written_again(name: str, data: st.DataObject) -> None:
    schema = schemas()[name]
    value = data.draw(examples(schema))
    written = json.loads(msgspec.json.encode(decoded(name, value)))
    assert list(violations(schema, written)) == []
    assert normal(written) == normal(value)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@quickly
def test_what_the_document_rules_out_is_refused(name: str, data: st.DataObject) -> None:
    schema = schemas()[name]
    value = data.draw(examples(schema))
    for what, wrong in spoilt(schema, value):
        if name == "Error" and what == ".error_code null":
            continue  # None stands for its absence; see NONE_WHEN_ABSENT
        with pytest.raises(msgspec.ValidationError):
            pytest.fail(f"{what}: {decoded(name, wrong)}")


@pytest.mark.parametrize("wrong", [{}, {"volume": {"sub_volumes": []}, "upstairs": None}, {"volume": None}])
def test_a_volume_info_is_exactly_one_of_its_kinds(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decoded("VolumeInfo", wrong)


def test_a_volume_info_is_not_both_of_its_kinds() -> None:
    upstairs = msgspec.json.decode(json.dumps(UPSTAIRS), type=api.UpstairsInfo)
    with pytest.raises(ValueError, match="either a volume or an upstairs"):
        api.VolumeInfo(volume=api.SubVolumes(sub_volumes=()), upstairs=upstairs)


def test_a_chipset_needs_its_type() -> None:
    with pytest.raises(msgspec.ValidationError, match="type"):
        decoded("Chipset", {"value": {"enable_pcie": True}})


def test_a_component_is_matched_by_what_it_wraps() -> None:
    disk = api.VirtioDisk(backend_id="root-backend", pci_path=api.PciPath(bus=0, device=4, function=0))
    wire = (
        b'{"type":"virtio_disk","component":{"backend_id":"root-backend","pci_path":{"bus":0,"device":4,"function":0}}}'
    )
    assert msgspec.json.encode(api.VirtioDiskComponent(disk)) == wire
    match msgspec.json.decode(wire, type=api.Component):
        case api.VirtioDiskComponent(component):
            assert component == disk
        case other:
            pytest.fail(f"{other}")


def test_a_new_instance_looks_on_the_wire_as_propolis_server_wants_it() -> None:
    request = api.InstanceEnsureRequest(
        properties=api.InstanceProperties(id=ID, name="one", description="", metadata=METADATA),
        init=api.SpecInit(api.FromSpec(spec=api.InstanceSpec(board=BOARD, components={}))),
    )
    assert json.loads(msgspec.json.encode(request)) == {
        "properties": {
            "id": str(ID),
            "name": "one",
            "description": "",
            "metadata": {
                "project_id": str(ID),
                "silo_id": str(ID),
                "sled_id": str(ID),
                "sled_model": "m",
                "sled_revision": 1,
                "sled_serial": "s",
            },
        },
        "init": {
            "method": "Spec",
            "value": {
                "spec": {
                    "board": {
                        "cpus": 2,
                        "memory_mb": 512,
                        "chipset": {"type": "i440_fx", "value": {"enable_pcie": False}},
                    },
                    "components": {},
                    "smbios": None,
                }
            },
        },
    }


def test_the_default_hypervisor_interface_is_not_written_however_it_was_given() -> None:
    explicit = msgspec.structs.replace(BOARD, guest_hv_interface=api.BhyveInterface())
    assert explicit == BOARD
    assert msgspec.json.encode(explicit) == msgspec.json.encode(BOARD)
    assert b"guest_hv_interface" not in msgspec.json.encode(explicit)


def test_another_hypervisor_interface_is_written() -> None:
    hyper_v = api.HyperVInterface(api.HyperVFeatures(features=frozenset({api.HyperVFeatureFlag.REFERENCE_TSC})))
    written = json.loads(msgspec.json.encode(msgspec.structs.replace(BOARD, guest_hv_interface=hyper_v)))
    assert written["guest_hv_interface"] == {"type": "hyper_v", "value": {"features": ["reference_tsc"]}}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_serial_history_is_made_from_bytes_and_read_as_bytes(kind: Any) -> None:
    every_byte = bytes(range(256))
    history = api.InstanceSerialConsoleHistoryResponse(data=kind(every_byte), last_byte_offset=256)
    wire = msgspec.json.encode(history)
    assert json.loads(wire)["data"] == list(every_byte)
    read = msgspec.json.decode(wire, type=api.InstanceSerialConsoleHistoryResponse)
    assert read == history
    assert read.content == every_byte


def test_an_nvme_serial_number_is_filled_up_to_20_bytes() -> None:
    number = api.nvme_serial_number("root")
    assert bytes(number) == b"root" + bytes(16)
    assert bytes(api.nvme_serial_number("é" * 10)) == "é".encode() * 10


def test_a_long_nvme_serial_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes 22 bytes"):
        api.nvme_serial_number("é" * 11)


def test_the_models_load_neither_http_nor_websockets() -> None:
    program = "import sys, pytest_propolis.propolis_api; print(*{'httpx', 'websockets', 'pytest'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


ID = uuid.UUID(int=7)
METADATA = api.InstanceMetadata(project_id=ID, silo_id=ID, sled_id=ID, sled_model="m", sled_revision=1, sled_serial="s")
BOARD = api.Board(cpus=2, memory_mb=512, chipset=api.Chipset(type="i440_fx", value=api.I440Fx(enable_pcie=False)))
UPSTAIRS = {
    "encrypted": False,
    "generation": 1,
    "live_repair_in_progress": False,
    "read_only": False,
    "reconcile_in_progress": False,
    "session_id": str(ID),
    "state": "active",
    "targets": [],
    "upstairs_id": str(ID),
}


def decoded(name: str, value: Any) -> Any:
    return msgspec.json.decode(json.dumps(value), type=getattr(api, name))


def normal(value: Any) -> Any:
    """Return the value without optional members that equal their defaults."""
    match value:
        case dict():
            kept = {key: normal(part) for key, part in value.items() if part is not None}
            if kept.get("guest_hv_interface") == {"type": "bhyve"}:
                del kept["guest_hv_interface"]
            return kept
        case list():
            return [normal(part) for part in value]
    return value


def changes(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield copies of the schema with one change each; references to other schemas stay unchanged."""
    for path in places(schema):
        for what, change in CHANGES.items():
            other = copy.deepcopy(dict(schema))
            node = other
            for step in path:
                node = node[step]
            if change(node):
                yield f"{what} at {'.'.join(map(str, path))}", other


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict):
        yield path
        for key, part in node.items():
            yield from places(part, (*path, key))
    elif isinstance(node, list):
        for index, part in enumerate(node):
            yield from places(part, (*path, index))


def _add_property(node: Any) -> bool:
    if node.get("type") == "object" and "properties" in node:
        node["properties"]["unheard_of"] = {"type": "boolean"}
        return True
    return False


def _remove_property(node: Any) -> bool:
    if node.get("type") == "object" and node.get("properties"):
        name = next(reversed(node["properties"]))
        del node["properties"][name]
        node["required"] = [other for other in node.get("required", ()) if other != name]
        return True
    return False


def _require(node: Any) -> bool:
    optional = [name for name in node.get("properties", ()) if name not in node.get("required", ())]
    if node.get("type") == "object" and optional:
        node["required"] = [*node.get("required", ()), optional[0]]
        return True
    return False


def _stop_requiring(node: Any) -> bool:
    if node.get("type") == "object" and node.get("required"):
        node["required"] = node["required"][:-1]
        return True
    return False


def _open_or_close(node: Any) -> bool:
    if node.get("type") == "object" and "properties" in node:
        if node.pop("additionalProperties", True) is not False:
            node["additionalProperties"] = False
        return True
    return False


def _add_word(node: Any) -> bool:
    if "enum" in node:
        node["enum"] = [*node["enum"], "unheard_of"]
        return True
    return False


def _remove_word(node: Any) -> bool:
    if "enum" in node:
        node["enum"] = node["enum"][1:]
        return True
    return False


def _remove_variant(node: Any) -> bool:
    if len(node.get("oneOf", ())) > 1 and "title" not in node["oneOf"][0]:
        node["oneOf"] = node["oneOf"][1:]
        return True
    return False


def _move_minimum(node: Any) -> bool:
    if "minimum" in node:
        node["minimum"] += 1
        return True
    return False


def _resize_integer(node: Any) -> bool:
    if node.get("type") == "integer":
        node["format"] = "uint8" if node["format"] == "uint32" else "uint32"
        return True
    return False


def _change_length(node: Any) -> bool:
    if "minItems" in node:
        node["minItems"] -= 1
        return True
    return False


def _change_type(node: Any) -> bool:
    if (
        isinstance(node.get("type"), str)
        and not {"enum", "properties"} & set(node)
        and "additionalProperties" not in node
    ):
        other = "boolean" if node["type"] == "string" else "string"
        node.clear()
        node["type"] = other
        return True
    return False


def _nullable(node: Any) -> bool:
    if node.get("nullable"):
        del node["nullable"]
        return True
    return False


CHANGES = {
    "a new property": _add_property,
    "a property less": _remove_property,
    "a required property more": _require,
    "a required property less": _stop_requiring,
    "unknown keys": _open_or_close,
    "a new word": _add_word,
    "a word less": _remove_word,
    "a variant less": _remove_variant,
    "another minimum": _move_minimum,
    "another size": _resize_integer,
    "another length": _change_length,
    "another type": _change_type,
    "null": _nullable,
}
