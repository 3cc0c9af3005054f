"""``propolis baton``: hold a baton, which one node holds at a time, and pass it on."""

from __future__ import annotations

import click

from ...coordination.baton import Baton
from ...coordination.command_results import baton_object
from ...coordination.group import NodeGroup
from .attached import acting_node, group_command, named_node, print_json, timeout_option

__all__ = ["baton"]


@click.group()
def baton() -> None:
    """Hold a baton, which one node holds at a time, and pass it on.

    Exit statuses: 0 done, 1 it is not held or there is no such node, 2 usage, 3 timed out, 4 poisoned, 5 the group or
    the node has ended.
    """


@baton.command()
@click.argument("baton_name", metavar="NAME")
@timeout_option
@named_node
@group_command
async def take(group: NodeGroup, as_json: bool, *, baton_name: str, timeout_s: float, name: str | None) -> None:
    """Wait in line until the node holds the baton NAME."""
    async with acting_node(group, name, transient=False) as node:
        await node.baton(baton_name).take(timeout_s=timeout_s)
        _show(node.baton(baton_name), as_json)


@baton.command(name="pass")
@click.argument("baton_name", metavar="NAME")
@click.argument("to", metavar="[NODE]", required=False)
@click.option("--wait", is_flag=True, help="Wait until the node holds it again.")
@timeout_option
@named_node
@group_command
async def pass_on(
    group: NodeGroup, as_json: bool, *, baton_name: str, to: str | None, wait: bool, timeout_s: float, name: str | None
) -> None:
    """Pass the baton NAME on to NODE, or to the next in line; put it down if no node waits."""
    async with acting_node(group, name, transient=False) as node:
        await node.baton(baton_name).pass_on(to, wait=wait, timeout_s=timeout_s)
        _show(node.baton(baton_name), as_json)


@baton.command()
@click.argument("baton_name", metavar="NAME")
@group_command
async def show(group: NodeGroup, as_json: bool, *, baton_name: str) -> None:
    """Print the node that holds the baton NAME, and those that wait for it."""
    holder, line = Baton.standing(group, baton_name)
    if as_json:
        print_json(baton_object(baton_name, holder, line))
    else:
        click.echo("\n".join([holder or "-", *line]))


def _show(held: Baton, as_json: bool) -> None:
    if as_json:
        print_json(baton_object(held.name, held.holder, held.line))
