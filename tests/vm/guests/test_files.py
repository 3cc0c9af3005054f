"""Files into a real guest and out of it, over each channel. One guest per channel for all of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pytest_propolis import FileTransferError, Progress
from pytest_propolis.session.run import Run
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHANNELS = ["console", pytest.param("port", marks=pytest.mark.requires(server="engine"))]

TEXT = b"".join(b"[%8d.000000] a line of a log\n" % (number // 50) for number in range(20_000))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CHANNELS)
async def vm(propolis: Run, request: pytest.FixtureRequest) -> AsyncIterator[TestVm]:
    async with propolis.vm_factory() as factory:
        yield await factory.start(guest="micro", cpus=1, memory_mib=256, channel=request.param)


async def test_bytes_come_back_as_they_were(vm: TestVm) -> None:
    content = bytes(range(256)) * 64 + os.urandom(20_000)
    await vm.put(content, "/tmp/bytes")
    assert await vm.get_bytes("/tmp/bytes") == content
    assert await vm.run("stat -c %a /tmp/bytes; ls -A /tmp | grep propolis; echo $?") == "644\n1"


async def test_an_empty_file_is_a_file(vm: TestVm, tmp_path: Path) -> None:
    await vm.put(b"", "/tmp/empty")
    await vm.get("/tmp/empty", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


async def test_a_file_of_more_than_one_block_keeps_its_content_and_its_mode(vm: TestVm, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(TEXT)
    (tmp_path / "there").chmod(0o750)
    seen: list[Progress] = []
    await vm.put(tmp_path / "there", "/tmp/log", on_progress=seen.append)
    await vm.get("/tmp/log", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == TEXT
    assert (tmp_path / "back").stat().st_mode & 0o7777 == 0o750
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (len(TEXT), len(TEXT))


async def test_what_is_transferred_is_not_shown_as_what_the_guest_said(vm: TestVm) -> None:
    await vm.put(b"a secret\n" * 10, "/tmp/secret")
    await vm.get_bytes("/tmp/secret")
    assert "secret\n" not in "\n".join(vm.console_tail())


async def test_a_file_without_a_size_is_read_to_its_end(vm: TestVm) -> None:
    assert (await vm.get_bytes("/proc/version")).decode().rstrip() == await vm.run("cat /proc/version")


async def test_a_hole_stays_a_hole_both_ways(vm: TestVm, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"head")
        file.seek(2 << 20)
        file.write(b"tail")
        file.truncate(4 << 20)
    await vm.put(tmp_path / "sparse", "/tmp/sparse")
    assert int(await vm.run("stat -c %b /tmp/sparse")) < 1000
    await vm.get("/tmp/sparse", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "sparse").read_bytes()
    assert (tmp_path / "back").stat().st_blocks < 1000


async def test_a_directory_comes_back_with_links_modes_and_odd_names(vm: TestVm, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    (there / "inner").mkdir(parents=True)
    (there / "inner").chmod(0o700)
    (there / "inner" / "script").write_bytes(b"#!/bin/sh\n")
    (there / "inner" / "script").chmod(0o755)
    (there / "link").symlink_to("inner/script")
    odd = os.fsdecode(b"a\nb \xff'")
    (there / odd).write_bytes(b"odd")
    await vm.put(there, "/tmp/tree")
    assert await vm.run("/bin/sh -c 'cat /tmp/tree/link; stat -c %a /tmp/tree/inner'") == "#!/bin/sh\n700"
    await vm.get("/tmp/tree", back)
    assert sorted(path.name for path in back.iterdir()) == sorted(["inner", "link", odd])
    assert (back / odd).read_bytes() == b"odd"
    assert (back / "link").readlink() == Path("inner/script")
    assert (back / "inner").stat().st_mode & 0o777 == 0o700
    assert (back / "inner" / "script").stat().st_mode & 0o777 == 0o755


async def test_a_name_may_be_bytes_and_may_begin_with_a_hyphen(vm: TestVm) -> None:
    await vm.run("cd /tmp")
    for name in (b"/tmp/a\nb\xff '\"$x", "-n", "it's"):
        await vm.put(b"content", name)
        assert await vm.get_bytes(name) == b"content"
    await vm.run("cd")


async def test_options_and_functions_of_the_shell_do_not_matter(vm: TestVm) -> None:
    await vm.run("set -ef; IFS=0123456789; cat() { echo no; }; alias tar=false")
    await vm.put(b"content", "/tmp/shell")
    assert await vm.get_bytes("/tmp/shell") == b"content"
    await vm.run("exit", check=False)


@pytest.mark.parametrize(
    ("remote", "reason"),
    [
        ("/nothing/file", "/nothing/file: there is no directory /nothing"),
        ("/tmp", "/tmp: it is a directory"),
        ("/proc/version/file", "there is no directory /proc/version"),
    ],
)
async def test_an_error_of_put_names_the_file_and_the_reason(vm: TestVm, remote: str, reason: str) -> None:
    with pytest.raises(FileTransferError) as caught:
        await vm.put(b"content", remote)
    assert reason in caught.value.message
    assert (caught.value.path, caught.value.vm) == (remote, vm.name)


async def test_an_error_of_get_names_the_file_and_leaves_nothing(vm: TestVm, tmp_path: Path) -> None:
    with pytest.raises(FileTransferError, match=r"/nothing: .*No such file"):
        await vm.get("/nothing", tmp_path / "file")
    with pytest.raises(FileTransferError, match="No such file or directory") as caught:
        await vm.get("/etc/passwd", tmp_path / "nothing" / "file")
    assert str(tmp_path / "nothing") in caught.value.path
    with pytest.raises(FileTransferError, match="it is a directory"):
        await vm.get_bytes("/tmp")
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_leaves_what_was_there(vm: TestVm) -> None:
    await vm.run("mkdir /tmp/small; mount -t tmpfs -o size=16k none /tmp/small")
    await vm.put(b"before", "/tmp/small/file")
    with pytest.raises(FileTransferError, match=r"/tmp/small/file: .*No space left on device"):
        await vm.put(os.urandom(30_000), "/tmp/small/file")
    assert await vm.run("ls -A /tmp/small; cat /tmp/small/file") == "file\nbefore"


async def test_a_full_disk_leaves_no_part_of_a_directory(vm: TestVm, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "tree" / name).write_bytes(os.urandom(10_000))
    await vm.run("mkdir -p /tmp/narrow; mount -t tmpfs -o size=20k none /tmp/narrow")
    with pytest.raises(FileTransferError, match=r"/tmp/narrow/tree: .*No space left on device"):
        await vm.put(tmp_path / "tree", "/tmp/narrow/tree")
    assert await vm.run("ls -A /tmp/narrow") == ""


async def test_a_transfer_that_is_cancelled_leaves_nothing_and_frees_the_shell(vm: TestVm) -> None:
    begun = asyncio.Event()
    transfer = asyncio.create_task(vm.put(os.urandom(5_000_000), "/tmp/cancelled", on_progress=lambda _: begun.set()))
    await begun.wait()
    transfer.cancel()
    await asyncio.wait([transfer])
    assert transfer.cancelled()
    assert await vm.run("ls -A /tmp | grep -e cancelled -e propolis; echo $?") == "1"


async def test_a_file_that_changes_while_it_is_read_is_an_error(vm: TestVm, tmp_path: Path) -> None:
    await vm.run("head -c 600000 /dev/zero >/tmp/growing")
    begun = asyncio.Event()
    transfer = asyncio.create_task(vm.get("/tmp/growing", tmp_path / "growing", on_progress=lambda _: begun.set()))
    await begun.wait()
    await vm.run("echo more >>/tmp/growing")
    with pytest.raises(FileTransferError, match="/tmp/growing: it changed while it was read"):
        await transfer
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_changes_while_it_is_put_is_an_error(vm: TestVm, tmp_path: Path) -> None:
    (tmp_path / "growing").write_bytes(bytes(600_000))

    def grow(progress: Progress) -> None:
        if progress.done_bytes:
            with (tmp_path / "growing").open("ab") as file:
                file.write(b"more")

    with pytest.raises(FileTransferError, match=r"/tmp/grown: .*/growing changed while it was read"):
        await vm.put(tmp_path / "growing", "/tmp/grown", on_progress=grow)
    assert await vm.run("ls -A /tmp | grep -e grown -e propolis; echo $?") == "1"


async def test_a_kernels_message_in_the_middle_does_no_harm(vm: TestVm) -> None:
    await vm.run("dmesg -n 8; (for i in 1 2 3; do echo '<0>kernel talk' >/dev/kmsg; sleep 0.2; done) >/dev/null 2>&1 &")
    content = os.urandom(15_000)
    await vm.put(content, "/tmp/talk")
    await vm.run("(for i in 1 2 3; do echo '<0>kernel talk' >/dev/kmsg; sleep 0.1; done) >/dev/null 2>&1 &")
    assert await vm.get_bytes("/tmp/talk") == content
