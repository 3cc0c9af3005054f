"""Files to SSH hosts and from them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from ssh_rig import MakeHost, SshRig, options_of, ssh_rig

from pytest_propolis.errors import HostError, ResourceExhausted
from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.ssh import loader
from pytest_propolis.hosts.ssh_host import open_host
from pytest_propolis.settings import Settings
from pytest_propolis.storage.file_stream import is_there

MIB = 1 << 20


def sparse(path: Path) -> Path:
    """A file of 64 MiB with 3 MiB of data; it ends in a hole."""
    with path.open("wb") as file:
        file.write(os.urandom(2 * MIB))
        file.seek(40 * MIB)
        file.write(os.urandom(MIB))
        file.truncate(64 * MIB)
    path.chmod(0o640)
    return path


async def test_a_file_goes_there_and_back_with_its_holes_and_its_mode(
    make_host: MakeHost, rig: SshRig, tmp_path: Path
) -> None:
    source, there, back = sparse(tmp_path / "source"), rig.hosts["h1"].home / "there", tmp_path / "back"
    host = make_host()
    await host.put(source, there)
    await host.get(there, back)
    for copy in (there, back):
        assert copy.read_bytes() == source.read_bytes()
        assert copy.stat().st_blocks * 512 < 4 * MIB
        assert copy.stat().st_mode & 0o777 == 0o640


async def test_a_transfer_that_was_cut_off_goes_on(make_host: MakeHost, rig: SshRig, tmp_path: Path) -> None:
    source, home = tmp_path / "source", rig.hosts["h1"].home
    source.write_bytes(os.urandom(150 * MIB))
    host = make_host(silence_s=1.5)
    await host.run("true")
    putting = asyncio.create_task(host.put(source, home / "there"))
    while not list(home.glob(".there.*.part.done")):  # so much was noted
        assert not putting.done()
        await asyncio.sleep(0)
    rig.hosts["h1"].kill(number=signal.SIGSTOP)  # taking the cable out takes a moment, and the rest may take less
    rig.cut("h1")
    rig.hosts["h1"].kill(number=signal.SIGCONT)
    with pytest.raises(HostError, match="h1"):
        await putting
    rig.mend("h1")
    inode = next(home.glob(".there.*.part")).stat().st_ino
    await asyncio.to_thread(host.close)
    await make_host().put(source, home / "there")
    assert (home / "there").read_bytes() == source.read_bytes()
    assert (home / "there").stat().st_ino == inode
    assert list(home.glob(".there*")) == []


async def test_a_file_that_is_not_there_is_named(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host()
    with pytest.raises(HostError, match=r"host h1: .*/nowhere"):
        await host.put(tmp_path / "nowhere", Path("/tmp/x"))
    with pytest.raises(HostError, match="host h1: /nowhere: No such file or directory"):
        await host.get(Path("/nowhere"), tmp_path / "x")


async def test_a_full_disk_ends_a_transfer_and_says_so(rig_possible: None, runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(4 * MIB))
    with ssh_rig("h1", mounts="mkdir {home}/full; mount -t tmpfs -o size=1m full {home}/full") as rig:
        spec = HostSpec(name="h1", kind="ssh", address="h1", options=options_of(rig))
        host = open_host(spec, Settings(), "b" * 16)
        try:
            with pytest.raises(ResourceExhausted, match=r"host h1: .*No space left on device"):
                await host.put(tmp_path / "source", Path("full/there"))
        finally:
            await asyncio.to_thread(host.close)


async def test_a_file_is_provided_once_by_its_content(make_host: MakeHost, rig: SshRig, tmp_path: Path) -> None:
    source = sparse(tmp_path / "image.raw")
    lines: list[str] = []
    first = Path(await make_host().provide(source, lines.append))
    there = rig.hosts["h1"].home / ".cache/propolis/files" / first.parent.name / first.name
    assert there.read_bytes() == source.read_bytes()
    inode = there.stat().st_ino
    assert await make_host().provide(source, lines.append) == str(first)
    assert there.stat().st_ino == inode
    assert len(lines) == 2


async def test_another_content_of_a_name_is_another_file(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host()
    (tmp_path / "image").write_text("one")
    one = await host.provide(tmp_path / "image", print)
    (tmp_path / "image").write_text("two")
    assert await host.provide(tmp_path / "image", print) != one
    assert await host.run(f"cat {one}") == "one"


@pytest.mark.slow
async def test_many_that_need_a_file_at_once_send_it_once(make_host: MakeHost, rig: SshRig, tmp_path: Path) -> None:
    source = sparse(tmp_path / "image.raw")
    places = await asyncio.gather(*(make_host().provide(source, print) for _ in range(4)))
    assert len(set(places)) == 1
    directory = rig.hosts["h1"].home / ".cache/propolis/files" / Path(places[0]).parent.name
    assert [path.name for path in directory.iterdir()] == ["image.raw"]
    assert (directory / "image.raw").read_bytes() == source.read_bytes()


def test_a_file_that_is_in_use_is_not_removed_with_those_that_are_not(tmp_path: Path) -> None:
    for name in ("used", "unused"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").write_text(name)
        os.utime(tmp_path / name, (0, 0))
    assert is_there(str(tmp_path / "used/image"), 4)
    loader.sweep(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
