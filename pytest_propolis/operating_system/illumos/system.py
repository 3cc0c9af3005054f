"""illumos as an operating system."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..interface import OperatingSystem
from .children import IllumosChildren
from .contracts import ContractLibrary, Contracts
from .host import IllumosHost
from .processes import IllumosProcesses, privileged_kill

__all__ = ["illumos"]

ROOT: Final = Path("/")


def illumos(root: Path = ROOT, *, library: ContractLibrary | None = None) -> OperatingSystem:
    """Return the illumos on which this process runs.

    :param root: where its file systems are found; ``/`` except in tests.
    :param library: the functions of libcontract; None for the system's own.
    """
    processes = IllumosProcesses(root / "proc", kill=privileged_kill)
    contracts = Contracts(root / "system/contract/process", library)
    children = IllumosChildren(processes, contracts, kill=privileged_kill)
    return OperatingSystem(name="illumos", processes=processes, children=children, host=IllumosHost(root))
