"""The CPU features that an accelerator has, as QEMU names them."""

from __future__ import annotations

from pathlib import Path

from .accelerator import AcceleratorName
from .child import Journal
from .machine import Machine
from .qemu_binary import Qemu

__all__ = ["find_cpu_features"]


async def find_cpu_features(
    qemu: Qemu, accelerator: AcceleratorName, *, journal: Journal, log_path: Path
) -> frozenset[str]:
    """Ask a QEMU without a machine: takes some 50 ms.

    :raises MachineError: when QEMU does not answer.
    """
    arguments = ["-machine", "none", "-nodefaults", "-display", "none", "-accel", accelerator]
    machine = Machine(
        program=qemu.system,
        arguments=[*qemu.arguments, *arguments],
        log_path=log_path,
        journal=journal,
        on_event=lambda _event: None,
    )
    try:
        await machine.start()
        told = await machine.execute("query-cpu-model-expansion", type="full", model={"name": "max"})
    finally:
        await machine.close()
    return frozenset(name for name, value in told["model"]["props"].items() if value is True)
