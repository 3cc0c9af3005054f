"""The commands of a guest's script, carried out as its node: those of ``propolis`` that need no program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ...coordination.command_results import (
    Status,
    barrier_object,
    baton_object,
    done_object,
    error_object,
    exit_status,
    nodes_object,
    value_object,
    values_object,
)
from ...coordination.limits import DEFAULT_TIMEOUT_S
from ...coordination.node import Node
from ...coordination.node_info import NodeInfo
from ...errors import CoordinationError

__all__ = ["Answer", "answer_command"]

USAGE_TEXT: Final = """usage: barrier NAME PARTIES
       baton take|show NAME, baton pass NAME [NODE] [--wait]
       kv get|wait|delete KEY, kv put|add KEY [VALUE], kv list [PREFIX]
       lock NAME [--permits N] -- COMMAND...
       node list, node find NAME, node poison REASON
       node discover [NAME] [--label WORD]... [--count N]
options of all: --json, and of those that wait: --timeout S
"""
TAKE_VALUES: Final = ("--timeout", "--permits", "--count", "--label")
WAITS: Final = frozenset({"--timeout"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of a command, and its exit status."""

    status: int = 0
    output: bytes = b""
    errors: bytes = b""


class _Usage(Exception):
    """Raised when a command is not understood."""


@dataclass(slots=True)
class _Request:
    """A command's words that are no options, and its options with their values; a flag has an empty one.

    :param typed: what its standard input has.
    """

    words: list[str] = field(default_factory=list)
    options: dict[str, list[str]] = field(default_factory=dict)
    typed: bytes = b""

    @property
    def timeout_s(self) -> float:
        return float(self.last("--timeout", DEFAULT_TIMEOUT_S))

    @property
    def optional(self) -> str | None:
        """The second word, if there is one."""
        return self.words[1] if len(self.words) > 1 else None

    @property
    def value(self) -> bytes:
        """The value to assign to a key."""
        given = self.optional
        return self.typed.removesuffix(b"\n") if given is None else given.encode(errors="surrogateescape")

    def last(self, option: str, default: float | str) -> float | str:
        return self.options.get(option, [str(default)])[-1]


@dataclass(frozen=True, slots=True)
class _Result:
    """The output of a command, as text or as a JSON object; None for no object."""

    text: bytes = b""
    value: object = None
    status: int = Status.DONE


@dataclass(frozen=True, slots=True)
class _Command:
    """
    :param words: the least and the most that it has, beside its name.
    :param options: that it takes beside ``--json``.
    """

    do: Callable[[Node, _Request], Awaitable[_Result]]
    words: tuple[int, int]
    options: frozenset[str] = frozenset()


async def answer_command(node: Node, words: list[str], typed: bytes) -> Answer:
    """Do a command.

    :param words: its name and arguments.
    :param typed: what its standard input has.
    """
    is_json = False
    try:
        command, request = _parse(words)
        request.typed = typed
        is_json = "--json" in request.options
        result = await command.do(node, request)
    except (_Usage, ValueError):
        return Answer(Status.USAGE, errors=USAGE_TEXT.encode())
    except CoordinationError as error:
        output = _json(error_object(error)) if is_json else b""
        return Answer(exit_status(error), output, errors=f"propolis: {error}\n".encode())
    return Answer(result.status, result.text if not is_json else b"" if result.value is None else _json(result.value))


def _parse(words: list[str]) -> tuple[_Command, _Request]:
    """
    :raises _Usage: when it is no command.
    """
    request, rest = _Request(), list(words)
    while rest and (word := rest.pop(0)) != "--":
        if not word.startswith("--"):
            request.words.append(word)
        elif word not in TAKE_VALUES:
            request.options[word] = [""]
        elif rest:
            request.options.setdefault(word, []).append(rest.pop(0))
        else:
            raise _Usage
    request.words += rest
    for length in (1, 2):
        if command := _COMMANDS.get(" ".join(request.words[:length])):
            del request.words[:length]
            least, most = command.words
            if not least <= len(request.words) <= most or not set(request.options) <= {"--json", *command.options}:
                raise _Usage
            return command, request
    raise _Usage


def _json(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


async def _barrier(node: Node, request: _Request) -> _Result:
    name, parties = request.words
    generation = await node.barrier(name, int(parties), timeout_s=request.timeout_s)
    return _Result(_lines(str(generation)), barrier_object(node, name, generation))


async def _take_baton(node: Node, request: _Request) -> _Result:
    await node.baton(request.words[0]).take(timeout_s=request.timeout_s)
    return _Result(value=_baton_object(node, request))


async def _pass_baton(node: Node, request: _Request) -> _Result:
    wait = "--wait" in request.options
    await node.baton(request.words[0]).pass_on(request.optional, wait=wait, timeout_s=request.timeout_s)
    return _Result(value=_baton_object(node, request))


async def _show_baton(node: Node, request: _Request) -> _Result:
    baton = node.baton(request.words[0])
    return _Result(_lines(baton.holder or "-", *baton.line), _baton_object(node, request))


def _baton_object(node: Node, request: _Request) -> dict[str, object]:
    baton = node.baton(request.words[0])
    return baton_object(baton.name, baton.holder, baton.line)


async def _acquire(node: Node, request: _Request) -> _Result:
    permits = int(request.last("--permits", "1"))
    await node.semaphore(request.words[0], permits).acquire(timeout_s=request.timeout_s)
    return _Result()


async def _release(node: Node, request: _Request) -> _Result:
    name, status = request.words[0], int(request.optional or 0)
    await node.lock(name).release()
    return _Result(value={"lock": name, "node": node.name, "status": status})


async def _get(node: Node, request: _Request) -> _Result:
    value = await node.group.kv.get(request.words[0])
    return _Result(status=Status.NO) if value is None else _found(request, value)


async def _wait(node: Node, request: _Request) -> _Result:
    return _found(request, await node.group.kv.wait(request.words[0], timeout_s=request.timeout_s))


def _found(request: _Request, value: bytes) -> _Result:
    return _Result(value + b"\n", value_object(request.words[0], value))


async def _put(node: Node, request: _Request) -> _Result:
    await node.group.kv.put(request.words[0], request.value)
    return _Result(value=done_object(request.words[0], True))


async def _add(node: Node, request: _Request) -> _Result:
    done = await node.group.kv.add(request.words[0], request.value)
    return _Result(value=done_object(request.words[0], done), status=Status.DONE if done else Status.NO)


async def _delete(node: Node, request: _Request) -> _Result:
    await node.group.kv.delete(request.words[0])
    return _Result(value=done_object(request.words[0], True))


async def _list_keys(node: Node, request: _Request) -> _Result:
    values = await node.group.kv.list(*request.words)
    return _Result(_lines(*values), values_object(values))


async def _list_nodes(node: Node, _request: _Request) -> _Result:
    return _Result(_lines(*_addresses(node.group.members())), nodes_object(node.group))


async def _find(node: Node, request: _Request) -> _Result:
    info = await node.group.find(request.words[0], timeout_s=request.timeout_s)
    return _Result(_lines(info.address), {request.words[0]: info})


async def _discover(node: Node, request: _Request) -> _Result:
    name, count = next(iter(request.words), None), int(request.last("--count", "1"))
    if count < 1 or (name is not None and count > 1):
        raise _Usage
    labels = request.options.get("--label", [])
    found = await node.group.discover(*labels, name=name, count=count, timeout_s=request.timeout_s)
    return _Result(_lines(*_addresses(found)), found)


def _addresses(nodes: dict[str, NodeInfo]) -> list[str]:
    return [f"{name}\t{info.address or '-'}" for name, info in nodes.items()]


async def _poison(node: Node, request: _Request) -> _Result:
    await node.group.poison(request.words[0], node=node.name)
    return _Result()


_COMMANDS: Final[dict[str, _Command]] = {
    "barrier": _Command(_barrier, (2, 2), WAITS),
    "baton take": _Command(_take_baton, (1, 1), WAITS),
    "baton pass": _Command(_pass_baton, (1, 2), WAITS | {"--wait"}),
    "baton show": _Command(_show_baton, (1, 1)),
    "kv add": _Command(_add, (1, 2)),
    "kv delete": _Command(_delete, (1, 1)),
    "kv get": _Command(_get, (1, 1)),
    "kv list": _Command(_list_keys, (0, 1)),
    "kv put": _Command(_put, (1, 2)),
    "kv wait": _Command(_wait, (1, 1), WAITS),
    "lock acquire": _Command(_acquire, (1, 1), WAITS | {"--permits"}),
    "lock release": _Command(_release, (1, 2)),
    "node discover": _Command(_discover, (0, 1), WAITS | {"--label", "--count"}),
    "node find": _Command(_find, (1, 1), WAITS),
    "node list": _Command(_list_nodes, (0, 0)),
    "node poison": _Command(_poison, (1, 1)),
}
