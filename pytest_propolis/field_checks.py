"""Checks of values against their annotations: types, ranges and allowed words of a public class's fields.

An annotation is all that a field needs: ``cpus: Annotated[int, Range(1, 64)] | None``. This module imports only the
standard library, because `settings` uses it before every run.
"""

from __future__ import annotations

import enum
import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_origin

from .errors import ConfigError, PropolisError

__all__ = ["Range", "check_fields", "check_keywords", "closest", "member_of"]

Check = Callable[[Any], "str | None"]
"""Returns what a value must be, if it is not that."""

_Member = TypeVar("_Member", bound=enum.StrEnum)

_KINDS: Final = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bytes: "bytes",
    bool: "True or False",
}


class Range(NamedTuple):
    """The numbers that a field may have, as an annotation.

    :param high: the greatest; infinity for none.
    :param exclusive: whether `low` itself is excluded.
    """

    low: float
    high: float = math.inf
    exclusive: bool = False

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        return self.low <= value <= self.high and not (self.exclusive and value == self.low)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"greater than {self.low}" if self.exclusive else f"at least {self.low}"
        return f"from {self.low} to {self.high}"


def check_fields(instance: object, *, subject: str, error: type[PropolisError] = ConfigError) -> None:
    """Check every field of an object against its annotation.

    :param subject: what an error calls the object.
    :param error: what is raised.
    :raises PropolisError: for the first field whose value has a wrong type, range or word, naming it.
    """
    cls: Any = type(instance)
    for name, check in _checks(cls):
        value = getattr(instance, name)
        if (expected := check(value)) is not None:
            raise error(f"{subject}: {name} is {reprlib.repr(value)}", hint=f"it must be {expected}")


def check_keywords(names: Iterable[str], cls: type, *, subject: str) -> None:
    """Check that a class has fields of these names.

    :raises ConfigError: for the first that it has not, with the closest one that it has.
    """
    known = [name for name, _ in _checks(cls)]
    for name in names:
        if name not in known:
            hint = closest(name, known) or f"there are: {', '.join(known)}"
            raise ConfigError(f"{subject}: there is no field {name!r}", hint=hint)


def member_of(allowed: type[_Member], value: str, *, what: str) -> _Member:
    """Return the member that is equal to a text.

    :raises ConfigError: when there is none, with the closest one.
    """
    if (expected := _check_words(list(allowed), value)) is not None:
        raise ConfigError(f"{what} is {value!r}", hint=f"it must be {expected}")
    return allowed(value)


def closest(value: object, allowed: Iterable[object]) -> str:
    """Return a question that names the allowed word that a word resembles; empty if it resembles none."""
    import difflib  # here, because a run without mistakes does not pay for it

    known = {str(other).lower(): other for other in allowed}
    found = difflib.get_close_matches(str(value).lower(), known, n=1)
    return f"did you mean {_quoted(known[found[0]])}?" if found else ""


@functools.cache
def _checks(cls: type) -> tuple[tuple[str, Check], ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple((name, _check(hint)) for name, hint in hints.items() if get_origin(hint) is not typing.ClassVar)


def _check(hint: Any) -> Check:
    """Return the check for an annotation."""
    arguments = get_args(hint)
    match get_origin(hint):
        case typing.Annotated:
            return functools.partial(_check_annotated, _check(arguments[0]), arguments[1:])
        case typing.Union | types.UnionType:
            # None first: it is what most fields have, and what costs least.
            ordered = sorted(arguments, key=lambda argument: argument is not type(None))
            return functools.partial(_check_union, tuple(map(_check, ordered)))
        case typing.Literal:
            return functools.partial(_check_words, arguments)
        case builtin if builtin is tuple and arguments[1:] == (...,):
            return functools.partial(_check_tuple, _check(arguments[0]))
        case builtin if builtin is Mapping:
            return functools.partial(_check_mapping, *map(_check, arguments))
        case None if isinstance(hint, type):
            return _check_class(hint)
    raise TypeError(f"there is no check for fields of type {hint}")


def _check_class(cls: type) -> Check:
    if issubclass(cls, enum.StrEnum):
        return functools.partial(_check_words, list(cls))
    if hasattr(cls, "__struct_fields__"):
        return functools.partial(_check_struct, cls)
    return functools.partial(_check_instance, cls)


def _check_annotated(base: Check, ranges: Sequence[Range], value: Any) -> str | None:
    expected = base(value)
    if expected is None and all(value in bound for bound in ranges):
        return None
    return " ".join(filter(None, (expected, *map(str, ranges))))


def _check_union(checks: Iterable[Check], value: Any) -> str | None:
    alternatives = []
    for check in checks:
        if (expected := check(value)) is None:
            return None
        alternatives.append(expected)
    return " or ".join(filter(None, alternatives))


def _check_words(allowed: Sequence[Any], value: Any) -> str | None:
    if isinstance(value, str | int) and not isinstance(value, bool) and value in allowed:
        return None
    return "; ".join(filter(None, (" or ".join(map(_quoted, allowed)), closest(value, allowed))))


def _check_tuple(check: Check, value: Any) -> str | None:
    if not isinstance(value, tuple):
        return f"a tuple, and is a {type(value).__name__}"
    return next((f"a tuple whose items are each {expected}" for expected in map(check, value) if expected), None)


def _check_mapping(check_key: Check, check_value: Check, value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return f"a mapping, and is a {type(value).__name__}"
    for key, item in value.items():
        if expected := check_key(key):
            return f"a mapping whose keys are each {expected}"
        if expected := check_value(item):
            return f"a mapping whose values are each {expected}; that of {key!r} is a {type(item).__name__}"
    return None


def _check_struct(cls: type, value: Any) -> str | None:
    if not isinstance(value, cls):
        return _named(cls)
    import msgspec  # here, because a run without VMs does not pay for it

    try:
        msgspec.json.decode(msgspec.json.encode(value), type=cls)
    except (msgspec.MsgspecError, TypeError) as error:
        return f"a valid {cls.__name__}: {error}"
    return None


def _check_instance(cls: type, value: Any) -> str | None:
    if cls is type(None):
        return None if value is None else ""
    if isinstance(value, bool) and cls is not bool:
        return _named(cls)
    if not isinstance(value, (int, float) if cls is float else cls):
        return _named(cls)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, str) and not _is_sound(value):
        return "text without NUL characters or lone surrogates"
    return None


def _is_sound(text: str) -> bool:
    """Return whether a text can be a name or an argument of a program."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _named(cls: type) -> str:
    return _KINDS.get(cls, f"a {cls.__name__}")


def _quoted(value: object) -> str:
    return repr(str(value)) if isinstance(value, str) else repr(value)
