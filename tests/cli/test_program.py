"""Programs that commands of nodes run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from terminal import on_terminal

from pytest_propolis.cli.nodes.program import run_program
from pytest_propolis.errors import PropolisError

ON_TERMINAL = """
import asyncio, sys
from pytest_propolis.cli.nodes.program import run_program
print("status", asyncio.run(run_program(sys.argv[1:], {})).status)
print("back:", input())
"""


async def test_a_program_has_ended_though_its_child_holds_the_pipe() -> None:
    ended = await asyncio.wait_for(run_program(["sh", "-c", "sleep 1000 & echo $!; sleep 1; exit 3"], {}), 60)
    os.kill(int(ended.output[0]), signal.SIGKILL)
    assert ended.status == 3


async def test_what_a_program_has_started_is_ended_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    opening = asyncio.get_running_loop().run_in_executor(None, fifo.open, "rb")

    async def cause() -> PropolisError:
        assert (await opening).read(8) == b"started\n"
        return PropolisError("it must not go on")

    script = f"exec 3>{fifo}; {{ echo started >&3; exec sleep 1000; }} & wait"
    with pytest.raises(PropolisError, match="it must not go on"):
        await run_program(["sh", "-c", script], {}, until=cause())
    with await opening as reader:
        assert reader.read() == b"", "whatever had the other end open has ended"


def test_a_program_reads_from_the_terminal_and_gives_it_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_TERMINAL, "sh", "-c", "read line; echo got $line"]
    with on_terminal(command, cwd=tmp_path) as terminal:
        terminal.type("hello\n")
        terminal.wait_for("got hello")
        terminal.wait_for("status 0")
        terminal.type("again\n")
        terminal.wait_for("back: again")
        assert terminal.wait_for_end() == 0


def test_ctrl_c_at_the_terminal_ends_the_program(tmp_path: Path) -> None:
    # Not a shell: one that gets the signal between two commands may start the second all the same.
    program = [sys.executable, "-c", "import time; print('running', flush=True); time.sleep(1000)"]
    command = [sys.executable, "-c", ON_TERMINAL, *program]
    with on_terminal(command, cwd=tmp_path) as terminal:
        terminal.wait_for("running")
        terminal.type("\x03")
        terminal.wait_for("status 130")
        terminal.type("again\n")
        terminal.wait_for("back: again")
