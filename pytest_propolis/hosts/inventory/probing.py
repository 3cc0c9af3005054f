"""The inventory with the capacity of hosts over SSH as they tell it, where the inventory does not say."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from ...errors import HostError, PropolisError
from ..host import HostSpec
from ..run_directory import make_private_directory
from .capacity import CPUS_PER_CPU, SHARE, VMS_PER_CPU
from .inventory import read_inventory

__all__ = ["probed_inventory"]

TIMEOUT_S: Final = 20.0
MARK: Final = b"propolis1 "
COMMAND: Final = "exec sh -c 'echo propolis1 $(nproc) $(getconf _PHYS_PAGES) $(getconf PAGE_SIZE)'"

logger = logging.getLogger(__name__)


def probed_inventory(setting: str | Path) -> tuple[HostSpec, ...]:
    """Return the hosts that the setting ``hosts`` names; those over SSH are asked for what it does not say of them.

    A process asks once. A host that does not answer counts as big as this machine, until it is found lost. It blocks,
    and must not be called while an event loop runs.

    :raises SettingsError: as `read_inventory`.
    """
    specs = read_inventory(setting)
    return _asked(_Specs(specs)) if any(map(_is_unknown, specs)) else specs


@dataclasses.dataclass(frozen=True, slots=True)
class _Specs:
    """Hosts as a key: two inventories that say the same are one."""

    specs: tuple[HostSpec, ...]

    def __hash__(self) -> int:
        return hash(tuple((spec.name, spec.address) for spec in self.specs))


@lru_cache(maxsize=4)
def _asked(key: _Specs) -> tuple[HostSpec, ...]:
    return asyncio.run(_all_probed(key.specs))


async def _all_probed(specs: Sequence[HostSpec]) -> tuple[HostSpec, ...]:
    return tuple(await asyncio.gather(*(_with_capacity(spec) for spec in specs)))


def _is_unknown(spec: HostSpec) -> bool:
    return spec.kind == "ssh" and None in (spec.slots, spec.cpus, spec.memory_mib)


async def _with_capacity(spec: HostSpec) -> HostSpec:
    if not _is_unknown(spec):
        return spec
    try:
        async with asyncio.timeout(TIMEOUT_S):
            processors, memory_mib = await _measure(spec)
    except (PropolisError, TimeoutError) as error:
        logger.warning("host %s does not say how big it is: %s", spec.name, error or "timed out")
        return spec
    return dataclasses.replace(
        spec,
        slots=spec.slots or max(1, round(VMS_PER_CPU * processors)),
        cpus=spec.cpus or CPUS_PER_CPU * processors,
        memory_mib=spec.memory_mib or max(1, int(SHARE * memory_mib)),
    )


async def _measure(spec: HostSpec) -> tuple[int, int]:
    """Return how many processors a host has, and how much memory in MiB.

    :raises HostError: when it cannot be reached, or does not answer as it should.
    """
    from ..ssh.connecting import connect
    from ..ssh.host_options import check_options, destination_of
    from ..ssh.link_client import link_base

    check_options(spec)
    make_private_directory(link_base())
    transport = await connect(destination_of(spec), control=link_base() / f"probe-{secrets.token_hex(4)}")
    try:
        channel = await transport.start(COMMAND)
        said = await channel.stdout.read(-1)
        words = said[said.index(MARK) :].split()[1:4]
        processors, pages, page_bytes = map(int, words)
    except ValueError:
        raise HostError(f"host {spec.name}: it answered {said[-200:]!r}") from None
    except transport.errors as error:
        raise HostError(f"host {spec.name}: {error or type(error).__name__}") from None
    finally:
        transport.abort()
        with contextlib.suppress(*transport.errors):
            await transport.wait_closed()
    return processors, pages * page_bytes >> 20
