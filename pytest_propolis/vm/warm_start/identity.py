"""The identity of forks: prepare a template's guest for it, and assign it to each fork."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from ...console.commands import CommandResult
from ...console.shell import Shell
from ...console.shell_protocol import TypedCommand, typed_command
from ...console.transports.port_loop import framed_command_for_port, typed_command_for_port
from ...errors import TemplateError
from ...guests.adapter import GuestAdapter
from ...guests.fork_identity import NOT_EXECUTABLE
from ...terminal_text import abbreviated
from ..timings import Timings
from .fork_handle import ForkHandle

__all__ = ["assign_identity", "prepare_snapshot", "typed_identity", "warmup_input"]

CLOCK_LAG_S: Final = 0.5
"""A fork's clock lags at most by the time that the identity command took."""

SETTLING_S: Final = 1.0
"""What a kernel has put off is done before it is saved: each fork would do it before its first command."""

MESSAGE_CHARACTERS: Final = 400
MAX_RESENDS: Final = 3
IDENTITY_NOTE: Final = "taking on an identity of its own"
PREPARING: Final = "preparing the template"


async def assign_identity(
    shell: Shell, guest: GuestAdapter, forked: ForkHandle, *, phases: Timings, timeout_s: float
) -> None:
    """Assign a fork its identity, and wait until it has detected its additional devices.

    If the guest received the time late, send it again.

    :raises ShellError: when that fails.
    """
    name = forked.properties.name
    with phases.during("identity"):
        sent_s = time.monotonic()
        if forked.typed_identity is None:
            await _assign_identity(shell, guest, name=name, timeout_s=timeout_s)
        else:
            sent_s = forked.rendered_s
            await shell.run_typed(forked.typed_identity, timeout_s=timeout_s, note=IDENTITY_NOTE)
        for _ in range(MAX_RESENDS):
            if time.monotonic() - sent_s < CLOCK_LAG_S:
                break
            await shell.run(guest.await_identity_command(), timeout_s=timeout_s, note=IDENTITY_NOTE)
            sent_s = time.monotonic()
            await _assign_identity(shell, guest, name=name, timeout_s=timeout_s)
    if forked.plugged:
        with phases.during("devices"):
            command = guest.await_hotplug_command(forked.plugged)
            await shell.run(command, timeout_s=timeout_s, note="finding its further devices")


async def prepare_snapshot(shell: Shell, guest: GuestAdapter, *, name: str, timeout_s: float) -> None:
    """Prepare a guest for its snapshot: install and test what forks need, and quiet it.

    :param timeout_s: of each step.
    :raises TemplateError: when the guest lacks a requirement.
    :raises ShellError: when that fails.
    """
    for command in guest.template_commands():
        result = await shell.run(command, timeout_s=timeout_s, note=PREPARING, check=False)
        if result.status:
            raise _not_prepared(guest, result)
    await _assign_identity(shell, guest, name=name, timeout_s=timeout_s)
    await shell.run(guest.await_identity_command(), timeout_s=timeout_s, note=PREPARING)
    await shell.run(guest.quiet_command, timeout_s=timeout_s)
    await asyncio.sleep(SETTLING_S)


def _not_prepared(guest: GuestAdapter, result: CommandResult) -> TemplateError:
    if result.status == NOT_EXECUTABLE:
        return TemplateError(
            f"no program can be run in {guest.name} from {guest.scratch} or another directory",
            hint="set the adapter's `scratch` to a file in a directory that is not mounted noexec",
        )
    why = abbreviated(result.text, MESSAGE_CHARACTERS)
    return TemplateError(f"{guest.name} cannot be prepared for forks: status {result.status}: {why}")


def warmup_input(guest: GuestAdapter, *, name: str, session: str, over_port: bool) -> TypedCommand:
    """Return the command that assigns a fork's identity and re-arms the helper.

    That takes a fork and an exec, and the shell's way of running commands, which makes the guest's first own command
    fast.

    :raises TemplateError: when the adapter's commands are too long for that.
    """
    command = f"{guest.identity_command(name=name)} && {guest.await_identity_command()}"
    return _typed(guest, command, partial(framed_command_for_port, session=session) if over_port else typed_command)


def typed_identity(guest: GuestAdapter, *, name: str, over_port: bool) -> TypedCommand:
    """Return the command that assigns a fork's identity. It contains the time.

    :raises TemplateError: when the adapter's command is too long for that.
    """
    return _typed(guest, guest.identity_command(name=name), typed_command_for_port if over_port else typed_command)


def _typed(guest: GuestAdapter, command: str, frame: Callable[[str], TypedCommand]) -> TypedCommand:
    try:
        return frame(command)
    except ValueError as error:
        raise TemplateError(f"the identity of a fork of {guest.name} cannot be prepared: {error}") from None


async def _assign_identity(shell: Shell, guest: GuestAdapter, *, name: str, timeout_s: float) -> None:
    await shell.run(guest.identity_command(name=name), timeout_s=timeout_s, note=IDENTITY_NOTE)
