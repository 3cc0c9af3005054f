"""Commands on the hosts of an inventory: each host over SSH runs the command itself, and its output is shown here."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from ...errors import ConfigError, PropolisError
from ...settings import Settings

if TYPE_CHECKING:
    from ...hosts.host import CommandOutput, HostSpec

__all__ = ["PROGRAM", "ask_hosts", "chosen_hosts", "on_hosts", "run_on_hosts"]

PROGRAM: Final = "pytest_propolis.cli.main:propolis"


def on_hosts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options --hosts and --host to a command, and call it with the chosen ``hosts``; None for this machine."""

    @functools.wraps(function)  # with the parameters that click has attached to it
    def with_hosts(*, inventory: str | None, names: tuple[str, ...], **arguments: Any) -> Any:
        return function(hosts=chosen_hosts(inventory, names), **arguments)

    decorated = click.option(
        "--host", "names", multiple=True, metavar="NAME", help="Only this host of the inventory; may be repeated."
    )(with_hosts)
    return click.option(
        "--hosts", "inventory", metavar="FILE", help="On all hosts of this inventory, not only on this machine."
    )(decorated)


def chosen_hosts(inventory: str | None, names: Sequence[str]) -> tuple[HostSpec, ...] | None:
    """Return the hosts that the user chose; None for this machine.

    :param inventory: as ``--propolis-hosts``; PROPOLIS_HOSTS if None and there are names.
    :raises ConfigError: when there is no inventory, or no such host in it.
    """
    if inventory is None and not names:
        return None
    from ...hosts.inventory.inventory import read_inventory

    setting = Settings.resolve(command_line={"hosts": inventory} if inventory else {}, ini={}).hosts
    if setting is None:
        raise ConfigError("--host needs an inventory", hint="name it with --hosts FILE, or in PROPOLIS_HOSTS")
    specs = {spec.name: spec for spec in read_inventory(setting)}
    for name in names:
        if name not in specs:
            raise ConfigError(f"there is no host {name!r} in the inventory", hint=f"it has {', '.join(specs)}")
    return tuple(spec for spec in specs.values() if not names or spec.name in names)


def ask_hosts(hosts: Sequence[HostSpec], arguments: Sequence[str], *, here: Callable[[], bool]) -> None:
    """Run a command on all hosts concurrently, show their output, and exit with 1 if one of them failed.

    :param arguments: of `propolis`.
    :param here: runs the command on this machine for local hosts, and returns whether it went well.
    """
    from ...hosts.kinds import is_elsewhere

    remote = [spec for spec in hosts if is_elsewhere(spec)]
    answers = asyncio.run(run_on_hosts(remote, PROGRAM, arguments))
    complete = True
    if len(remote) < len(hosts):
        click.echo(f"{', '.join(spec.name for spec in hosts if not is_elsewhere(spec))} (this machine):")
        complete = here()
    for spec, answer in zip(remote, answers, strict=True):
        click.echo(f"{spec.name}:")
        if isinstance(answer, PropolisError):
            click.echo(str(answer), err=True)
            complete = False
            continue
        click.echo(answer.output, nl=False)
        click.echo(answer.stderr, nl=False, err=True)
        complete &= answer.status == 0
    if not complete:
        raise click.exceptions.Exit(1)


async def run_on_hosts(
    hosts: Sequence[HostSpec], program: str, arguments: Sequence[str]
) -> list[CommandOutput | PropolisError]:
    """Call a function of this project on all hosts concurrently; return the output or the error of each."""
    return list(await asyncio.gather(*(_run_on_host(spec, program, arguments) for spec in hosts)))


async def _run_on_host(spec: HostSpec, program: str, arguments: Sequence[str]) -> CommandOutput | PropolisError:
    from ...hosts.kinds import open_connection

    try:
        async with open_connection(spec) as connection:
            return await connection.run(program, arguments)
    except PropolisError as error:
        return error
