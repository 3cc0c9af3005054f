"""``propolis console``: the serial console of a VM on a terminal."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import COMMAND, propolis
from terminal import on_terminal

FAILS = "async def test_it(test_vm):\n    await test_vm.run('echo a line of before >/dev/ttyS0; false')\n"


@pytest.fixture
def vm(inner: InnerRun) -> Iterator[str]:
    """The id of a VM that is kept."""
    inner.write(test_it=FAILS)
    result = inner.run("--propolis-keep=failed", "--propolis-memory-mib=192")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*left something behind*")
    (line,) = [line for line in result.outlines if line.startswith("stays:   propolis console ")]
    yield line.split()[-1]
    propolis("gc", "--kept")


def test_a_person_works_at_the_console_and_leaves_it(inner: InnerRun, vm: str) -> None:
    for key in ("\x1d", "\r~."):
        with on_terminal([*COMMAND, "console", vm], cwd=inner.runtime) as terminal:
            before = termios.tcgetattr(terminal.descriptor)
            terminal.wait_for("~ # ")
            assert termios.tcgetattr(terminal.descriptor) != before, "it is not raw"
            terminal.type("echo $((6 * 7))\r")
            terminal.wait_for("\n42\n")
            terminal.type("echo in'-'cat; cat\r")
            terminal.wait_for("in-cat\n")
            terminal.type("said twice\r")
            terminal.wait_for("said twice\nsaid twice\n")  # a Ctrl-C before cat runs is the shell's, and cat stays
            terminal.type("\x03")
            terminal.wait_for("~ # ")
            terminal.type(key)
            assert terminal.wait_for_end() == 0
            assert "the VM goes on" in terminal.shown
            assert "\x1e" not in terminal.shown
            assert "trap : INT" not in terminal.shown
    assert f"{vm} 'test-vm', Running" in propolis("ps")


def test_the_terminal_is_as_it_was_when_the_vm_stops(inner: InnerRun, vm: str) -> None:
    script = f'before=$(stty -g); ./console {vm}; test "$before" = "$(stty -g)" && echo same'
    file = inner.runtime / "console"
    file.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in COMMAND) + ' console "$@"\n')
    file.chmod(0o700)
    with on_terminal(["sh", "-c", script], cwd=inner.runtime) as terminal:
        terminal.wait_for("~ # ")
        terminal.type("poweroff -f\r")
        terminal.wait_for("the VM has stopped")
        terminal.wait_for("same\n")
    file.unlink()


def test_the_end_of_a_killed_qemu_is_named(inner: InnerRun, vm: str) -> None:
    with on_terminal([*COMMAND, "console", vm], cwd=inner.runtime) as terminal:
        terminal.wait_for("~ # ")
        lines = {int(entry.parent.name): read(entry) for entry in Path("/proc").glob("[0-9]*/cmdline")}
        (pid,) = [pid for pid, line in lines.items() if vm in line and "qemu" in line.split("\0")[0]]
        os.kill(pid, signal.SIGKILL)
        terminal.wait_for("killed by SIGKILL")


def read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def test_history_is_as_long_as_asked_for(vm: str) -> None:
    text = propolis("console", "-n", "2", vm)
    assert text.splitlines()[0] == "a line of before"


def test_a_vm_that_is_not_there_is_an_error_that_names_it() -> None:
    assert "there is no VM 'nobody'" in propolis("console", "nobody", status=1)


def test_a_vm_of_a_running_test_can_be_watched(inner: InnerRun) -> None:
    inner.write(
        test_it="""
import asyncio, sys

async def test_it(test_vm):
    await test_vm.run("echo hello to who watches >/dev/ttyS0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from pytest_propolis.cli import main; main()", "console", test_vm.id,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )
    shown, _ = await process.communicate()
    assert "hello to who watches" in shown.decode()
    assert await test_vm.run("echo still") == "still"
"""
    )
    inner.run().assert_outcomes(passed=1)
