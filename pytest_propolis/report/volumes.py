"""The section of a failed test's report about its replicated disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PropolisError

if TYPE_CHECKING:
    from ..vm.disks.crucible_disk import CrucibleDisk

__all__ = ["describe_volume"]


def describe_volume(disk: CrucibleDisk) -> list[str]:
    """Return lines that describe a replicated disk: size, generation, and each downstairs with its latest output."""
    try:
        facts = disk.facts_now()
    except PropolisError as error:
        return [f"unknown: {error.message}"]
    lines = [f"{facts.size_bytes >> 20} MiB, generation {disk.generation}, volume {facts.id}"]
    for downstairs in facts.downstairs:
        position = disk.targets.index(downstairs.address) if downstairs.address in disk.targets else "replaced"
        lines.append(
            f"downstairs {position}: {downstairs.address} {downstairs.state},"
            f" generation {downstairs.generation}, epoch {downstairs.epoch}, {downstairs.path}"
        )
        lines += [f"    | {line}" for line in downstairs.log]
    return lines
