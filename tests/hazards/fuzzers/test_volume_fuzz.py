"""Some rounds of the volume fuzzer. It runs for hours by hand: `volume_fuzz`."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import pytest
from crucible_downstairs import write_crucible_downstairs
from volume_checks import MICRO
from volume_fuzz import fuzz_round

from pytest_propolis import CrucibleDiskFactory, VmFactory

ROUNDS = int(os.environ.get("PROPOLIS_VOLUME_ROUNDS", "5"))
SEED = int(os.environ.get("PROPOLIS_VOLUME_SEED", "1"))

logger = logging.getLogger(__name__)


@pytest.mark.parametrize("kind", ["own", pytest.param("program", marks=pytest.mark.slow)])
async def test_no_acknowledged_write_is_lost_whatever_happens_to_the_replicas(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, tmp_path: Path, kind: str
) -> None:
    program = write_crucible_downstairs(tmp_path) if kind == "program" else None
    disk = await crucible_disk_factory(size_mib=64, downstairs=program)
    vm = await vm_factory.start("writer", disks=(disk,), **MICRO)
    for number in range(ROUNDS):
        done = await fuzz_round(vm, disk, random.Random(f"{SEED}-{number}"))
        logger.info("round %d: %s", number, ", ".join(done))
