"""Templates: created once, checked before use, and replaced by a cold boot if unavailable."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mounts import as_root, mounted, tmpfs
from own_agents import Factories, template_in
from propolis_command import propolis

from pytest_propolis.console.console import Console
from pytest_propolis.errors import BootError, ResourceExhausted
from pytest_propolis.guests.micro import Micro
from pytest_propolis.operating_system.figures import total_mib

pytestmark = pytest.mark.requires(server="engine")

KERNEL_MESSAGE = re.compile(r"\[ *\d+\.\d{6}\] ")
MICRO: dict[str, Any] = {"guest": "micro", "cpus": 1, "memory_mib": 128}


class NotQuiet(Micro):
    name = "not-quiet"
    quiet_command = "echo busy; false"


class NeverUp(Micro):
    name = "never-up"
    image = dataclasses.replace(Micro.image, command_line=Micro.image.command_line.removesuffix(" quiet"))
    boots: ClassVar[list[Console]] = []

    async def log_in(self, console: Console) -> None:
        self.boots.append(console)
        await console.transcript.wait_for("a prompt that does not come\n")


class NothingRuns(Micro):
    name = "nothing-runs"

    def template_commands(self) -> Iterable[str]:
        places = "/run /dev/shm /tmp /var/tmp /root"
        yield f"for place in {places}; do mkdir -p $place; mount -t tmpfs -o noexec tmpfs $place; done"
        yield from super().template_commands()


class LongWinded(Micro):
    name = "long-winded"
    characters: ClassVar[int] = 5000

    def identity_command(self, *, name: str) -> str:
        return f": {'x' * self.characters}; {super().identity_command(name=name)}"


class Late(Micro):
    name = "late"
    delays_s: ClassVar[list[int]] = []
    """How long the next forks wait until they hear what they are told."""

    def identity_command(self, *, name: str) -> str:
        delay_s = self.delays_s.pop() if self.delays_s else 0
        return f"sleep {delay_s}; {super().identity_command(name=name)}"


@pytest.fixture
def more_guests() -> list[Micro]:
    return [NotQuiet(), NeverUp(), NothingRuns(), LongWinded(), Late()]


async def test_a_template_is_made_once_for_runs_at_the_same_time(factories: Factories, lines: list[str]) -> None:
    async def one(name: str) -> str:
        async with factories(name) as factory:
            vm = await factory.start("vm", **MICRO)
            await vm.run("true")
            return vm.boot_kind

    assert list(await asyncio.gather(one("left"), one("right"))) == ["warm", "warm"], lines
    assert sum(line.startswith("making a template") for line in lines) == 1
    assert any("another process is making a template of micro" in line for line in lines)


@pytest.mark.parametrize(
    "file",
    ["memory", *(pytest.param(file, marks=pytest.mark.slow) for file in ("state", "template.json", "manifest.json"))],
)
async def test_a_damaged_template_is_made_anew(
    factories: Factories, artifact_dir: Path, lines: list[str], file: str
) -> None:
    async with factories("first") as factory:
        await factory.start("vm", **MICRO)
    path = template_in(artifact_dir) / file
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"damage" * 100)
    lines.clear()
    async with factories("second") as factory:
        vm = await factory.start("vm", **MICRO)
        assert await vm.run("echo up") == "up"
        assert vm.boot_kind == "warm"
    assert any("is damaged" in line for line in lines)


@pytest.fixture
def collect_templates(
    artifact_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Awaitable[str]]:
    """Run ``propolis gc --templates`` on the store, and where there are no runs; return its output."""

    async def collect() -> str:
        with monkeypatch.context() as patch:
            patch.setenv("PROPOLIS_ARTIFACT_DIR", str(artifact_dir))
            patch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
            return await asyncio.to_thread(propolis, "gc", "--templates")

    return collect


async def test_a_template_stays_while_there_are_forks_which_can_migrate_and_be_reset(
    factories: Factories, artifact_dir: Path, collect_templates: Callable[[], Awaitable[str]]
) -> None:
    async with factories("run") as factory:
        vm = await factory.start("vm", **MICRO)  # no disk of a fork is an overlay on the template
        assert vm.boot_kind == "warm"
        place = template_in(artifact_dir)
        assert await collect_templates() == "nothing to remove\n"
        successor = await factory.successor(vm)
        await successor.migrate_from(vm)
        await successor.graceful_reboot()
        assert await successor.run("echo up") == "up"
    assert f"removed {place} " in await collect_templates()


@pytest.mark.slow
async def test_a_guest_that_does_not_become_quiet_boots(
    factories: Factories, artifact_dir: Path, lines: list[str]
) -> None:
    async with factories("run") as factory:
        for name in ("first", "second"):
            vm = await factory.start(name, **MICRO | {"guest": "not-quiet"})
            assert vm.boot_kind == "cold"
            assert await vm.run("echo up") == "up"
    assert sum(line.startswith("making a template") for line in lines) == 1, "no second try in one run"
    assert "not-quiet boots from cold: 'echo busy; false' ended with status 1" in lines
    assert list((artifact_dir / "templates" / "derived").iterdir()) == []


@pytest.mark.slow
async def test_a_guest_that_does_not_boot_in_time_is_booted_once_for_all_that_wait_for_its_template(
    factories: Factories, tmp_path: Path
) -> None:
    NeverUp.boots.clear()
    async with factories("run") as factory:
        failed = await asyncio.gather(
            *(factory.start(name, guest="never-up", boot_timeout_s=10) for name in ("first", "second")),
            return_exceptions=True,
        )
    assert len(NeverUp.boots) == 1
    first, second = failed
    assert isinstance(first, BootError)
    assert isinstance(second, BootError)
    assert (first.vm, second.vm) == ("first", "second")
    assert first.operation == second.operation == "boot of its template"
    assert first.log_path == second.log_path == str(tmp_path / "run" / "template.serial.log")
    assert first.console_tail == second.console_tail
    assert any(map(KERNEL_MESSAGE.match, first.console_tail)), first.console_tail
    assert first.waited_s == second.waited_s == 10


@pytest.mark.slow
async def test_a_guest_whose_template_did_not_boot_earlier_boots_from_cold(factories: Factories) -> None:
    NeverUp.boots.clear()
    async with factories("run") as factory:
        with pytest.raises(BootError, match="did not come up to a login"):
            await factory.start("first", guest="never-up", boot_timeout_s=5)
        with pytest.raises(BootError) as caught:
            await factory.start("second", guest="never-up", boot_timeout_s=5)
    assert (caught.value.vm, caught.value.operation) == ("second", "boot")
    assert len(NeverUp.boots) == 2


@pytest.mark.slow
async def test_a_guest_that_lets_no_program_be_run_boots_and_the_remedy_is_named(
    factories: Factories, lines: list[str]
) -> None:
    async with factories("run") as factory:
        assert (await factory.start("vm", **MICRO | {"guest": "nothing-runs"})).boot_kind == "cold"
    assert (
        "nothing-runs boots from cold: no program can be run in nothing-runs from /run/.propolis-wake or another"
        " directory;"
        " set the adapter's `scratch` to a file in a directory that is not mounted noexec"
    ) in lines


@pytest.mark.slow
@pytest.mark.parametrize(("channel", "characters"), [("console", 5000), ("port", 100_000)])
async def test_a_guest_whose_waking_takes_too_many_words_boots(
    factories: Factories, lines: list[str], monkeypatch: pytest.MonkeyPatch, channel: str, characters: int
) -> None:
    monkeypatch.setattr(LongWinded, "characters", characters)
    async with factories("run") as factory:
        vm = await factory.start("vm", **MICRO | {"guest": "long-winded", "channel": channel})
        assert vm.boot_kind == "cold"
    assert any(
        "long-winded boots from cold: the identity of a fork of long-winded cannot be prepared" in x for x in lines
    )


@as_root
async def test_where_there_is_no_space_for_a_template_the_vm_boots(
    factories: Factories, artifact_dir: Path, lines: list[str]
) -> None:
    with mounted(artifact_dir / "templates", *tmpfs("size=64m")):
        async with factories("run") as factory:
            assert (await factory.start("vm", **MICRO)).boot_kind == "cold"
    assert any("micro boots from cold: no space left for a template" in line for line in lines)


@as_root
async def test_where_the_space_for_a_template_is_used_up_meanwhile_the_vm_boots(
    factories: Factories, artifact_dir: Path, lines: list[str]
) -> None:
    place = artifact_dir / "templates"

    async def use_it_up() -> None:
        while not any(file.stat().st_blocks for file in place.rglob("memory")):
            await asyncio.sleep(0)
        with (place / "ballast").open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()

    with mounted(place, *tmpfs("size=400m")):
        async with factories("run") as factory:
            using = asyncio.create_task(use_it_up())
            assert (await factory.start("vm", **MICRO)).boot_kind == "cold"
            await using
        assert list((place / "derived").iterdir()) == []
    assert f"micro boots from cold: no space was left for the template in {place}" in lines


@as_root
@pytest.mark.skipif(shutil.which("bindfs") is None, reason="bindfs is not installed")
async def test_where_a_file_cannot_be_memory_the_vm_boots(
    factories: Factories, artifact_dir: Path, tmp_path: Path, lines: list[str]
) -> None:
    (tmp_path / "below").mkdir()
    with mounted(artifact_dir / "templates", "bindfs", "-o", "direct_io", str(tmp_path / "below")):
        async with factories("run") as factory:
            assert (await factory.start("vm", **MICRO)).boot_kind == "cold"
    assert any("micro boots from cold: " in line and "unable to map backing store" in line for line in lines)


@pytest.mark.slow
async def test_a_template_that_another_qemu_made_is_not_taken(
    factories: Factories, artifact_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with factories("first") as factory:
        await factory.start("vm", **MICRO)
    wrapper = tmp_path / "bin" / "qemu-system-x86_64"
    wrapper.parent.mkdir()
    wrapper.write_text('#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    async with factories("second") as factory:
        assert (await factory.start("vm", **MICRO)).boot_kind == "warm"
    assert len(list((artifact_dir / "templates" / "derived").iterdir())) == 2


@pytest.mark.slow
async def test_a_fork_that_hears_late_what_time_it_is_is_told_again(
    factories: Factories, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with factories("run") as factory:
        await factory.start("first", **MICRO | {"guest": "late"})
        monkeypatch.setattr(Late, "delays_s", [2])
        vm = await factory.start("second", **MICRO | {"guest": "late"})
        assert not Late.delays_s
        before_s = int(time.time())
        assert before_s - 1 <= int(await vm.run("date +%s")) <= time.time() + 1
        assert await vm.run("hostname") == "second"


async def test_a_vm_that_finds_no_memory_waits_for_another_to_end(factories: Factories, lines: list[str]) -> None:
    half = total_mib() // 2 - total_mib() // 20
    async with factories("run") as factory:
        big: dict[str, Any] = {"guest": "micro", "boot": "cold", "memory_mib": half}
        first, _ = await factory.create("first", **big), await factory.create("second", **big)
        third = asyncio.create_task(factory.create("third", **big))
        async with asyncio.timeout(30):
            while not any(line.startswith("VM 'third' waits for memory: ") for line in lines):
                assert not third.done()
                await asyncio.wait([third], timeout=0.1)
        await factory.agent.remove_vm(first.endpoint.base_url.rpartition("/")[2])
        assert (await third).phases.took_s["queue"] > 0


async def test_a_vm_that_will_never_fit_is_refused_at_once(factories: Factories) -> None:
    async with factories("run") as factory:
        with pytest.raises(ResourceExhausted, match="does not fit on this host"):
            await factory.create("vm", guest="micro", memory_mib=total_mib())
