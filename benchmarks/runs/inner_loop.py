"""The inner loop: the time of one test with a warm VM, of a run without VMs, and of a run without the plugin.

All kinds of run take turns, so that what else the machine does hits them alike. The quickest runs and the medians are
compared: on a busy machine the quickest say more.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from pytest_propolis.hosts.agent_clients.asynchronous import AsyncAgentClient
from pytest_propolis.hosts.agent_clients.synchronous import running_agents

from ..common.figure import Figure
from ..common.options import Options, say

__all__ = ["measure"]

ROUNDS: Final = 15
RUN_TIMEOUT_S: Final = 120.0
LINGER_S: Final = 120
SETTLE_TIMEOUT_S: Final = 60.0

WITH_A_VM: Final = """
async def test_hello(test_vm):
    assert await test_vm.run("echo hello") == "hello"
"""
WITHOUT_VMS: Final = """
def test_nothing():
    assert True
"""

# Only what a run needs: other installed plugins may take longer than all that is measured.
PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "-p", "asyncio", "-p", "no:cacheprovider")
COMMAND: Final = (sys.executable, "-c", "from pytest_propolis.cli import main; main()")


class Kind(NamedTuple):
    """A kind of run."""

    file: str
    arguments: tuple[str, ...]


def measure(options: Options) -> list[Figure]:
    rounds = options.repeated(ROUNDS)
    guest = ("-p", "propolis", "--propolis-guest=micro", f"--propolis-accelerator={options.accelerator}")
    kinds = {
        "bare": Kind("test_without.py", ()),
        "plugin": Kind("test_without.py", ("-p", "propolis")),
        "vm": Kind("test_with.py", guest),
        "lingering": Kind("test_with.py", (*guest, f"--propolis-linger={LINGER_S}", "--propolis-standby=1")),
    }
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        place = Path(name)
        (place / "test_with.py").write_text(WITH_A_VM)
        (place / "test_without.py").write_text(WITHOUT_VMS)
        (place / "pytest.ini").write_text("[pytest]\n")
        environment = _environment(place)
        try:
            took = _rounds(kinds, rounds, place, environment)
        finally:
            subprocess.run([*COMMAND, "gc", "--agents"], env=environment, check=False, capture_output=True)
    return [
        _figure("one test with a warm VM (micro) over a run without VMs", took["vm"], took["plugin"], bound_s=0.5),
        _figure("the same with --propolis-linger", took["lingering"], took["plugin"], bound_s=0.15),
        _figure("a run without VMs over one without the plugin", took["plugin"], took["bare"], bound_s=0.01),
    ]


def _environment(place: Path) -> dict[str, str]:
    """Return this process's environment, with byte code of modules kept, as installers leave it."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    own = {"XDG_RUNTIME_DIR": str(place), "PYTHONPYCACHEPREFIX": str(place / "bytecode")}
    return {**inherited, **own, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _rounds(
    kinds: Mapping[str, Kind], rounds: int, place: Path, environment: Mapping[str, str]
) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {name: [] for name in kinds}
    say(f"inner_loop: {rounds} rounds of {len(kinds)} runs")
    for number in range(-1, rounds):  # the first round compiles, makes the template, and leaves an agent
        for name, kind in kinds.items():
            if name == "lingering" and number >= 0:
                asyncio.run(_await_standby(place / "propolis"))
            seconds = _run(kind, place, environment)
            if number >= 0:
                took[name].append(seconds)
    return took


def _run(kind: Kind, place: Path, environment: Mapping[str, str]) -> float:
    began = time.perf_counter()
    finished = subprocess.run(
        [*PYTEST, *kind.arguments, kind.file],
        cwd=place,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    took_s = time.perf_counter() - began
    if finished.returncode:
        raise RuntimeError(finished.stdout + finished.stderr)
    return took_s


async def _await_standby(base: Path) -> None:
    """Wait until a fork stands by: an engineer reads a result before starting the next run."""
    (found,) = [agent for agent in running_agents(base) if agent.may_linger]
    async with asyncio.timeout(SETTLE_TIMEOUT_S), AsyncAgentClient(found.socket, client="") as agent:
        while not (await agent.info()).standing_by:
            await asyncio.sleep(0.05)


def _figure(name: str, ours: Sequence[float], floor: Sequence[float], *, bound_s: float) -> Figure:
    quickest, middle = min(ours) - min(floor), median(ours) - median(floor)
    return Figure(
        name=f"{name}, n={len(ours)}",
        measured=f"{_ms(middle)} (quickest {_ms(quickest)})",
        floor=f"{_ms(median(floor))} (quickest {_ms(min(floor))})",
        bound=f"<= {_ms(bound_s)}",
        met=min(quickest, middle) <= bound_s,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
