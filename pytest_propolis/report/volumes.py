"""What a failed test's report shows of its replicated disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PropolisError

if TYPE_CHECKING:
    from ..vm.disks.crucible_disk import CrucibleDisk

__all__ = ["describe_volume"]


def describe_volume(disk: CrucibleDisk) -> list[str]:
    """A replicated disk in lines: its size and generation, and each downstairs with what it wrote last."""
    try:
        facts = disk.facts_now()
    except PropolisError as error:
        return [f"unknown: {error.message}"]
    lines = [f"{facts.size_bytes >> 20} MiB, generation {disk.generation}, volume {facts.id}"]
    for downstairs in facts.downstairs:
        place = disk.targets.index(downstairs.address) if downstairs.address in disk.targets else "replaced"
        lines.append(
            f"downstairs {place}: {downstairs.address} {downstairs.state},"
            f" generation {downstairs.generation}, epoch {downstairs.epoch}, {downstairs.path}"
        )
        lines += [f"    | {line}" for line in downstairs.log]
    return lines
