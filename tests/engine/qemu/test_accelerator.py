"""The accelerator's probe: a real QEMU, and programs that fail in its place."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_propolis.engine.qemu.accelerator import probe as accelerator
from pytest_propolis.engine.qemu.accelerator.probe import probe_accelerator
from pytest_propolis.engine.qemu.accelerator.probe_guest import GUEST_ROM, GUEST_SOURCE
from pytest_propolis.engine.qemu.binary import Qemu, find_qemu
from pytest_propolis.errors import CapabilityMissing, HostError

PROBE_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from pytest_propolis.engine.qemu.accelerator.probe import probe_accelerator
from pytest_propolis.engine.qemu.binary import Qemu
program, cache = map(Path, sys.argv[1:])
asyncio.run(probe_accelerator(Qemu(program, program, (7, 2, 0), "setting"), wanted="tcg", cache_dir=cache))
"""


def kvm_opens() -> bool:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError:
        return False
    return True


@pytest.fixture
async def qemu() -> Qemu:
    return await find_qemu(None)


def stand_in(path: Path, script: str) -> Qemu:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Qemu(path, path, (7, 2, 0), "setting")


@pytest.fixture
def hanging(tmp_path: Path) -> Qemu:
    """A QEMU that never ends, and leaves its process id in the file `pid`."""
    return stand_in(
        tmp_path / "qemu",
        f"echo $$ > {tmp_path / 'pid.part'}\nmv {tmp_path / 'pid.part'} {tmp_path / 'pid'}\nexec sleep 600",
    )


async def pid_of(hanging: Qemu) -> int:
    path = hanging.system.with_name("pid")
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)
    return int(path.read_text())


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.01)


@pytest.mark.skipif(not all(map(shutil.which, ("as", "ld", "objcopy"))), reason="binutils are not installed")
def test_the_rom_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    def run(*argv: str) -> None:
        subprocess.run(argv, cwd=tmp_path, check=True, timeout=60)

    (tmp_path / "guest.S").write_text(GUEST_SOURCE)
    run("as", "--64", "-o", "guest.o", "guest.S")
    run("ld", "-m", "elf_x86_64", "-Ttext", "0", "-e", "0", "-o", "guest.elf", "guest.o")
    run("objcopy", "-O", "binary", "guest.elf", "guest.bin")
    assert (tmp_path / "guest.bin").read_bytes() == GUEST_ROM


async def test_the_guest_runs_under_tcg_to_its_end(qemu: Qemu, tmp_path: Path) -> None:
    choice = await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path)
    assert (choice.name, choice.from_cache) == ("tcg", False)
    assert choice.reason.startswith("a 64-bit guest under TCG ran in ")


async def test_auto_takes_what_runs_a_guest_and_says_why(qemu: Qemu, tmp_path: Path) -> None:
    choice = await probe_accelerator(qemu, wanted="auto", cache_dir=tmp_path)
    if choice.name == "kvm":
        assert choice.reason.startswith("a 64-bit guest on /dev/kvm ran in ")
    else:
        assert choice.reason.endswith(": using TCG")
        assert "/dev/kvm" in choice.reason
    assert choice.took_s < accelerator.KVM_DEADLINE_S + accelerator.TCG_DEADLINE_S


@pytest.mark.skipif(not kvm_opens(), reason="/dev/kvm cannot be opened")
async def test_asking_for_kvm_gets_it_exactly_where_auto_would_take_it(qemu: Qemu, tmp_path: Path) -> None:
    auto = await probe_accelerator(qemu, wanted="auto", cache_dir=tmp_path)
    if auto.name == "kvm":
        assert (await probe_accelerator(qemu, wanted="kvm", cache_dir=tmp_path)).name == "kvm"
    else:
        with pytest.raises(CapabilityMissing, match="/dev/kvm is there but a 64-bit guest on it") as caught:
            await probe_accelerator(qemu, wanted="kvm", cache_dir=tmp_path)
        assert "--propolis-accelerator" in str(caught.value)


async def test_what_was_found_is_remembered(qemu: Qemu, tmp_path: Path) -> None:
    first = await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path)
    second = await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path)
    assert (second.name, second.reason, second.from_cache) == ("tcg", first.reason, True)
    assert second.took_s < first.took_s


async def test_another_qemu_is_tried_anew(qemu: Qemu, tmp_path: Path) -> None:
    await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path)
    changed = replace(qemu, version=(99, 0, 0))
    assert not (await probe_accelerator(changed, wanted="tcg", cache_dir=tmp_path)).from_cache


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"key": 1, "trials": 2}'])
async def test_a_damaged_memory_is_replaced(qemu: Qemu, tmp_path: Path, content: bytes) -> None:
    await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(content)
    assert not (await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path)).from_cache
    assert (await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path)).from_cache


async def test_what_was_found_of_a_program_that_was_removed_is_forgotten(qemu: Qemu, tmp_path: Path) -> None:
    moved = Qemu(tmp_path / "qemu", qemu.img, qemu.version, "setting")
    moved.system.symlink_to(qemu.system)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "accelerator-0123456789abcdef.json").write_text("of an earlier version")
    await probe_accelerator(moved, wanted="tcg", cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.json"))) == 1
    moved.system.unlink()
    await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2, "a finding and its lock"
    assert (await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path / "cache")).from_cache


async def test_of_several_that_probe_at_once_one_runs_guests(qemu: Qemu, tmp_path: Path) -> None:
    probes = (probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path) for _ in range(4))
    choices = await asyncio.gather(*probes)
    assert sorted(choice.from_cache for choice in choices) == [False, True, True, True]


async def test_a_guest_that_hangs_is_killed_at_the_deadline_and_the_hang_is_not_remembered(
    hanging: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "TCG_DEADLINE_S", 2.0)
    with pytest.raises(CapabilityMissing, match="under TCG hung for 2 s while entering protected mode"):
        await probe_accelerator(hanging, wanted="tcg", cache_dir=tmp_path / "cache")
    await until_gone(await pid_of(hanging))
    (path,) = (tmp_path / "cache").glob("*.json")
    assert json.loads(path.read_text())["trials"] == {}


async def test_a_guest_that_kvm_gives_up_on_is_not_waited_for(tmp_path: Path) -> None:
    qemu = stand_in(tmp_path / "qemu", "printf PLH\necho 'KVM internal error. Suberror: 1' >&2\nexec sleep 600")
    started = time.monotonic()
    with pytest.raises(CapabilityMissing, match=r"crashed \(KVM internal error\) while taking an exception"):
        await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path / "cache")
    assert time.monotonic() - started < accelerator.TCG_DEADLINE_S / 2


@pytest.mark.parametrize(
    ("script", "finding"),
    [
        (
            "echo 'invalid accelerator' >&2; exit 1",
            "did not run: QEMU ended with status 1 and said invalid accelerator",
        ),
        ("printf P; exit 0", "reset itself while entering long mode"),
        ("printf PLHX; exit 43", "came to a wrong result while changing page tables"),
        ("exit 85", "did not run: QEMU ended with status 85"),
        ("kill -9 $$", "did not run: QEMU ended with status -9"),
    ],
)
async def test_a_guest_that_fails_is_reported_with_how_far_it_got(tmp_path: Path, script: str, finding: str) -> None:
    qemu = stand_in(tmp_path / "qemu", script)
    with pytest.raises(CapabilityMissing) as caught:
        await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path / "cache")
    assert f"a 64-bit guest under TCG {finding}" in caught.value.message


async def test_a_cancelled_probe_leaves_no_process_and_no_lock(hanging: Qemu, qemu: Qemu, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    probe = asyncio.create_task(probe_accelerator(hanging, wanted="tcg", cache_dir=cache))
    pid = await pid_of(hanging)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert not Path(f"/proc/{pid}").exists()
    same_place = stand_in(hanging.system, "exit 1")
    with pytest.raises(CapabilityMissing):
        async with asyncio.timeout(10):
            await probe_accelerator(same_place, wanted="tcg", cache_dir=cache)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
async def test_qemu_dies_with_a_killed_prober_and_the_next_one_gets_the_lock(hanging: Qemu, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    argv = [sys.executable, "-c", PROBE_AND_WAIT, str(hanging.system), str(cache)]
    prober = await asyncio.create_subprocess_exec(*argv)
    try:
        pid = await pid_of(hanging)
    finally:
        prober.send_signal(signal.SIGKILL)
        await prober.wait()
    await until_gone(pid)
    with pytest.raises(CapabilityMissing):
        async with asyncio.timeout(10):
            await probe_accelerator(stand_in(hanging.system, "exit 1"), wanted="tcg", cache_dir=cache)


async def test_a_cache_directory_that_cannot_be_is_named(qemu: Qemu, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="file/cache cannot be used: Not a directory"):
        await probe_accelerator(qemu, wanted="tcg", cache_dir=tmp_path / "file" / "cache")
