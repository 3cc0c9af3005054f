"""The fixtures ``zfs_artifact`` and ``zfs_artifact_factory``: forks that live as long as their test."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import propolis
from qcow2_images import with_backing_file

FORKS = """
import subprocess, pytest
from pytest_propolis import CapabilityMissing, ConfigError

@pytest.mark.parametrize("provider", ["qcow2", "copy"])
async def test_a_fork_changes_and_its_origin_does_not(zfs_artifact_factory, image, provider):
    original = image.read_bytes()
    one = await zfs_artifact_factory(image, provider=provider)
    two = await zfs_artifact_factory(image, provider=provider)
    assert (one.provider, one.origin, one.dataset, one.size_bytes) == (provider, image, None, len(original))
    assert await one.read() == original
    await one.snapshot("clean")
    await one.write(b"changed", offset=1000)
    assert await one.read(999, 9) == original[999:1000] + b"changed" + original[1007:1008]
    assert await one.sha256() != await two.sha256()
    await one.rollback("clean")
    assert await one.sha256() == await two.sha256()
    assert image.read_bytes() == original

async def test_what_is_wrong_is_said(zfs_artifact_factory, image, tmp_path):
    fork = await zfs_artifact_factory(image)
    with pytest.raises(ConfigError, match="outside a disk of"):
        await fork.read(0, 1 << 30)
    with pytest.raises(ConfigError, match="no snapshot 'x'"):
        await fork.rollback("x")
    with pytest.raises(ConfigError, match="no fork provider 'zsf'"):
        await zfs_artifact_factory(image, provider="zsf")
    with pytest.raises(CapabilityMissing, match="zfs: "):
        await zfs_artifact_factory(image, provider="zfs")
    with pytest.raises(ConfigError, match="micro has no disk"):
        await zfs_artifact_factory("micro")

@pytest.mark.parametrize("provider", ["qcow2", "copy"])
@pytest.mark.parametrize("boot", ["warm", "cold"])
async def test_a_fork_is_the_disk_of_a_vm(zfs_artifact_factory, vm_factory, image, provider, boot):
    original = image.read_bytes()
    fork = await zfs_artifact_factory(image, provider=provider)
    vm = await vm_factory.start(guest="micro", boot=boot, disks=(fork.disk("data"),))
    await vm.run("modprobe virtio_blk; printf changed | dd of=/dev/vda conv=fsync 2>/dev/null")
    await vm.stop()
    assert await fork.read() == b"changed" + original[7:]
    assert image.read_bytes() == original

@pytest.mark.guest_os("alpine")
async def test_the_fork_of_a_guests_disk(zfs_artifact):
    assert zfs_artifact.size_bytes >= 1 << 30
    assert await zfs_artifact.read(1080, 2) == b"\\x53\\xef"  # the magic number of ext4
"""

CONFTEST = """
import os, pytest

@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(1 << 20))
    return path
"""

NAMED = """
import pytest, pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(propolis):
    async with propolis.image_fork_factory() as factory:
        yield await factory("mine")

@pytest.mark.parametrize("zfs_artifact", ["mine"], indirect=True)
async def test_the_fork_of_an_artifact(zfs_artifact, shared):
    assert zfs_artifact.provider in ("reflink", "qcow2")
    assert await zfs_artifact.read(0, 8) == b"original"
    await shared.write(b"changed!", 0)
    assert await zfs_artifact.read(0, 8) == b"original"

async def test_a_fork_of_a_wider_scope(shared):
    assert await shared.read(0, 8) == b"changed!"
"""

KILLED = """
import os, signal
from pathlib import Path

async def test_it(zfs_artifact_factory, image):
    fork = await zfs_artifact_factory(image)
    Path(os.environ["NOTE"]).write_text(str(fork.path))
    assert fork.path.exists()
    agent = fork._agent
    info = await agent.info()
    os.kill(info.pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_forks_are_a_tests_own_and_go_with_it(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROPOLIS_DISK_DIR", str(inner.pytester.mkdir("disks")))
    inner.write(conftest=CONFTEST, test_it=FORKS)
    inner.run().assert_outcomes(passed=8)
    assert list((inner.pytester.path / "disks").rglob("*")) == []


def test_a_parameter_names_the_artifact_and_the_run_says_once_that_it_is_not_on_zfs(inner: InnerRun) -> None:
    (inner.pytester.path / "mine.raw").write_bytes(b"original".ljust(1 << 20, b"\0"))
    entry = 'filename = "mine.raw"\nkind = "file"\nsource = { local_path = { path = "." } }'
    (inner.pytester.path / "artifacts.toml").write_text(f"[artifacts.mine]\n{entry}\n")
    inner.write(test_it=NAMED)
    result = inner.run("--propolis-artifacts=artifacts.toml")
    result.assert_outcomes(passed=2)
    said = [line for line in result.outlines if "is not on ZFS" in line]
    assert len(said) == 1
    assert str(inner.pytester.path / "mine.raw") in said[0]


def test_a_test_that_is_about_zfs_is_skipped_without_it_with_the_reason(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(inner.pytester.mkdir("bin")))
    inner.write(test_it="import pytest\n@pytest.mark.requires(zfs=True)\nasync def test_it(zfs_artifact):\n    pass\n")
    result = inner.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*it needs ZFS: the program zfs is not on PATH: install ZFS"])


def test_gc_removes_the_forks_of_a_run_that_was_killed_with_its_agent(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = inner.pytester.path / "note"
    monkeypatch.setenv("NOTE", str(note))
    monkeypatch.setenv("PROPOLIS_DISK_DIR", str(inner.pytester.mkdir("disks")))
    inner.write(conftest=CONFTEST, test_it=KILLED)
    assert inner.run().ret == -signal.SIGKILL
    fork = Path(note.read_text())
    assert fork.exists()
    propolis("gc")
    assert not fork.exists()
    assert inner.leavings() == []


READS_THE_BASE = """
from pathlib import Path
from pytest_propolis import DataDisk

async def test_it(vm_factory):
    disk = DataDisk(name="a", image=Path("images/downloaded.qcow2"), image_format="qcow2")
    vm = await vm_factory.start(memory_mib=128, disks=(disk,))
    await vm.run("modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done")
    assert await vm.run("head -c 4 /dev/vda") == "base"
"""


def test_the_files_that_an_image_names_may_lie_in_the_directories_that_the_user_names(inner: InnerRun) -> None:
    for name in ("bases", "images"):
        inner.pytester.mkdir(name)
    base = inner.pytester.path / "bases" / "base"
    base.write_bytes(b"base".ljust(1 << 20, b"\0"))
    with_backing_file(inner.pytester.path / "images" / "downloaded.qcow2", base)
    inner.write(test_it=READS_THE_BASE)
    inner.fails_with("*downloaded.qcow2 names *base*")
    inner.run("--propolis-image-dirs=/nowhere:bases").assert_outcomes(passed=1)
