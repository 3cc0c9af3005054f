"""The inventory, completed with probed capacities of other machines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from ...errors import PropolisError
from ..host import HostSpec
from ..kinds import is_elsewhere, open_connection
from .capacity import CPUS_PER_CPU, SHARE, VMS_PER_CPU
from .inventory import read_inventory

__all__ = ["probed_inventory"]

TIMEOUT_S: Final = 20.0

logger = logging.getLogger(__name__)


def probed_inventory(setting: str | Path) -> tuple[HostSpec, ...]:
    """Return the hosts that the setting ``hosts`` names; query omitted capacities from other machines, once a process.

    A host that does not answer is assumed to be as big as this machine, until it is found lost. It blocks,
    and must not be called while an event loop runs.

    :raises SettingsError: as `read_inventory`.
    """
    specs = read_inventory(setting)
    return _probed_specs(_Specs(specs)) if any(map(_is_unknown, specs)) else specs


@dataclass(frozen=True, slots=True)
class _Specs:
    """Hosts as a key: inventories with equal content are equal."""

    specs: tuple[HostSpec, ...]

    def __hash__(self) -> int:
        return hash(tuple((spec.name, spec.address) for spec in self.specs))


@lru_cache(maxsize=4)
def _probed_specs(key: _Specs) -> tuple[HostSpec, ...]:
    return asyncio.run(_all_probed(key.specs))


async def _all_probed(specs: Sequence[HostSpec]) -> tuple[HostSpec, ...]:
    return tuple(await asyncio.gather(*(_with_capacity(spec) for spec in specs)))


def _is_unknown(spec: HostSpec) -> bool:
    return is_elsewhere(spec) and None in (spec.slots, spec.cpus, spec.memory_mib)


async def _with_capacity(spec: HostSpec) -> HostSpec:
    if not _is_unknown(spec):
        return spec
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async with open_connection(spec) as connection:
                machine = await connection.measure()
    except (PropolisError, TimeoutError) as error:
        logger.warning("host %s does not say how big it is: %s", spec.name, error or "timed out")
        return spec
    return msgspec.structs.replace(
        spec,
        slots=spec.slots or max(1, round(VMS_PER_CPU * machine.processors)),
        cpus=spec.cpus or CPUS_PER_CPU * machine.processors,
        memory_mib=spec.memory_mib or max(1, int(SHARE * machine.memory_mib)),
    )
