"""The console's client, over a real websocket to a real terminal."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from local_pty import console_on

from pytest_propolis.console.console import Console
from pytest_propolis.console.log import ConsoleLog
from pytest_propolis.errors import ConsoleClosed, ConsoleTimeout, HostError


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    async with console_on("dash", tmp_path) as console:
        yield console


async def test_what_is_typed_is_answered(console: Console) -> None:
    await console.send("echo $((6 * 7))\n")
    found = await console.wait_for(re.compile(r"^(\d+)$", re.MULTILINE), timeout_s=10)
    assert found.groups == ("42",)


async def test_many_waits_at_once(console: Console) -> None:
    waits = [asyncio.create_task(console.wait_for(f"=word{n}=", timeout_s=10)) for n in range(20)]
    await asyncio.sleep(0)
    await console.send("for n in 19 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 0; do echo =word$n=; done\n")
    assert [found.text for found in await asyncio.gather(*waits)] == [f"=word{n}=" for n in range(20)]


async def test_a_wait_that_times_out_says_what_how_long_and_what_was_shown(console: Console) -> None:
    await console.send(
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo $n; echo $n; done; echo e''nd\n"
    )
    await console.wait_for("end\n", timeout_s=10)
    with pytest.raises(ConsoleTimeout) as caught:
        await console.wait_for("never", timeout_s=0.05)
    error = caught.value
    assert error.message == "'never' did not appear on the console"
    assert (error.vm, error.waited_s, error.log_path) == ("local", 0.05, str(console.log_path))
    assert len(error.console_tail) == 30
    assert "20" in error.console_tail
    with pytest.raises(ConsoleTimeout, match=r"a match of 'a\[bc\]'"):
        await console.wait_for(re.compile("a[bc]"), timeout_s=0.05)


async def test_the_text_of_a_timeout_is_bounded(console: Console) -> None:
    await console.send("head -c 200000 /dev/zero | tr '\\0' x; echo; echo e''nd\n")
    await console.wait_for("end\n", timeout_s=30)
    for pattern in ("never" * 10_000, re.compile("never" * 10_000)):
        with pytest.raises(ConsoleTimeout, match=r"characters\) … .*never' did not appear") as caught:
            await console.wait_for(pattern, timeout_s=0.05)
        assert "xxx" in str(caught.value)
        assert len(str(caught.value)) < 5_000


async def test_the_log_has_lines_that_are_not_finished_and_is_private(console: Console) -> None:
    await console.send("printf 'not fini''shed'\n")
    await console.wait_for("not finished", timeout_s=10)
    assert "not finished" in console.log_path.read_text()
    console.note("a remark")
    assert console.log_path.read_text().endswith("[propolis] a remark\n")
    assert stat.S_IMODE(console.log_path.stat().st_mode) == 0o600


async def test_escape_sequences_are_in_neither_text_nor_log(console: Console) -> None:
    await console.send("printf '\\033[31mr''ed\\033[0m\\n'\n")
    await console.wait_for("\nred\n", timeout_s=10)
    assert "\x1b" not in console.log_path.read_text()


async def test_the_end_of_the_vm_ends_waits_and_typing(console: Console) -> None:
    wait = asyncio.create_task(console.wait_for("never", timeout_s=10))
    await console.send("echo last wor''ds; exit\n")
    with pytest.raises(ConsoleClosed) as caught:
        await wait
    assert "last words" in caught.value.console_tail
    with pytest.raises(ConsoleClosed):
        await console.send("x")
    with pytest.raises(ConsoleClosed):
        await console.wait_for("never", timeout_s=10)


async def test_closing_twice_is_fine_and_a_note_after_it_goes_nowhere(console: Console) -> None:
    await console.aclose()
    await console.aclose()
    console.note("too late")
    assert "too late" not in console.log_path.read_text()


async def test_a_log_that_cannot_be_had_names_its_place_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"the log .*/missing/serial.log cannot be written: No such file") as caught:
        ConsoleLog(tmp_path / "missing" / "serial.log")
    assert "--propolis-log-dir" in str(caught.value)


async def test_a_log_that_is_full_ends_nothing_and_says_so() -> None:
    log = ConsoleLog(Path("/dev/full"))
    log.write("lost")
    log.write("too")
    log.close()
    assert log.failure == "No space left on device"
