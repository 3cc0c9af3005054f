"""A migration as its target sees it: which components it replaces, how long it may take, how it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from ..agent_api.migration_report import MigrationReport
from ..propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendReplacement,
    InstanceSpec,
    InstanceState,
    MigrationFailureInjector,
    MigrationFailureInjectorReplacement,
    MigrationState,
    ReplacementComponent,
    VirtioNetworkBackend,
    VirtioNetworkBackendReplacement,
)
from ..propolis_api.client import PropolisClient

__all__ = ["TERMINAL", "Report", "migration_limit_s", "replacements", "until_migrated"]

MIGRATION_S_PER_GIB: Final = 90.0
DISK_COPY_TIMEOUT_S: Final = 600.0

TERMINAL: Final = frozenset({InstanceState.DESTROYED, InstanceState.FAILED})

SWITCH: Final = "unix:"
"""Begins the link to a switch, which each host has at a path of its own."""

Report = Callable[[], Awaitable[MigrationReport]]
"""Requests the report of this project's server, which the API lacks."""


def replacements(spec: InstanceSpec) -> dict[str, ReplacementComponent]:
    """Return the components of a target's spec that replace the source's."""
    found: dict[str, ReplacementComponent] = {}
    for key, wrapper in spec.components.items():
        match wrapper.component:
            case CrucibleStorageBackend() as backend:
                found[key] = CrucibleStorageBackendReplacement(backend)
            case VirtioNetworkBackend() as network if network.vnic_name.startswith(SWITCH):
                found[key] = VirtioNetworkBackendReplacement(network)
            case MigrationFailureInjector() as injector:
                found[key] = MigrationFailureInjectorReplacement(injector)
    return found


def migration_limit_s(spec: InstanceSpec, *, copies_disks: bool) -> float:
    """90 s per GiB of the guest's memory, and 600 s more if its disks are copied."""
    memory_s = MIGRATION_S_PER_GIB * spec.board.memory_mb / 1024
    return memory_s + (DISK_COPY_TIMEOUT_S if copies_disks else 0)


async def until_migrated(client: PropolisClient, report: Report | None) -> str | None:
    """Wait until a VM has migrated in; return why it has not, if it fails."""
    gen, reached = 0, None
    while True:
        answer = await client.instance_state_monitor(gen)
        gen, side_state = answer.gen + 1, answer.migration.migration_in
        phase = side_state.state if side_state else None
        reached = reached if phase is MigrationState.ERROR else phase
        if phase is MigrationState.FINISH:
            if answer.state is not InstanceState.MIGRATING:  # else the source may yet keep the guest
                return None
        elif answer.state in TERMINAL:
            side = (await report()).migration_in if report else None
            when = f"when it had reached phase {reached}" if reached else "before its first phase"
            return (side.failure if side else None) or f"the migration failed, {when}: see the servers' logs"
