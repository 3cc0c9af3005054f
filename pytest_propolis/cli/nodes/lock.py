"""``propolis lock``: run a program while holding a lock, or a permit of a semaphore."""

from __future__ import annotations

import click

from ...coordination.group import NodeGroup
from .attached import acting_node, group_command, named_node, print_json, timeout_option
from .program import run_program

__all__ = ["lock"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("lock_name", metavar="NAME")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--permits", default=1, type=click.IntRange(1), show_default=True, help="How many nodes may hold it.")
@timeout_option
@named_node
@group_command
async def lock(
    group: NodeGroup,
    as_json: bool,
    *,
    lock_name: str,
    command: tuple[str, ...],
    permits: int,
    timeout_s: float,
    name: str | None,
) -> int:
    """Run COMMAND while holding the lock NAME, and exit with its status.

    The lock is free again when the program has ended, and when its node has ended or vanished.

    Exit statuses: that of COMMAND; without having run it 1 the node has the lock already, 2 usage, 3 timed out, 4
    poisoned, 5 the group has ended or cannot be reached.
    """
    async with acting_node(group, name, transient=True) as node:
        held = node.semaphore(lock_name, permits)
        await held.acquire(timeout_s=timeout_s)
        try:
            status = (await run_program(command, group.environment(node.name))).status
        finally:
            await held.release()
    if as_json:
        print_json({"lock": lock_name, "node": node.name, "status": status})
    return status
