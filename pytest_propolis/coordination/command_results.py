"""Results of commands, on hosts and in guests alike: exit statuses and JSON objects."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from ..errors import CoordinationLost, CoordinationTimeout, Poisoned, PropolisError, SettingsError
from .group import NodeGroup
from .node import Node

__all__ = [
    "Status",
    "barrier_object",
    "baton_object",
    "done_object",
    "error_object",
    "exit_status",
    "nodes_object",
    "value_object",
    "values_object",
]


class Status(IntEnum):
    """Exit statuses of the commands."""

    DONE = 0
    NO = 1
    """There is no such key, or it was not as expected."""
    USAGE = 2
    TIMED_OUT = 3
    POISONED = 4
    LOST = 5
    """The store cannot be reached, or the group or the node has ended."""


def exit_status(error: PropolisError) -> Status:
    """Return the exit status for an error."""
    match error:
        case CoordinationTimeout():
            return Status.TIMED_OUT
        case Poisoned():
            return Status.POISONED
        case CoordinationLost():
            return Status.LOST
        case SettingsError():
            return Status.USAGE
    return Status.NO


def error_object(error: PropolisError) -> dict[str, object]:
    described: dict[str, object] = {"message": error.message, "hint": error.hint, "waited_s": error.waited_s}
    match error:
        case Poisoned():
            described |= {"node": error.node, "reason": error.reason, "output": error.output}
        case CoordinationTimeout():
            described |= {"missing": error.missing}
    given = {name: value for name, value in described.items() if value not in (None, "", ())}
    return {"status": exit_status(error).name.lower(), **given}


def barrier_object(node: Node, barrier: str, generation: int) -> dict[str, object]:
    return {"barrier": barrier, "generation": generation, "node": node.name}


def baton_object(baton: str, holder: str | None, line: list[str]) -> dict[str, object]:
    return {"baton": baton, "holder": holder, "line": line}


def value_object(key: str, value: bytes) -> dict[str, object]:
    return {"key": key, "value": _text(value)}


def values_object(values: Mapping[str, bytes]) -> dict[str, object]:
    return {key: _text(value) for key, value in values.items()}


def done_object(key: str, done: bool) -> dict[str, object]:
    return {"key": key, "done": done}


def nodes_object(group: NodeGroup) -> dict[str, object]:
    return {"nodes": group.members(), "ended": group.ended()}


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
