"""The host on illumos, and the choice of an operating system."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from pytest_propolis.agent.hypervisor import require_engine
from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.operating_system import registry
from pytest_propolis.operating_system.illumos.host import IllumosHost

MNTTAB = (
    "rpool/ROOT/omnios\t/\tzfs\tdev=4410002\t1700000000\n"
    "swap\t/var/run\ttmpfs\txattr,dev=8d80003\t1700000001\n"
    "rpool/phd\t/a place\tzfs\trw\t1700000002\n"
)


def test_mounts_are_those_of_mnttab(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mnttab").write_text(MNTTAB)
    mounts = IllumosHost(tmp_path).mounts()
    assert mounts is not None
    assert [str(mount.point) for mount in mounts] == ["/", "/var/run", "/a place"]
    assert "rpool/phd" in mounts[2].record


def test_without_mnttab_mounts_are_unknown(tmp_path: Path) -> None:
    assert IllumosHost(tmp_path).mounts() is None


def test_memory_and_processors_are_those_of_this_machine(tmp_path: Path) -> None:
    host = IllumosHost(tmp_path)
    assert 0 < host.available_mib() <= host.total_mib()
    assert host.processors() == os.cpu_count()


def test_what_needs_linux_is_refused_with_the_need(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing, match="it needs /proc/stat of Linux"):
        IllumosHost(tmp_path).idle_s()


def test_locks_of_open_files_are_accepted(tmp_path: Path) -> None:
    IllumosHost(tmp_path).require_file_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_record_locks_in_their_place_are_refused(tmp_path: Path) -> None:
    """As `fcntl.flock` is where Python was built without flock(3C)."""
    with pytest.raises(CapabilityMissing, match="built without flock"):
        IllumosHost(tmp_path, lock=fcntl.lockf).require_file_locks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_operating_system_is_chosen_by_its_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "sunos5")
    chosen = registry.system.__wrapped__()
    assert chosen.name == "illumos"
    monkeypatch.setattr("pytest_propolis.agent.hypervisor.system", lambda: chosen)
    with pytest.raises(CapabilityMissing, match="the engine cannot run on illumos: it needs guests' memory in memfds"):
        require_engine()


def test_an_unknown_platform_is_an_error_that_names_it_and_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CapabilityMissing, match="run on linux and sunos5, not on darwin"):
        registry.system.__wrapped__()
