"""Shared parts of the node commands: the group's address, exit statuses, and the connection."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import IntEnum
from typing import Any

import click
import msgspec

from ...coordination.backends.address import connect_store, group_and_store
from ...coordination.group import GROUP_VARIABLE, NODE_VARIABLE, NodeGroup
from ...coordination.limits import DEFAULT_TIMEOUT_S
from ...coordination.node import Node
from ...errors import CoordinationError, CoordinationLost, CoordinationTimeout, Poisoned, PropolisError, SettingsError

__all__ = ["Status", "acting_node", "attached", "group_command", "named_node", "print_json", "timeout_option"]


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


def _status(error: PropolisError) -> Status:
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


def group_command(function: Callable[..., Awaitable[int | None]]) -> Callable[..., None]:
    """Add the options of a group to a command, and run it with the open ``group``.

    The function's result is the exit status. An error is shown, as JSON with ``--json``.
    """

    @click.option(
        "--group",
        "address",
        envvar=GROUP_VARIABLE,
        metavar="ADDRESS",
        help=f"The group; by default that of {GROUP_VARIABLE}.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @functools.wraps(function)
    def command(*, address: str | None, as_json: bool, **arguments: Any) -> None:
        if not address:
            raise click.UsageError(f"no group is known: set {GROUP_VARIABLE}, or give --group")
        raise SystemExit(_run(function, address, as_json=as_json, arguments=arguments))

    return command


def _run(
    function: Callable[..., Awaitable[int | None]], address: str, *, as_json: bool, arguments: dict[str, Any]
) -> int:
    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with attached(address) as group:
            return await function(group=group, as_json=as_json, **arguments) or Status.DONE

    try:
        return asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 128 + signal.SIGINT
    except PropolisError as error:
        status = _status(error)
        if as_json:
            print_json({"status": status.name.lower(), **_described(error)})
        click.echo(f"propolis: {error}", err=True)
        return status


@contextlib.asynccontextmanager
async def attached(address: str) -> AsyncIterator[NodeGroup]:
    """Attach to the group of an address."""
    name, store = group_and_store(address)
    backend = await connect_store(store)
    async with contextlib.aclosing(backend), await NodeGroup.attach(backend, name) as group:
        group.address = address
        yield group


def timeout_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--timeout``."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        show_default=True,
        metavar="S",
        help="Seconds to wait.",
    )(function)


def named_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--as``."""
    return click.option(
        "--as",
        "name",
        envvar=NODE_VARIABLE,
        metavar="NODE",
        help=f"The node to act as; by default that of {NODE_VARIABLE}.",
    )(function)


@contextlib.asynccontextmanager
async def acting_node(group: NodeGroup, name: str | None, *, transient: bool) -> AsyncIterator[Node]:
    """Yield the node on whose behalf a command acts.

    :param transient: whether a node that is not there is registered for the time of the command.
    """
    if name is not None and (not transient or name in group.members()):
        yield group.borrow(name)
    elif transient:
        async with await group.join(name or f"{socket.gethostname()}-{os.getpid()}", vital=False) as node:
            yield node
    else:
        raise CoordinationError(
            "no node is known to act as",
            hint=f"run the program with `propolis node run`, set {NODE_VARIABLE}, or give --as",
        )


def print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value))


def _described(error: PropolisError) -> dict[str, object]:
    described: dict[str, object] = {"message": error.message, "hint": error.hint, "waited_s": error.waited_s}
    if isinstance(error, Poisoned):
        described |= {"node": error.node, "reason": error.reason, "output": error.output}
    return {name: value for name, value in described.items() if value not in (None, "", ())}
