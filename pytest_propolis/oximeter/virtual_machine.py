"""The supported timeseries of a virtual machine: omicron's `oximeter/oximeter/schema/virtual-machine.toml`.

The states of a vCPU are those of `bin/propolis-server/src/lib/stats/virtual_machine.rs` of oxidecomputer/propolis.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final

from ..propolis_api import InstanceProperties
from .samples import Datum, FieldSet, FieldValue, Sample

__all__ = ["RESET", "VCPU_USAGE", "VcpuState", "reset", "target_of", "vcpu_usage"]

TARGET: Final = "virtual_machine"

VCPU_USAGE: Final = f"{TARGET}:vcpu_usage"
"""How long a vCPU has been in a state, in nanoseconds."""

RESET: Final = f"{TARGET}:reset"
"""How often the VM was reset."""


class VcpuState(StrEnum):
    """The state of a vCPU."""

    RUN = "run"
    """It runs the guest."""

    IDLE = "idle"
    """It has nothing to do."""

    WAITING = "waiting"
    """It has something to do, and waits for a processor of the host."""

    EMULATION = "emulation"
    """The hypervisor carries out an instruction in its place."""


def target_of(properties: InstanceProperties) -> FieldSet:
    """Return the target of an instance's samples."""
    metadata = properties.metadata
    return FieldSet.of(
        TARGET,
        instance_id=_uuid(properties.id),
        project_id=_uuid(metadata.project_id),
        silo_id=_uuid(metadata.silo_id),
        sled_id=_uuid(metadata.sled_id),
        sled_model=FieldValue(type="string", value=metadata.sled_model),
        sled_revision=FieldValue(type="u32", value=metadata.sled_revision),
        sled_serial=FieldValue(type="string", value=metadata.sled_serial),
    )


def vcpu_usage(
    target: FieldSet, vcpu_id: int, state: VcpuState, time_ns: int, *, since: datetime, at: datetime
) -> Sample:
    """Return a sample of the time that a vCPU has spent in a state.

    :param since: when it had been in it for no time.
    :param at: when this was measured.
    """
    metric = FieldSet.of(
        VCPU_USAGE.partition(":")[2],
        state=FieldValue(type="string", value=state.value),
        vcpu_id=FieldValue(type="u32", value=vcpu_id),
    )
    return Sample.of(target, metric, Datum.count(time_ns, since=since), at=at)


def reset(target: FieldSet, count: int, *, since: datetime, at: datetime) -> Sample:
    """Return a sample of the number of a VM's resets."""
    return Sample.of(target, FieldSet.of(RESET.partition(":")[2]), Datum.count(count, since=since), at=at)


def _uuid(value: object) -> FieldValue:
    return FieldValue(type="uuid", value=str(value))
