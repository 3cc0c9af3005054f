"""Comparison of the models' types with the OpenAPI document, without decoding values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import EnumMeta
from types import UnionType
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, inspect
from openapi_document import INTEGER_BITS, Schema, ref_name

import pytest_propolis.propolis_api as api

PLAIN: Final[Mapping[tuple[str, str | None], type[inspect.Type]]] = {
    ("string", None): inspect.StrType,
    ("string", "uuid"): inspect.UUIDType,
    ("boolean", None): inspect.BoolType,
}
NONE_WHEN_ABSENT: Final = {"Error.error_code"}
"""Optional in the document but not nullable: None here stands for absence, and must never be written as null."""


class Comparison:
    """Finds the differences between the schemas and our types, and notes which of our classes it met."""

    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self._schemas = schemas
        self.met: set[type] = set()

    def named(self, name: str) -> Iterator[str]:
        """The differences between a schema and our type of the same name."""
        ours = getattr(api, name, None)
        if ours is None:
            yield f"{name}: not in propolis_api"
        else:
            yield from self._same(self._schemas[name], inspect.type_info(ours), name)

    def _same(self, schema: Schema, ours: inspect.Type, where: str) -> Iterator[str]:
        """Differences apart from null, which a field's owner compares."""
        if isinstance(ours, inspect.StructType | inspect.EnumType):
            self.met.add(ours.cls)
        name = ref_name(schema)
        if name is not None:
            if _identity(ours) != _identity(inspect.type_info(getattr(api, name))):
                yield f"{where}: is no {name}"
        elif "allOf" in schema:
            yield from self._same(schema["allOf"][0], ours, where)
        elif "oneOf" in schema:
            yield from self._one_of(schema["oneOf"], ours, where)
        elif "enum" in schema:
            yield from _unequal(where, "words", set(schema["enum"]), _words(ours))
        else:
            yield from self._typed(schema, ours, where)

    def _typed(self, schema: Schema, ours: inspect.Type, where: str) -> Iterator[str]:
        match schema["type"], ours:
            case "object", inspect.StructType():
                yield from self._struct(schema, ours, where)
            case "object", inspect.DictType(key_type=inspect.StrType(), value_type=values):
                yield from _unequal(where, "properties", {}, schema.get("properties", {}))
                yield from self._same(schema["additionalProperties"], values, f"{where}.*")
            case "array", inspect.FrozenSetType() if schema.get("uniqueItems"):
                yield from self._same(schema["items"], ours.item_type, f"{where}[]")
            case "array", inspect.ListType() | inspect.VarTupleType() if not schema.get("uniqueItems"):
                yield from _unequal(where, "shortest", schema.get("minItems"), ours.min_length)
                yield from _unequal(where, "longest", schema.get("maxItems"), ours.max_length)
                yield from self._same(schema["items"], ours.item_type, f"{where}[]")
            case "integer", inspect.IntType():
                yield from _unequal(where, "lowest", schema["minimum"], ours.ge)
                yield from _unequal(where, "highest", _highest(schema["format"]), ours.le)
            case kind, _:
                expected = PLAIN.get((kind, schema.get("format")))
                if expected is None or type(ours) is not expected:
                    yield f"{where}: {schema} is not {ours}"

    def _struct(self, schema: Schema, ours: inspect.StructType, where: str) -> Iterator[str]:
        closed = schema.get("additionalProperties") is False
        yield from _unequal(where, "closed", closed, ours.forbid_unknown_fields)
        properties = dict(schema["properties"])
        if ours.tag_field is not None:
            tag = properties.pop(ours.tag_field, {})
            yield from _unequal(where, "tag", tag.get("enum"), [ours.tag])
            yield from _unequal(where, "tag required", True, ours.tag_field in schema["required"])
        fields = {field.encode_name: field for field in ours.fields}
        yield from _unequal(where, "properties", properties.keys(), fields.keys())
        for name in properties.keys() & fields.keys():
            required = name in schema.get("required", ())
            yield from self._field(properties[name], fields[name], ours, f"{where}.{name}", required=required)

    def _field(
        self, schema: Schema, field: inspect.Field, owner: inspect.StructType, where: str, *, required: bool
    ) -> Iterator[str]:
        ours, nullable = _without_null(field.type)
        yield from _unequal(where, "required", required, field.required)
        if where in NONE_WHEN_ABSENT:
            yield from _unequal(where, "omitted when None", True, owner.cls.__struct_config__.omit_defaults)
            yield from _unequal(where, "nullable", schema.get("nullable", False), not nullable)
        else:
            yield from _unequal(where, "nullable", schema.get("nullable", False), nullable)
        if schema.get("nullable") and field.default is not None:
            yield f"{where}: a nullable field's default is None, not {field.default!r}"
        if not required and not schema.get("nullable") and field.default is NODEFAULT:
            yield f"{where}: optional, but has no default"
        yield from self._same({key: part for key, part in schema.items() if key != "nullable"}, ours, where)

    def _one_of(self, variants: list[Schema], ours: inspect.Type, where: str) -> Iterator[str]:
        if all("allOf" in variant for variant in variants):
            # A key: a UUID or another name. Both are text on the wire.
            yield from _unequal(where, "types", {"string"}, {variant["allOf"][0]["type"] for variant in variants})
            yield from self._same({"type": "string"}, ours, where)
        elif isinstance(ours, inspect.UnionType):
            yield from self._tagged(variants, ours, where)
        elif len(variants) == 1:
            yield from self._same(variants[0], ours, where)
        else:
            yield from self._one_property_each(variants, ours, where)

    def _tagged(self, variants: list[Schema], ours: inspect.UnionType, where: str) -> Iterator[str]:
        members = {(member.tag,): member for member in ours.types if isinstance(member, inspect.StructType)}
        yield from _unequal(where, "kinds of variant", len(ours.types), len(members))
        tag_field = next(iter(members.values())).tag_field
        by_tag = {tuple(variant["properties"].get(tag_field, {}).get("enum", ())): variant for variant in variants}
        yield from _unequal(where, "tags", by_tag.keys(), members.keys())
        for tag in by_tag.keys() & members.keys():
            yield from self._same(by_tag[tag], members[tag], f"{where}[{tag[0]}]")

    def _one_property_each(self, variants: list[Schema], ours: inspect.Type, where: str) -> Iterator[str]:
        """Externally tagged: one struct of ours has all the variants as fields, of which one is set."""
        if not isinstance(ours, inspect.StructType):
            yield f"{where}: is no struct"
            return
        fields = {field.encode_name: field for field in ours.fields}
        yield from _unequal(
            where, "variants", {name for part in variants for name in part["properties"]}, fields.keys()
        )
        for variant in variants:
            yield from _unequal(where, "required", list(variant["properties"]), variant.get("required"))
            closed = variant.get("additionalProperties") is False
            yield from _unequal(where, "closed", closed, ours.forbid_unknown_fields)
            for name in variant["properties"].keys() & fields.keys():
                yield from _unequal(f"{where}.{name}", "required", False, fields[name].required)
                yield from self._same(variant["properties"][name], fields[name].type, f"{where}.{name}")


def our_classes() -> set[type]:
    """Every struct and enum that propolis_api has to offer, those inside its unions included."""
    found: set[type] = set()
    for name in api.__all__:
        thing = getattr(api, name)
        found.update(thing.__args__ if isinstance(thing, UnionType) else [thing] if _is_model(thing) else [])
    return found


def _is_model(thing: Any) -> bool:
    return isinstance(thing, EnumMeta) or (isinstance(thing, type) and issubclass(thing, msgspec.Struct))


def _unequal(where: str, what: str, theirs: Any, ours: Any) -> Iterator[str]:
    if theirs != ours:
        yield f"{where}: {what}: {theirs} in the document, {ours} here"


def _highest(integer_format: str) -> int | None:
    bits = INTEGER_BITS[integer_format]
    # msgspec cannot express a bound of 64 bits: the structs check it themselves, and decoding is tested for it.
    return (1 << bits) - 1 if bits < 64 else None


def _words(ours: inspect.Type) -> set[Any]:
    match ours:
        case inspect.EnumType(cls=enum):
            return {member.value for member in enum}
        case inspect.LiteralType(values=values):
            return set(values)
    return set()


def _identity(ours: inspect.Type) -> Any:
    match ours:
        case inspect.StructType(cls=cls) | inspect.EnumType(cls=cls):
            return cls
        case inspect.UnionType(types=types):
            return frozenset(_identity(member) for member in types)
    return ours


def _without_null(ours: inspect.Type) -> tuple[inspect.Type, bool]:
    if not isinstance(ours, inspect.UnionType):
        return ours, False
    rest = tuple(member for member in ours.types if not isinstance(member, inspect.NoneType))
    return (rest[0] if len(rest) == 1 else inspect.UnionType(rest)), len(rest) < len(ours.types)
