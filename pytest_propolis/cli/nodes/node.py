"""``propolis node``: programs as nodes of a group."""

from __future__ import annotations

import click

from ...coordination.group import NodeGroup
from ...coordination.limits import NODE_TTL_S
from ...coordination.node import Node
from ...coordination.node_info import NodeInfo
from ...errors import CoordinationError, PropolisError
from .attached import group_command, named_node, print_json, timeout_option
from .program import run_program
from .serve import serve

__all__ = ["node"]


@click.group()
def node() -> None:
    """Run programs as nodes of a group, and find them.

    Exit statuses: 0 done, 1 there is no such node, 2 usage, 3 timed out, 4 poisoned, 5 the group has ended or cannot be
    reached.
    """


@node.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@named_node
@click.option("--address", "reached_at", default="", metavar="ADDRESS", help="Where other nodes reach it.")
@click.option("--label", "labels", multiple=True, metavar="WORD", help="A word by which other nodes find it.")
@click.option("--not-vital", is_flag=True, help="Let its failure poison nothing.")
@click.option(
    "--ttl",
    "ttl_s",
    default=NODE_TTL_S,
    show_default=True,
    metavar="S",
    help="Seconds without a sign of life until it counts as vanished.",
)
@group_command
async def run(
    group: NodeGroup,
    as_json: bool,
    *,
    command: tuple[str, ...],
    name: str | None,
    reached_at: str,
    labels: tuple[str, ...],
    not_vital: bool,
    ttl_s: float,
) -> int:
    """Run COMMAND as a node, and exit with its status.

    The node is there as long as the program runs. If the program fails, the group is poisoned with the last lines of
    its output. If the group is poisoned, the program is ended.
    """
    if name is None:
        raise click.UsageError("the node has no name: give --as")
    member = await group.join(name, address=reached_at, labels=labels, vital=not not_vital, ttl_s=ttl_s)
    try:
        ended = await run_program(command, group.environment(name), until=_interrupted(member))
    except PropolisError as error:
        await member.fail(error.message)
        raise
    if ended.status:
        await member.fail(f"{command[0]} ended with status {ended.status}", status=ended.status, output=ended.output)
    else:
        await member.leave()
    if as_json:
        print_json({"node": name, "status": ended.status})
    return ended.status


async def _interrupted(member: Node) -> PropolisError:
    """Return the reason why the program must stop."""
    try:
        await member.until(lambda: None, on=(), timeout_s=None, operation=f"running node {member.name!r}")
    except CoordinationError as error:
        return error
    raise AssertionError


@node.command(name="list")
@group_command
async def list_nodes(group: NodeGroup, as_json: bool) -> None:
    """Print the nodes: name, address, labels; and those that have ended, with their status."""
    if as_json:
        print_json({"nodes": group.members(), "ended": group.ended()})
        return
    for name, info in group.members().items():
        click.echo("\t".join((name, info.address or "-", ",".join(info.labels) or "-")))
    for name, end in group.ended().items():
        click.echo(f"{name}\tended\t{end.status}")


@node.command()
@click.argument("name")
@timeout_option
@group_command
async def find(group: NodeGroup, as_json: bool, *, name: str, timeout_s: float) -> None:
    """Wait for the node NAME, and print its address."""
    _show({name: await group.find(name, timeout_s=timeout_s)}, as_json)


@node.command()
@click.argument("labels", nargs=-1)
@click.option("--count", default=1, type=click.IntRange(1), show_default=True, help="How many nodes to wait for.")
@timeout_option
@group_command
async def discover(group: NodeGroup, as_json: bool, *, labels: tuple[str, ...], count: int, timeout_s: float) -> None:
    """Wait until there are nodes with all LABELS, and print the names and addresses of all that have them."""
    found = await group.discover(*labels, count=count, timeout_s=timeout_s)
    if as_json:
        print_json(found)
    else:
        for name, info in found.items():
            click.echo(f"{name}\t{info.address or '-'}")


@node.command()
@click.argument("reason")
@group_command
async def poison(group: NodeGroup, as_json: bool, *, reason: str) -> None:
    """End all waits of the group, on every node, with REASON."""
    await group.poison(reason)


def _show(found: dict[str, NodeInfo], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(info.address for info in found.values()))


node.add_command(serve)
