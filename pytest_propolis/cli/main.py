"""The command group `propolis`. It imports a command only when it is run or listed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection
from typing import Any, Final

import click

from ..errors import PropolisError
from ..settings import OPTIONS, Settings

__all__ = ["choices", "propolis", "settings_options"]

_COMMANDS: Final = {
    "artifacts": ".artifacts",
    "barrier": ".nodes.barrier",
    "baton": ".nodes.baton",
    "console": ".console",
    "cp": ".vms.cp",
    "doctor": ".doctor",
    "durations": ".durations",
    "exec": ".vms.exec",
    "gc": ".gc",
    "job": ".nodes.job",
    "join": ".hosts.join",
    "kv": ".nodes.kv",
    "lock": ".nodes.lock",
    "node": ".nodes.node",
    "ps": ".ps",
    "run": ".vms.run",
    "serve": ".serve",
    "setup": ".setup",
    "top": ".top",
}
"""The module of each command, which is an attribute of the same name."""

_CHOICES: Final = ("guest", "accelerator", "qemu", "artifact_dir", "boot_timeout", "settings_file")
"""The options of pytest that tell what a host needs for a run."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name], __package__), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PropolisError as error:
            raise _Refused(str(error)) from None


class _Refused(click.ClickException):
    """Raised in place of a PropolisError, for click to display."""

    def show(self, file: Any = None) -> None:
        click.echo(f"propolis: {self.message}", file=file, err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-propolis", prog_name="propolis", message="%(prog)s %(version)s")
def propolis() -> None:
    """Manage this machine and its VMs for pytest-propolis."""


def choices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add pytest's host-related options to a command, and call it with the resolved ``settings``."""
    return settings_options(function, names=_CHOICES)


def settings_options(function: Callable[..., Any], *, names: Collection[str]) -> Callable[..., Any]:
    """Add some of pytest's options to a command, and call it with the resolved ``settings``."""

    @functools.wraps(function)  # with the parameters that click has attached to it
    def with_settings(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in names}
        return function(settings=Settings.resolve(command_line=given, ini={}), **arguments)

    decorated = with_settings
    for option in reversed([option for option in OPTIONS if option.name in names]):
        decorated = click.option(option.flag, option.name, metavar=option.metavar, help=option.description)(decorated)
    return decorated
