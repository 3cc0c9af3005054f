"""Tests with a fresh guest each, as whole runs, against labgrid: its QEMUDriver and ShellDriver, the same boot files.

labgrid is a plugin of pytest, which must not be installed beside this one: `LABGRID_PYTHON` names another environment's
Python, made by ``python -m venv DIRECTORY && DIRECTORY/bin/pip install labgrid pytest``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pytest_propolis.engine.qemu.accelerator.acceleration import acceleration_arguments

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.pytest_runs import run_suite
from ..common.samples import ratio_of_medians, spread
from ..floors.bare_guest import CPUS, MEMORY_MIB, GuestFiles

__all__ = ["measure"]

TESTS: Final = 10
RUNS: Final = 3
BOUND: Final = 12
ENVIRONMENT: Final = "LABGRID_PYTHON"

OURS: Final = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
async def test_of_its_own(test_vm, number):
    assert await test_vm.run("echo $((20 + 3))") == "23"
"""

THEIRS: Final = """
import pytest

@pytest.fixture
def shell(target):
    qemu = target.get_driver("QEMUDriver")
    qemu.on()
    yield target.get_driver("ShellDriver")
    target.deactivate(target.get_driver("ShellDriver", activate=False))
    qemu.off()

@pytest.mark.parametrize("number", range({tests}))
def test_of_its_own(shell, number):
    assert shell.run_check("echo $((20 + 3))") == ["23"]
"""


def measure(options: Options) -> list[Figure]:
    python = os.environ.get(ENVIRONMENT)
    if python is None:
        raise RuntimeError(f"set {ENVIRONMENT} to a Python that has labgrid and pytest, and not this project")
    files, acceleration = asyncio.run(_boot_files(options))
    ours_s: list[float] = []
    theirs_s: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ours, theirs = directory / "ours", directory / "theirs"
        for place, suite in ((ours, OURS), (theirs, THEIRS)):
            place.mkdir()
            (place / "test_suite.py").write_text(suite.format(tests=TESTS))
        (theirs / "environment.yaml").write_text(json.dumps(_environment(files, acceleration)))
        for _ in range(options.repeated(RUNS)):
            ours_s.append(run_suite([sys.executable, *_with_vms(options)], ours)[0])
            theirs_s.append(run_suite([python, "-m", "pytest", "--lg-env", "environment.yaml"], theirs)[0])
            say(f"ours {ours_s[-1]:.2f}, labgrid {theirs_s[-1]:.2f}, load {os.getloadavg()[0]:.1f}")
    ratio = 1 / ratio_of_medians(ours_s, theirs_s)
    return [
        Figure(
            name=f"{TESTS} micro tests with a fresh VM each, whole run, n={len(ours_s)}, against labgrid",
            measured=spread(ours_s),
            floor=spread(theirs_s),
            ratio=f"{ratio:.1f} times as fast",
            bound=f">= {BOUND} x",
            met=ratio >= BOUND,
        )
    ]


async def _boot_files(options: Options) -> tuple[GuestFiles, Sequence[str]]:
    async with Harness.open(options) as harness:
        files, accelerator = await harness.files("micro")
        return files, acceleration_arguments(accelerator)


def _with_vms(options: Options) -> Sequence[str]:
    return ("-m", "pytest", "-p", "propolis", f"--propolis-accelerator={options.accelerator}")


def _environment(files: GuestFiles, acceleration: Sequence[str]) -> dict[str, object]:
    """Return labgrid's description of the guest: JSON is YAML, too."""
    processor = acceleration[acceleration.index("-cpu") + 1]
    others = [word for word in acceleration if word not in ("-cpu", processor)]
    qemu = {
        "qemu_bin": "qemu",
        "machine": "pc",
        "cpu": processor,
        "memory": f"{MEMORY_MIB}M",
        "kernel": "kernel",
        "boot_args": files.command_line,
        "extra_args": " ".join([*others, "-smp", str(CPUS), "-initrd", str(files.initrd), "-nodefaults"]),
    }
    shell = {"prompt": "~ # ", "login_prompt": "login: ", "username": "root"}
    return {
        "targets": {"main": {"drivers": {"QEMUDriver": qemu, "ShellDriver": shell}}},
        "tools": {"qemu": shutil.which("qemu-system-x86_64")},
        "images": {"kernel": str(files.kernel)},
    }
