"""The shadow of the BIOS: the RAM that the host bridge puts in place of the ROM below 1 MiB.

SeaBIOS switches it on early, fills it, and runs and writes there. A reset of QEMU leaves it switched on, where a PC's
would not. So SeaBIOS finds a modified copy after a reset, repairs it and resets the machine again; and a machine
that is reset when the RAM has been switched on but not filled executes empty memory and never recovers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

__all__ = ["drop_bios_shadow"]

CONFIG_ADDRESS: Final = 0xCF8
CONFIG_DATA: Final = 0xCFC
ENABLED: Final = 1 << 31

FIRST_REGISTER: Final = {"pc": 0x59, "q35": 0x90}
"""The first of the programmable attribute map's registers, in the configuration space of PCI device 0."""
REGISTERS: Final = 7


async def drop_bios_shadow(execute: Callable[..., Awaitable[Any]]) -> None:
    """Make a machine read its BIOS from the ROM again, as after power-on. The guest must not run.

    :param execute: executes a command of QEMU's monitor.
    """
    kind = await execute("qom-get", path="/machine", property="type")
    first = FIRST_REGISTER["q35" if "q35" in str(kind) else "pc"]
    for register in range(first, first + REGISTERS):
        await _write(execute, "w", CONFIG_ADDRESS, ENABLED | (register & ~3))
        await _write(execute, "b", CONFIG_DATA + (register & 3), 0)


async def _write(execute: Callable[..., Awaitable[Any]], size: str, port: int, value: int) -> None:
    # Only the human monitor can write to ports.
    await execute("human-monitor-command", **{"command-line": f"o /{size} {port:#x} {value:#x}"})
