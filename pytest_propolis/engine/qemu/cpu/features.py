"""The CPU features that an accelerator has, as QEMU names them."""

from __future__ import annotations

from pathlib import Path

from ....operating_system.child import Journal
from ....propolis_api import InstanceEnsureRequest, SpecInit
from ..accelerator.probe import AcceleratorName
from ..binary import Qemu
from ..machine import Machine

__all__ = ["CpuFeatures"]


class CpuFeatures:
    """The features that QEMU reports, queried once, and only if a spec has a CPUID template.

    :param log_path: receives what that QEMU prints.
    :param journal: keeps account of its process.
    """

    def __init__(self, qemu: Qemu, accelerator: AcceleratorName, *, journal: Journal, log_path: Path) -> None:
        self._qemu = qemu
        self._accelerator = accelerator
        self._journal = journal
        self._log_path = log_path
        self.known: frozenset[str] | None = None

    async def find_for(self, request: InstanceEnsureRequest) -> None:
        """Make them `known` if the request needs them: takes some 50 ms.

        :raises MachineError: when QEMU does not answer.
        """
        has_template = isinstance(request.init, SpecInit) and request.init.value.spec.board.cpuid is not None
        if has_template and self.known is None:
            self.known = await self._query()

    async def _query(self) -> frozenset[str]:
        """Ask a QEMU without a machine."""
        arguments = ["-machine", "none", "-nodefaults", "-display", "none", "-accel", self._accelerator]
        machine = Machine(
            program=self._qemu.system,
            arguments=[*self._qemu.arguments, *arguments],
            log_path=self._log_path,
            journal=self._journal,
            on_event=lambda _event: None,
        )
        try:
            await machine.start()
            supported = await machine.execute("query-cpu-model-expansion", type="full", model={"name": "max"})
        finally:
            await machine.close()
        return frozenset(name for name, value in supported["model"]["props"].items() if value is True)
