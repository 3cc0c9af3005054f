"""The memory available to VMs is within the limits of the agent's cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_propolis.operating_system.linux.memory import MemoryLimits
from pytest_propolis.operating_system.registry import system

MIB = 1 << 20
NO_LIMIT_V1 = "9223372036854771712\n"


def host_below(root: Path, cgroup: str, files: dict[str, str]) -> MemoryLimits:
    """A host with 8000 MiB, of which 6000 MiB are available."""
    files = {
        "proc/meminfo": f"MemTotal: {8000 * 1024} kB\nMemAvailable: {6000 * 1024} kB\n",
        "proc/self/cgroup": cgroup,
        **files,
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return MemoryLimits(root)


def group(path: str, *, limit: str, used_mib: int, cached_mib: int = 0) -> dict[str, str]:
    place = f"sys/fs/cgroup/{path}"
    return {
        f"{place}/memory.max": f"{limit}\n",
        f"{place}/memory.current": f"{used_mib * MIB}\n",
        f"{place}/memory.stat": f"anon 1\ninactive_file {cached_mib * MIB}\nactive_file 2\n",
    }


def test_without_limits_it_is_the_hosts(tmp_path: Path) -> None:
    memory = host_below(tmp_path, "0::/user.slice\n", group("user.slice", limit="max", used_mib=500))
    assert (memory.total_mib(), memory.available_mib()) == (8000, 6000)


def test_a_limit_of_any_level_counts(tmp_path: Path) -> None:
    files = group("outer", limit=str(1000 * MIB), used_mib=700) | group("outer/inner", limit="max", used_mib=100)
    memory = host_below(tmp_path, "0::/outer/inner\n", files)
    assert (memory.total_mib(), memory.available_mib()) == (1000, 300)


def test_cached_files_can_be_dropped(tmp_path: Path) -> None:
    files = group("job", limit=str(1000 * MIB), used_mib=900, cached_mib=400)
    assert host_below(tmp_path, "0::/job\n", files).available_mib() == 500


def test_more_than_the_limit_may_be_in_use(tmp_path: Path) -> None:
    files = group("job", limit=str(1000 * MIB), used_mib=1200)
    assert host_below(tmp_path, "0::/job\n", files).available_mib() == 0


def test_a_container_that_sees_its_own_cgroup_as_the_root(tmp_path: Path) -> None:
    files = group("", limit=str(2000 * MIB), used_mib=500)
    assert host_below(tmp_path, "0::/system.slice/docker-1.scope\n", files).available_mib() == 1500


@pytest.mark.parametrize(("limit", "expected"), [(str(3000 * MIB), 2000), (NO_LIMIT_V1, 6000)])
def test_the_first_version_of_cgroups(tmp_path: Path, limit: str, expected: int) -> None:
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": limit,
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{1500 * MIB}\n",
        "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {500 * MIB}\n",
    }
    memory = host_below(tmp_path, "9:cpu:/job\n4:memory,hugetlb:/job\n0::/\n", files)
    assert memory.available_mib() == expected


def test_this_machine_can_be_asked() -> None:
    host = system().host
    assert 0 < host.available_mib() <= host.total_mib()
