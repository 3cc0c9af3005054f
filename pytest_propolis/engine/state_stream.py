"""A machine's state as a stream: saved by one QEMU, loaded by another.

QEMU's migration, with a file descriptor at each end. It carries the devices' state and, unless both machines map one
file as their memory (`GuestMemory`), the memory.
"""

from __future__ import annotations

from typing import Any

from .machine import Machine, MachineError

__all__ = ["load_state", "save_state"]

FD_NAME = "state"
ENDED = frozenset({"completed", "failed", "cancelled"})


async def save_state(machine: Machine, fd: int, *, memory_in_file: bool) -> None:
    """Write the state of a stopped machine to `fd`, which stays the caller's.

    The machine stays stopped; `Machine.resume` lets it run on.

    :param memory_in_file: leave out memory that lies in a shared file.
    :raises MachineError: when QEMU cannot save it, with the reason.
    """
    await _transfer(machine, "migrate", fd, memory_in_file=memory_in_file)


async def load_state(machine: Machine, fd: int, *, memory_in_file: bool) -> None:
    """Read the state of a machine that was started as `incoming` from `fd`, which stays the caller's.

    The machine stays stopped; `Machine.resume` lets it run.

    :raises MachineError: when the state does not fit, or is cut off.
    """
    await _transfer(machine, "migrate-incoming", fd, memory_in_file=memory_in_file)


async def _transfer(machine: Machine, command: str, fd: int, *, memory_in_file: bool) -> None:
    await set_capabilities(machine, {"events": True, "x-ignore-shared": memory_in_file})
    await machine.give_fd(FD_NAME, fd)
    with machine.events("MIGRATION") as events:
        await machine.execute(command, uri=f"fd:{FD_NAME}")
        status = "none"
        while status not in ENDED:
            _, data = await machine.next_event(events)
            status = data["status"]
    if status != "completed":
        told: dict[str, Any] = await machine.execute("query-migrate")
        raise MachineError(f"QEMU: {command}: {status}: {told.get('error-desc', 'no reason given')}")


async def set_capabilities(machine: Machine, wanted: dict[str, bool]) -> None:
    """Switch capabilities of QEMU's migration on and off."""
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await machine.execute("migrate-set-capabilities", capabilities=capabilities)
