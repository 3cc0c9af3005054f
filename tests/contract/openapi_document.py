"""The OpenAPI document of propolis-server 5.0.0, as checks and examples; where it is absent, tests are skipped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import strategies as st

Schema = Mapping[str, Any]

PATH: Final = Path(__file__).parents[3] / "shared/openapi/propolis-server-5.0.0.json"
UUID_TEXT: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INTEGER_BITS: Final = {"uint8": 8, "uint32": 32, "uint64": 64, "uint": 64}


@cache
def document() -> Schema:
    if not PATH.exists():
        pytest.skip(f"the OpenAPI document of propolis-server is not at {PATH}", allow_module_level=True)
    loaded: Schema = json.loads(PATH.read_text())
    return loaded


def schemas() -> Mapping[str, Schema]:
    named: Mapping[str, Schema] = document()["components"]["schemas"]
    return named


class Operation(NamedTuple):
    """One of the document's operations."""

    name: str
    method: str
    path: str
    parameters: tuple[Schema, ...]
    body: Schema | None
    status: int
    answer: Schema | None

    @property
    def upgrades(self) -> bool:
        return self.status == 101

    def names_in(self, place: str) -> set[str]:
        return {parameter["name"] for parameter in self.parameters if parameter["in"] == place}


def operations() -> Iterator[Operation]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            status, response = next(
                (int(code), answer) for code, answer in operation["responses"].items() if code.isdigit()
            )
            yield Operation(
                name=operation["operationId"],
                method=method.upper(),
                path=path,
                parameters=tuple(operation.get("parameters", ())),
                body=_content(operation.get("requestBody")),
                status=status,
                answer=_content(response),
            )


def _content(part: Schema | None) -> Schema | None:
    if part is None or "content" not in part:
        return None
    schema: Schema = part["content"]["application/json"]["schema"]
    return schema


def ref_name(schema: Schema) -> str | None:
    """The schema that this one stands for, if it is only a reference, with or without a description."""
    if "allOf" in schema:
        (schema,) = schema["allOf"]
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def resolved(schema: Schema) -> Schema:
    """Resolve references in the schema. Keywords beside a reference (`nullable`) are left to the caller."""
    name = ref_name(schema)
    if name is not None:
        return resolved(schemas()[name])
    if all("allOf" in variant for variant in schema.get("oneOf", [{}])):
        # A key is a UUID or any other text; that is any text.
        return {"type": "string"}
    return schema["allOf"][0] if "allOf" in schema else schema


def integer_range(schema: Schema) -> tuple[int, int]:
    return schema["minimum"], (1 << INTEGER_BITS[schema["format"]]) - 1


def examples(schema: Schema) -> st.SearchStrategy[Any]:
    """Values that the schema allows."""
    name = ref_name(schema)
    values = _named_examples(name) if name is not None else _examples(resolved(schema))
    return st.none() | values if schema.get("nullable") else values


@cache
def _named_examples(name: str) -> st.SearchStrategy[Any]:
    # One strategy for a name: hypothesis sees that a tree of volumes refers to itself, and ends it.
    return st.deferred(lambda: _examples(resolved(schemas()[name])))


def _examples(schema: Schema) -> st.SearchStrategy[Any]:
    if "oneOf" in schema:
        return st.one_of([examples(variant) for variant in schema["oneOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "object":
            return _objects(schema)
        case "array":
            shortest, longest = schema.get("minItems", 0), schema.get("maxItems", 2)
            items = examples(schema["items"])
            return st.lists(items, min_size=shortest, max_size=longest, unique=schema.get("uniqueItems", False))
        case "integer":
            return st.integers(*integer_range(schema))
        case "boolean":
            return st.booleans()
        case "string" if schema.get("format") == "uuid":
            return st.uuids().map(str)
        case "string":
            return st.text(max_size=8)
    raise AssertionError(f"a kind of schema that the document did not have before: {schema}")


def _objects(schema: Schema) -> st.SearchStrategy[Any]:
    if "properties" not in schema and isinstance(schema.get("additionalProperties"), Mapping):
        return st.dictionaries(st.text(max_size=5), examples(schema["additionalProperties"]), max_size=3)
    properties = {name: examples(part) for name, part in _properties(schema)}
    required = schema.get("required", ())
    return st.fixed_dictionaries(
        {name: properties[name] for name in required},
        optional={name: values for name, values in properties.items() if name not in required},
    )


def _properties(schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield from schema.get("properties", {}).items()


def violations(schema: Schema, value: Any, where: str = "$") -> Iterator[str]:
    """Return the violations of the schema by the value."""
    if value is None and (schema.get("nullable") or None in schema.get("enum", ())):
        return
    schema = resolved(schema)
    if "oneOf" in schema:
        per_variant = [list(violations(variant, value, where)) for variant in schema["oneOf"]]
        if all(per_variant):
            yield f"{where}: no variant fits: {per_variant}"
    elif "enum" in schema:
        if value not in schema["enum"]:
            yield f"{where}: {value!r} is none of {schema['enum']}"
    else:
        yield from _violations(schema, value, where)


def _violations(schema: Schema, value: Any, where: str) -> Iterator[str]:
    match schema["type"], value:
        case "object", Mapping():
            yield from _object_violations(schema, value, where)
        case "array", Sequence() if not isinstance(value, str):
            if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
                yield f"{where}: has {len(value)} items"
            for index, item in enumerate(value):
                yield from violations(schema["items"], item, f"{where}[{index}]")
        case "integer", int() if not isinstance(value, bool):
            low, high = integer_range(schema)
            if not low <= value <= high:
                yield f"{where}: {value} is not in {low}…{high}"
        case "boolean", bool():
            pass
        case "string", str():
            if schema.get("format") == "uuid" and not UUID_TEXT.fullmatch(value):
                yield f"{where}: {value!r} is no UUID"
        case kind, _:
            yield f"{where}: {value!r} is no {kind}"


def _object_violations(schema: Schema, value: Mapping[str, Any], where: str) -> Iterator[str]:
    properties = dict(_properties(schema))
    yield from (f"{where}: lacks {name}" for name in schema.get("required", ()) if name not in value)
    for name, part in value.items():
        inner: Any = properties.get(name, schema.get("additionalProperties", True))
        if inner is False:
            yield f"{where}: has {name}"
        elif isinstance(inner, Mapping):
            yield from violations(inner, part, f"{where}.{name}")


def spoilt(schema: Schema, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies of the value that violate the schema in one place each, with the violation.

    Inside a part that is of another named schema nothing is spoilt: that is for that schema's own turn.
    """
    schema = resolved(schema)
    if "oneOf" in schema:
        schema = next(variant for variant in schema["oneOf"] if not list(violations(variant, value)))
    if "enum" in schema:
        yield "unknown word", "no such word"
    else:
        yield from _spoilt(schema, value)


def _spoilt_part(schema: Schema, value: Any) -> Iterator[tuple[str, Any]]:
    yield "of no kind", 1.5
    if not schema.get("nullable"):
        yield "null", None
    if value is not None and ref_name(schema) is None:
        yield from spoilt(schema, value)


def _spoilt(schema: Schema, value: Any) -> Iterator[tuple[str, Any]]:
    match schema["type"]:
        case "object":
            yield "array for object", []
            yield from _spoilt_objects(schema, value)
        case "array":
            yield "object for array", {}
            if "minItems" in schema:
                yield "too short", value[1:]
                yield "too long", [*value, *value[:1]]
            for index, item in enumerate(value):
                for wrong, other in _spoilt_part(schema["items"], item):
                    yield f"[{index}] {wrong}", [*value[:index], other, *value[index + 1 :]]
        case "integer":
            low, high = integer_range(schema)
            yield from (("too small", low - 1), ("too big", high + 1), ("text", "1"), ("fraction", 1.5))
        case "boolean":
            yield "text for boolean", "true"
        case "string":
            yield "number for string", 1
            if schema.get("format") == "uuid":
                yield "no UUID", "x"


def _spoilt_objects(schema: Schema, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    properties = dict(_properties(schema))
    for name in schema.get("required", ()):
        yield f"{name} missing", {key: part for key, part in value.items() if key != name}
    if schema.get("additionalProperties") is False:
        yield "unknown key", {**value, "no such key": 1}
    for name, part in value.items():
        inner = properties.get(name, schema.get("additionalProperties"))
        if isinstance(inner, Mapping):
            for wrong, other in _spoilt_part(inner, part):
                yield f".{name} {wrong}", {**value, name: other}
