"""The choice of the kind of a volume's downstairs."""

from __future__ import annotations

from pathlib import Path

from ....agent_api.volumes import CreateVolume
from ...hypervisor import HypervisorFinder
from .kind import DownstairsKind
from .own import OwnDownstairs
from .program import DownstairsPrograms

__all__ = ["downstairs_kind"]


async def downstairs_kind(request: CreateVolume, hypervisors: HypervisorFinder) -> DownstairsKind:
    """Return the kind that a request asks for. QEMU is needed for this project's own only.

    :raises CapabilityMissing: when the host lacks a program for it.
    """
    if request.program is not None:
        return DownstairsPrograms(Path(request.program))
    return OwnDownstairs((await hypervisors.find()).qemu)
