"""The build of the Debian guest, short of building."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ordinary_user import USER_ID, OrdinaryUser, needs_subordinate_ids, ordinary_user

from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.storage import debian
from pytest_propolis.storage.debian import DebianBuild
from pytest_propolis.storage.programs import run_program

SUITES = {
    "debian.sources": "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\nComponents: main\n",
    "sources.list": "deb [signed-by=/k] http://m/debian bookworm main\ndeb http://m/s bookworm-security main\n",
    "newer.sources": "Types: deb\nURIs: http://mirror/debian\nSuites: trixie\nComponents: main\n",
    "both.list": "deb http://mirror/debian bookworm main\ndeb http://mirror/debian trixie main\n",
    "vendor.list": "deb http://vendor/apt vendor-bookworm main\n",
    "empty.list": "# deb http://mirror/debian bookworm main\n",
}

# In a root directory of one's own: files of several owners, and mounts.
AS_PACKAGES_ARE_INSTALLED = """
mkdir -m 700 build build/root build/root/proc
mount -t proc proc build/root/proc
touch build/root/file
chown 100:65534 build/root/file
stat -c '%u %g' build/root/file
umount build/root/proc
rm -r build
"""


@pytest.mark.parametrize("name", SUITES)
def test_apt_files_of_this_release_and_no_other_are_taken(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(SUITES[name])
    assert debian._names_only("bookworm", file) == (name in {"debian.sources", "sources.list"})


@pytest.mark.parametrize("name", ["debian.sources", "sources.list"])
def test_components_are_added_to_copies_of_the_sources(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / name
    file.write_text(SUITES[name])
    monkeypatch.setattr(debian, "_source_files", lambda suite: [file])
    assert DebianBuild()._mirror(tmp_path) == [str(file)]
    (copy,) = DebianBuild(extra_components=("contrib",))._mirror(tmp_path)
    assert file.read_text() == SUITES[name]
    assert Path(copy).read_text() == re.sub(r"main$", "main contrib", SUITES[name], flags=re.MULTILINE)


async def test_what_is_missing_to_build_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityMissing, match=r"lacks mmdebstrap, .*qemu-utils, util-linux") as caught:
        await DebianBuild().make(tmp_path, lambda text: None)
    assert "apt-get install mmdebstrap" in str(caught.value)


@pytest.mark.skipif(not Path("/usr/sbin/mke2fs").exists(), reason="needs the package e2fsprogs")
async def test_programs_are_found_that_are_not_on_the_path_of_an_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    missing = ""
    try:
        debian._require_programs()
    except CapabilityMissing as error:
        missing = str(error)
    assert "e2fsprogs" not in missing


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> Iterator[OrdinaryUser]:
    with ordinary_user() as user:
        monkeypatch.setattr(os, "geteuid", lambda: USER_ID)
        yield user


@needs_subordinate_ids
async def test_an_ordinary_user_builds_in_a_directory_that_no_other_user_may_enter(user: OrdinaryUser) -> None:
    words = [*user.prefix(), *debian._as_its_root(), "sh", "-euc", AS_PACKAGES_ARE_INSTALLED]
    finished = await run_program(words, directory=user.home)
    assert finished.status == 0, finished.stderr
    assert finished.output.split() == ["100", "65534"]


@needs_subordinate_ids
async def test_a_user_without_subordinate_ids_is_told_what_is_missing(
    user: OrdinaryUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = debian._as_its_root()
    monkeypatch.setattr(debian, "_as_its_root", lambda: (*user.prefix(subordinate_ids=False), *words))
    with pytest.raises(CapabilityMissing, match=r"able to become root of namespaces: .*subuid") as caught:
        await debian._require_namespaces()
    assert f"give user {USER_ID} a range in /etc/subuid" in str(caught.value)


@needs_subordinate_ids
async def test_a_user_with_subordinate_ids_lacks_nothing(user: OrdinaryUser, monkeypatch: pytest.MonkeyPatch) -> None:
    words = debian._as_its_root()
    monkeypatch.setattr(debian, "_as_its_root", lambda: (*user.prefix(), *words))
    await debian._require_namespaces()


def test_no_build_is_done_as_a_subordinate_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for user in (0, USER_ID):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        words = DebianBuild()._bootstrap(tmp_path)
        assert (words[0], "--mode=root" in words) == ("unshare", True)


def test_another_release_has_another_key() -> None:
    assert DebianBuild().key != DebianBuild(suite="trixie").key


def test_a_variant_has_a_key_files_and_a_command_of_its_own() -> None:
    plain, variant = DebianBuild(), DebianBuild(extra_packages=("zfs-dkms",), variant="-zfs")
    assert not set(plain.filenames) & set(variant.filenames)
    assert (plain.command, variant.command) == ("propolis setup debian", "propolis setup debian-zfs")
    keys = {build.key for build in (plain, variant, DebianBuild(extra_hook="true\n"), DebianBuild(disk_mib=4096))}
    assert len(keys) == 4
