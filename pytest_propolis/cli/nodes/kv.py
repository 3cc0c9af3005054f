"""``propolis kv``: the key-values that the nodes of a group share."""

from __future__ import annotations

import sys

import click

from ...coordination.command_results import Status, done_object, value_object, values_object
from ...coordination.group import NodeGroup
from .attached import group_command, print_json, timeout_option

__all__ = ["kv"]


@click.group()
def kv() -> None:
    """Use the key-values that the nodes of a group share.

    Exit statuses: 0 done, 1 there is no such key or it has a value already, 2 usage, 3 timed out, 4 poisoned, 5 the
    group has ended or cannot be reached.
    """


def _value(value: str | None) -> bytes:
    """Return the bytes of an argument, or of standard input, less one line feed at its end."""
    return sys.stdin.buffer.read().removesuffix(b"\n") if value is None else value.encode(errors="surrogateescape")


def _show(key: str, value: bytes, as_json: bool) -> None:
    if as_json:
        print_json(value_object(key, value))
    else:
        click.echo(value)


@kv.command()
@click.argument("key")
@group_command
async def get(group: NodeGroup, as_json: bool, *, key: str) -> int:
    """Print the value of KEY."""
    value = await group.kv.get(key)
    if value is None:
        return Status.NO
    _show(key, value, as_json)
    return Status.DONE


@kv.command()
@click.argument("key")
@timeout_option
@group_command
async def wait(group: NodeGroup, as_json: bool, *, key: str, timeout_s: float) -> None:
    """Wait until KEY has a value, and print it."""
    _show(key, await group.kv.wait(key, timeout_s=timeout_s), as_json)


@kv.command()
@click.argument("key")
@click.argument("value", required=False)
@group_command
async def put(group: NodeGroup, as_json: bool, *, key: str, value: str | None) -> None:
    """Give KEY a VALUE: by default what standard input has, less one line feed at its end."""
    await group.kv.put(key, _value(value))
    if as_json:
        print_json(done_object(key, True))


@kv.command()
@click.argument("key")
@click.argument("value", required=False)
@group_command
async def add(group: NodeGroup, as_json: bool, *, key: str, value: str | None) -> int:
    """Give KEY a VALUE if it has none; exit with 1 if it has one."""
    done = await group.kv.add(key, _value(value))
    if as_json:
        print_json(done_object(key, done))
    return Status.DONE if done else Status.NO


@kv.command()
@click.argument("key")
@group_command
async def delete(group: NodeGroup, as_json: bool, *, key: str) -> None:
    """Delete KEY."""
    await group.kv.delete(key)
    if as_json:
        print_json(done_object(key, True))


@kv.command(name="list")
@click.argument("prefix", default="")
@group_command
async def list_keys(group: NodeGroup, as_json: bool, *, prefix: str) -> None:
    """Print all keys, or those in the directory PREFIX."""
    values = await group.kv.list(prefix)
    if as_json:
        print_json(values_object(values))
    else:
        for key in values:
            click.echo(key)
