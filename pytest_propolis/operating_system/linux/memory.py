"""The memory available to this process and its children: the host's, within the limits of its cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["MemoryLimits"]

_ROOT: Final = Path("/")


class _Hierarchy(msgspec.Struct, frozen=True):
    """The files in which a version of cgroups reports memory."""

    limit: str
    usage: str
    reclaimable: str


_V1: Final = _Hierarchy("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2: Final = _Hierarchy("memory.max", "memory.current", "inactive_file")


class MemoryLimits(msgspec.Struct, frozen=True):
    """Memory as the kernel reports it below a root directory.

    :param root: ``/`` except in tests.
    """

    root: Path = _ROOT

    def available_mib(self) -> int:
        """Return the memory that can be allocated without swapping or killing anything, in MiB."""
        return min([self._host("MemAvailable"), *(max(0, limit - used) >> 20 for limit, used in self._cgroups())])

    def total_mib(self) -> int:
        """Return the total memory in MiB."""
        return min([self._host("MemTotal"), *(limit >> 20 for limit, _ in self._cgroups())])

    def _host(self, name: str) -> int:
        for line in (self.root / "proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) >> 10
        raise OSError(f"/proc/meminfo has no {name}")

    def _cgroups(self) -> Iterator[tuple[int, int]]:
        """Yield limit and usage in bytes of each limited cgroup of this process, up to the outermost."""
        try:
            lines = (self.root / "proc/self/cgroup").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            number, controllers, path = line.split(":", 2)
            if number == "0":
                yield from _levels(self.root / "sys/fs/cgroup", path, _V2)
            elif "memory" in controllers.split(","):
                yield from _levels(self.root / "sys/fs/cgroup/memory", path, _V1)


def _levels(mount: Path, path: str, hierarchy: _Hierarchy) -> Iterator[tuple[int, int]]:
    # In a container the path may be the host's; then only the mount's root is this process's own cgroup.
    group = mount / path.strip("/")
    for directory in (group, *group.parents):
        if directory.is_relative_to(mount) and (found := _limit_and_use(directory, hierarchy)):
            yield found


def _limit_and_use(group: Path, hierarchy: _Hierarchy) -> tuple[int, int] | None:
    try:
        limit = int((group / hierarchy.limit).read_text())
        used = int((group / hierarchy.usage).read_text())
    except (OSError, ValueError):  # no such cgroup, or "max"
        return None
    # The page cache counts as used, but the kernel reclaims it before it kills a process.
    return limit, max(0, used - _reclaimable(group, hierarchy.reclaimable))


def _reclaimable(group: Path, name: str) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
