"""A QEMU program that is a script which starts the real one as its child leaves no QEMU behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import propolis

TCG = "--propolis-accelerator=tcg"  # a probe of KVM would be made anew for each wrapper

USES_A_VM = """
async def test_hello(test_vm):
    assert await test_vm.run("echo hello") == "hello"
"""

KILLS_ITS_AGENT = """
import os, signal

async def test_it(vm_factory, propolis):
    vm = await vm_factory.create()
    await vm.launch()
    agent = await (await propolis.host.client()).info()
    os.kill(agent.pid, signal.SIGKILL)
"""


def wrapper(directory: Path, *, starter: str) -> Path:
    """Return a script that runs the real QEMU as a child, prefixed by a command."""
    script = directory / "qemu-wrapper"
    real = shutil.which("qemu-system-x86_64")
    # One more place to look for firmware, by which the test knows its QEMUs.
    script.write_text(f'#!/bin/sh\n{starter} {real} -L "{directory}" "$@"\nexit $?\n')
    script.chmod(0o700)
    return script


@pytest.mark.parametrize(
    ("boot", "starter"),
    [
        ("warm", ""),
        pytest.param("warm", "setsid -w", marks=pytest.mark.slow),
        pytest.param("cold", "env -i", marks=pytest.mark.slow),
    ],
)
def test_a_run_leaves_no_qemu_of_a_wrapper(inner: InnerRun, boot: str, starter: str) -> None:
    script = wrapper(inner.pytester.path, starter=starter)
    inner.write(test_it=USES_A_VM)
    result = inner.run(f"--propolis-qemu={script}", f"--propolis-boot={boot}", "--propolis-standby=1", TCG)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1)
    assert qemus_of(script) == []


@pytest.mark.parametrize(
    ("starter", "shown"), [("", r"pid \d+ \(started pid {}\)"), ("env -i", "pid {}, which no ledger lists")]
)
def test_gc_ends_the_qemu_of_a_wrapper_whose_agent_was_killed(inner: InnerRun, starter: str, shown: str) -> None:
    script = wrapper(inner.pytester.path, starter=starter)
    inner.write(test_it=KILLS_ITS_AGENT)
    inner.run(f"--propolis-qemu={script}", TCG)
    left = qemus_of(script)
    listed = propolis("ps")
    propolis("gc")
    assert len(left) == 1, "the wrapper has died with its agent, and the real QEMU has not"
    assert re.search(shown.format(left[0]), listed)
    assert qemus_of(script) == []


def qemus_of(script: Path) -> list[str]:
    """The process ids of the QEMUs that a script started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-system-x86_64") and str(script.parent).encode() in words:
            found.append(process.name)
    return found
