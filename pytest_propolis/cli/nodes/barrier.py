"""``propolis barrier``: wait at a barrier for a number of nodes."""

from __future__ import annotations

import click

from ...coordination.group import NodeGroup
from .attached import acting_node, group_command, named_node, print_json, timeout_option

__all__ = ["barrier"]


@click.command()
@click.argument("barrier", metavar="NAME")
@click.argument("parties", type=click.IntRange(1))
@timeout_option
@named_node
@group_command
async def barrier(
    group: NodeGroup, as_json: bool, *, barrier: str, parties: int, timeout_s: float, name: str | None
) -> None:
    """Wait until PARTIES nodes have arrived at the barrier NAME, and print how often it has opened.

    Exit statuses: 0 it has opened, 2 usage, 3 timed out, 4 poisoned, 5 the group has ended or cannot be reached. A
    program that is no node is registered as one while it waits.
    """
    async with acting_node(group, name, transient=True) as node:
        generation = await node.barrier(barrier, parties, timeout_s=timeout_s)
    if as_json:
        print_json({"barrier": barrier, "generation": generation, "node": node.name})
    else:
        click.echo(generation)
