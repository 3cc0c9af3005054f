"""A machine's state as a stream: saved by one QEMU, loaded by another.

QEMU's migration, with a file descriptor at each end. It carries the devices' state and, unless both machines map one
file as their memory (`GuestMemory`), the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..qemu.machine import Machine
from ..qemu.monitor import MachineError

__all__ = ["cancel_transfer", "load_state", "save_state"]

FD_NAME = "state"
ENDED = frozenset({"completed", "failed", "cancelled"})

BYTES_PER_S: Final = 8 << 30
"""The bandwidth limit of the stream: QEMU's default of 128 MiB per second is meant for shared networks."""

CANCEL_TIMEOUT_S: Final = 10.0


async def save_state(
    machine: Machine,
    fd: int,
    *,
    memory_in_file: bool,
    stop: Callable[[], Awaitable[None]] | None = None,
    on_switchover: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Write the state of a machine to `fd`, which stays the caller's.

    The machine is stopped in the end, and its guest ports are held if its memory lies in a shared file;
    `Machine.resume` lets it run on. When this is cancelled, follow with `cancel_transfer`.

    :param memory_in_file: leave out memory that lies in a shared file.
    :param stop: stops the machine; called when all is prepared, so that it stands still as briefly as can be. None for
        a machine that is stopped, or is to run on while its memory is copied.
    :param on_switchover: called when a machine that runs was stopped, and its devices' state is about to be saved.
    :raises MachineError: when QEMU cannot save it, with the reason.
    """
    if memory_in_file:
        machine.ports.hold()
    try:
        await machine.execute("migrate-set-parameters", **{"max-bandwidth": BYTES_PER_S})
        await _transfer(machine, "migrate", fd, memory_in_file=memory_in_file, stop=stop, on_switchover=on_switchover)
    except BaseException:
        machine.ports.release()
        raise


async def cancel_transfer(machine: Machine) -> None:
    """Cancel QEMU's saving that is in progress or prepared, if any. The machine can be resumed then.

    :raises MachineError: when QEMU does not.
    """
    with machine.events("MIGRATION") as events:
        await machine.execute("migrate_cancel")
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                while (await machine.execute("query-migrate")).get("status", "none") not in {*ENDED, "none"}:
                    await machine.next_event(events)
        except TimeoutError:
            raise MachineError(f"QEMU has not cancelled the migration for {CANCEL_TIMEOUT_S:.0f} s") from None
    await machine.close_fd(FD_NAME)


async def load_state(machine: Machine, fd: int, *, memory_in_file: bool) -> None:
    """Read the state of a machine that was started as `incoming` from `fd`, which stays the caller's.

    The machine stays stopped, and its guest ports are held; `Machine.resume` lets it run.

    :raises MachineError: when the state does not fit, or is cut off.
    """
    machine.ports.fill()
    await _transfer(machine, "migrate-incoming", fd, memory_in_file=memory_in_file)


async def _transfer(
    machine: Machine,
    command: str,
    fd: int,
    *,
    memory_in_file: bool,
    stop: Callable[[], Awaitable[None]] | None = None,
    on_switchover: Callable[[], Awaitable[None]] | None = None,
) -> None:
    incoming = command == "migrate-incoming"
    await set_capabilities(
        machine,
        {
            "events": True,
            "x-ignore-shared": memory_in_file,
            "pause-before-switchover": on_switchover is not None,
            # The disks are the saved machine's until the loaded one runs: it can run on if the other one fails.
            "late-block-activate": incoming,
        },
    )
    await machine.send_fd(FD_NAME, fd)
    if stop is not None:
        await stop()
    with machine.events("MIGRATION") as events:
        await machine.execute(command, uri=f"fd:{FD_NAME}")
        status = "none"
        while status not in ENDED:
            _, data = await machine.next_event(events)
            status = data["status"]
            if status == "pre-switchover" and on_switchover is not None:
                await on_switchover()
                await machine.execute("migrate-continue", state="pre-switchover")
    if status != "completed":
        result: dict[str, Any] = await machine.execute("query-migrate")
        raise MachineError(f"QEMU: {command}: {status}: {result.get('error-desc', 'no reason given')}")


async def set_capabilities(machine: Machine, wanted: dict[str, bool]) -> None:
    """Switch capabilities of QEMU's migration on and off."""
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await machine.execute("migrate-set-capabilities", capabilities=capabilities)
