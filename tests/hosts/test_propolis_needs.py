"""What a `propolis-server` needs of illumos, by a recorded root and programs in place of illumos's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_propolis.hosts.inventory import capabilities
from pytest_propolis.hosts.inventory.propolis_needs import probe_propolis_needs
from pytest_propolis.operating_system.illumos.system import illumos
from pytest_propolis.settings import Settings


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but `true`. Returns its root; programs are in ``bin``."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "true").symlink_to(shutil.which("true") or "/bin/true")
    (tmp_path / "dev" / "vmm").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def program(machine: Path, name: str, script: str) -> None:
    path = machine / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


async def test_all_that_is_missing_is_named_with_its_remedy(machine: Path) -> None:
    found = {need.name: need for need in await probe_propolis_needs(machine)}
    assert list(found) == ["/dev/vmm", "pfexec", "viona", "ZFS pool"]
    assert not any(need.ok for need in found.values())
    assert all(need.remedy for need in found.values())
    assert found["/dev/vmm"].detail == "there is no /dev/vmmctl"
    assert found["pfexec"].detail == "there is no pfexec"
    assert found["ZFS pool"].detail == "there is no zpool"


async def test_what_is_there_is_shown(machine: Path) -> None:
    for name in ("vmmctl", "viona", "vmm/a-vm"):
        (machine / "dev" / name).touch()
    program(machine, "pfexec", 'exec "$@"')
    program(machine, "zpool", "echo rpool; echo phd")
    found = {need.name: need for need in await probe_propolis_needs(machine)}
    assert all(need.ok for need in found.values()), found
    assert found["/dev/vmm"].detail == "VMs: a-vm"
    assert found["ZFS pool"].detail == "rpool, phd"


async def test_a_host_without_a_pool_and_a_user_without_privileges_are_told(machine: Path) -> None:
    program(machine, "pfexec", "echo pfexec: not enough privileges >&2; exit 1")
    program(machine, "zpool", "exit 0")
    found = {need.name: need for need in await probe_propolis_needs(machine)}
    assert (found["pfexec"].ok, found["pfexec"].detail) == (False, "pfexec: not enough privileges")
    assert (found["ZFS pool"].ok, found["ZFS pool"].detail) == (False, "there is none")


async def test_on_illumos_the_engine_is_refused_and_needs_of_servers_are_surveyed(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = illumos(machine)
    for module in ("hosts.inventory.capabilities", "agent.hypervisor"):
        monkeypatch.setattr(f"pytest_propolis.{module}.system", lambda: here)
    found = await capabilities.survey(Settings(), guest_files={})
    assert not found.can_run_vms
    (engine,) = found.servers
    assert "the engine cannot run on illumos" in engine.detail
    assert [need.name for need in found.server_needs] == ["/dev/vmm", "pfexec", "viona", "ZFS pool"]
