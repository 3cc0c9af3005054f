"""Some rounds of the volume fuzzer. It runs for hours by hand: `volume_fuzz`."""

from __future__ import annotations

import logging
import os
import random

from volume_checks import MICRO
from volume_fuzz import fuzz_round

from pytest_propolis import CrucibleDiskFactory, VmFactory

ROUNDS = int(os.environ.get("PROPOLIS_VOLUME_ROUNDS", "5"))
SEED = int(os.environ.get("PROPOLIS_VOLUME_SEED", "1"))

logger = logging.getLogger(__name__)


async def test_no_acknowledged_write_is_lost_whatever_happens_to_the_replicas(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("writer", disks=(disk,), **MICRO)
    for number in range(ROUNDS):
        done = await fuzz_round(vm, disk, random.Random(f"{SEED}-{number}"))
        logger.info("round %d: %s", number, ", ".join(done))
