"""The commands of a guest's script, done in the name of its node: those of ``propolis`` that need no program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ...coordination.limits import DEFAULT_TIMEOUT_S
from ...coordination.node import Node
from ...errors import CoordinationError, CoordinationLost, CoordinationTimeout, Poisoned

__all__ = ["Answer", "answer_command"]

NO, USAGE, TIMED_OUT, POISONED, LOST = range(1, 6)
"""Exit statuses, as those of the command ``propolis`` on the host."""


USAGE_TEXT: Final = """usage: barrier NAME PARTIES [--timeout S]
       baton take|show NAME, baton pass NAME [NODE]
       kv get|wait|delete KEY, kv put|add KEY [VALUE], kv list [PREFIX]
       lock NAME -- COMMAND...
       node list, node find NAME, node poison REASON
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command writes, and its exit status."""

    status: int = 0
    output: bytes = b""
    errors: bytes = b""


class _Usage(Exception):
    """Raised when a command is not understood."""


async def answer_command(node: Node, words: list[str], typed: bytes) -> Answer:
    """Do a command.

    :param words: its name and arguments.
    :param typed: what its standard input has.
    """
    try:
        timeout_s = _timeout(words)
        return await _COMMANDS[words[0]](node, words[1:], typed, timeout_s)
    except (_Usage, KeyError, IndexError, ValueError):
        return Answer(USAGE, errors=USAGE_TEXT.encode())
    except CoordinationError as error:
        return Answer(_status(error), errors=f"propolis: {error}\n".encode())


def _timeout(words: list[str]) -> float:
    """Take ``--timeout S`` out of the words."""
    if "--timeout" not in words:
        return DEFAULT_TIMEOUT_S
    position = words.index("--timeout")
    _, text = words[position : position + 2]
    del words[position : position + 2]
    return float(text)


def _status(error: CoordinationError) -> int:
    match error:
        case CoordinationTimeout():
            return TIMED_OUT
        case Poisoned():
            return POISONED
        case CoordinationLost():
            return LOST
    return NO


async def _barrier(node: Node, words: list[str], _typed: bytes, timeout_s: float) -> Answer:
    name, parties = words
    return _line(str(await node.barrier(name, int(parties), timeout_s=timeout_s)))


async def _baton(node: Node, words: list[str], _typed: bytes, timeout_s: float) -> Answer:
    baton = node.baton(words[1])
    match words:
        case ["take", _]:
            await baton.take(timeout_s=timeout_s)
        case ["pass", _, *to] if len(to) <= 1:
            await baton.pass_on(*to)
        case ["show", _]:
            return _line(baton.holder or "-", *baton.line)
        case _:
            raise _Usage
    return Answer()


async def _lock(node: Node, words: list[str], _typed: bytes, timeout_s: float) -> Answer:
    match words:
        case ["acquire", name]:
            await node.lock(name).acquire(timeout_s=timeout_s)
        case ["release", name]:
            await node.lock(name).release()
        case _:
            raise _Usage
    return Answer()


async def _kv(node: Node, words: list[str], typed: bytes, timeout_s: float) -> Answer:
    values = node.group.kv
    match words:
        case ["get", key]:
            value = await values.get(key)
            return Answer(NO) if value is None else Answer(output=value + b"\n")
        case ["wait", key]:
            return Answer(output=await values.wait(key, timeout_s=timeout_s) + b"\n")
        case ["put", key, *given] if len(given) <= 1:
            await values.put(key, _value(given, typed))
        case ["add", key, *given] if len(given) <= 1:
            return Answer(0 if await values.add(key, _value(given, typed)) else NO)
        case ["delete", key]:
            await values.delete(key)
        case ["list", *prefix] if len(prefix) <= 1:
            return _line(*await values.list(*prefix))
        case _:
            raise _Usage
    return Answer()


async def _node(node: Node, words: list[str], _typed: bytes, timeout_s: float) -> Answer:
    match words:
        case ["list"]:
            return _line(*(f"{name}\t{info.address or '-'}" for name, info in node.group.members().items()))
        case ["find", name]:
            return _line((await node.group.find(name, timeout_s=timeout_s)).address)
        case ["poison", reason]:
            await node.group.poison(reason, node=node.name)
        case _:
            raise _Usage
    return Answer()


def _value(given: list[str], typed: bytes) -> bytes:
    return given[0].encode(errors="surrogateescape") if given else typed.removesuffix(b"\n")


def _line(*lines: str) -> Answer:
    return Answer(output="".join(f"{line}\n" for line in lines).encode())


_Command = Callable[[Node, list[str], bytes, float], Awaitable[Answer]]

_COMMANDS: Final[dict[str, _Command]] = {"barrier": _barrier, "baton": _baton, "kv": _kv, "lock": _lock, "node": _node}
