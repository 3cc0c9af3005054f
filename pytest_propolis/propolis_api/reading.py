"""Read what a server answers, also one of a newer version of the API, which may know more than this client."""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any, TypeVar, cast

import msgspec

__all__ = ["UnknownVariant", "read"]

T = TypeVar("T")


class UnknownVariant(msgspec.Struct, frozen=True):
    """Stands where a newer server sent a variant that this client does not know, as a kind of component.

    :param content: the JSON value, as it came. It is not sent back.
    """

    content: Any


def read(content: bytes, kind: type[T]) -> T:
    """Decode an answer.

    Unknown fields are passed over. An enum's unknown word becomes an unlisted member, which is the text; an unknown
    variant of a union becomes an `UnknownVariant`.

    :raises msgspec.DecodeError: when the answer lacks what the API promises, or is no JSON.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        strict = error
    try:
        return cast(T, _build(msgspec.json.decode(content), kind))
    except msgspec.ValidationError:
        raise strict from None


def _build(value: Any, hint: Any) -> Any:
    """Make what a type hint promises of a JSON value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _variant(value, arguments)
    if origin is dict and isinstance(value, dict):
        return {msgspec.convert(key, arguments[0], strict=False): _build(of, arguments[1]) for key, of in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        items = [_build(item, arguments[0]) for item in value]
        return items if origin is list else tuple(items)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and isinstance(value, dict):
        return _struct(value, hint)
    if isinstance(hint, type) and issubclass(hint, Enum) and issubclass(hint, str) and isinstance(value, str):
        return _enum_member(value, hint)
    return msgspec.convert(value, hint)


def _struct(value: dict[str, Any], kind: type[msgspec.Struct]) -> msgspec.Struct:
    known = {
        field.name: _build(value[field.encode_name], field.type)
        for field in msgspec.structs.fields(kind)
        if field.encode_name in value
    }
    try:
        return kind(**known)
    except TypeError as error:  # one is missing
        raise msgspec.ValidationError(str(error)) from None


def _variant(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    structs = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    for kind in structs:
        config = kind.__struct_config__
        if config.tag is None:
            return _build(value, kind)
        if isinstance(value, dict) and value.get(config.tag_field) == config.tag:
            return _build(value, kind)
    if structs and isinstance(value, dict):
        return UnknownVariant(value)
    others = [kind for kind in kinds if kind not in structs and kind is not types.NoneType]
    return _build(value, others[0]) if len(others) == 1 else msgspec.convert(value, typing.Union[kinds])  # noqa: UP007


def _enum_member(value: str, kind: type[Enum]) -> Any:
    try:
        return kind(value)
    except ValueError:
        member: Any = str.__new__(cast(type[str], kind), value)
        member._name_, member._value_ = value, value
        return member
