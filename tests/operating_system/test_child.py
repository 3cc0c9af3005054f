"""Child processes end with all that they have started, whichever way that tries to stay."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL
from pathlib import Path

import pytest

from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.operating_system.child import Child, spawn

SHELL = Path("/bin/sh")
DEADLINE_S = 30.0


async def start(script: str) -> Child:
    return await spawn(SHELL, ["-c", script], stdout=DEVNULL, stderr=DEVNULL)


async def grandchild(note: Path) -> ProcessIdentity:
    """The process whose id a script has written down."""
    async with asyncio.timeout(DEADLINE_S):
        while not (note.exists() and note.read_text().endswith("\n")):
            await asyncio.sleep(0.01)
    return ProcessIdentity.of(int(note.read_text()))


async def wait_until_dead(process: ProcessIdentity) -> None:
    """Wait for a process that has closed its files already: the kernel does that a moment before it is dead."""
    async with asyncio.timeout(DEADLINE_S):
        while process.is_alive():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "script",
    ["sleep 600 & echo $! > NOTE; wait", "sh -c 'trap \"\" TERM HUP; echo $$ > NOTE; sleep 600; true'; exit $?"],
    ids=["background", "foreground"],
)
async def test_what_a_wrapper_has_started_ends_with_it(tmp_path: Path, script: str) -> None:
    child = await start(script.replace("NOTE", str(tmp_path / "note")))
    process = await grandchild(tmp_path / "note")
    assert await child.end()
    await wait_until_dead(process)


async def test_what_outlived_its_wrapper_is_ended(tmp_path: Path) -> None:
    child = await start(f"sleep 600 & echo $! > '{tmp_path}/note'")
    process = await grandchild(tmp_path / "note")
    assert await child.wait() == 0
    assert process.is_alive()
    assert await child.end()
    await wait_until_dead(process)


@pytest.mark.parametrize("starter", ["setsid", "env -i /usr/bin/setsid"])
async def test_what_left_the_process_group_is_ended(tmp_path: Path, starter: str) -> None:
    child = await start(f"{starter} sh -c 'echo $$ > \"{tmp_path}/note\"; exec sleep 600'; exit 0")
    process = await grandchild(tmp_path / "note")
    assert os.getsid(process.pid) != child.pid
    assert await child.end()
    await wait_until_dead(process)


async def test_a_signal_reaches_what_the_wrapper_has_started(tmp_path: Path) -> None:
    child = await start(f"sleep 600 & echo $! > '{tmp_path}/note'; wait")
    process = await grandchild(tmp_path / "note")
    child.signal(signal.SIGSTOP)
    async with asyncio.timeout(DEADLINE_S):
        while " T " not in Path(f"/proc/{process.pid}/stat").read_text():
            await asyncio.sleep(0.01)
    assert await child.end()
    await wait_until_dead(process)


async def test_ending_twice_is_fine_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    child = await start("exec sleep 600")
    assert list(await asyncio.gather(child.end(), child.end())) == [True, True]
    child.signal(signal.SIGKILL)
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1, "the loop's own may come"
