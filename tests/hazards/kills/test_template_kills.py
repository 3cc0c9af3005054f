"""Kills while a template is created or forked: no incomplete template is used, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import live_run as hazards
import pytest
from artifact_stores import store_without_templates
from live_run import live_run

from pytest_propolis.engine.templates.template import Template
from pytest_propolis.storage.store import ArtifactStore

ENDED_TIMEOUT_S = 60


# A guest that tells when its template is being made: at the log-in and after it, which a fork does not see. Then the
# agent saves it, which a stopped QEMU does not let it end.
CONFTEST = """
import contextlib, os, signal
from pathlib import Path
from pytest_propolis.guests.micro import Micro
from pytest_propolis.hosts.agent_clients.asynchronous import AsyncAgentClient

freeze = AsyncAgentClient.freeze

async def tell_and_freeze(*arguments):
    if "HAZARD_QEMU_STOPS" in os.environ:
        stop_qemu()
    await freeze(*arguments)
    reached("freezing")

AsyncAgentClient.freeze = tell_and_freeze

def stop_qemu():
    mark = f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = mark in (entry / "environ").read_bytes().split(b"\\0")
            if ours and b"qemu-system" in (entry / "cmdline").read_bytes().split(b"\\0")[0]:
                os.kill(int(entry.name), signal.SIGSTOP)

class Telling(Micro):
    name = "telling"

    async def log_in(self, console):
        reached("making")
        await super().log_in(console)

    def template_commands(self):
        reached("readying")
        return super().template_commands()

def pytest_propolis_guests(config):
    return [Telling()]
"""


@pytest.fixture(autouse=True)
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hazards, "CONFTEST", hazards.CONFTEST + CONFTEST)
    monkeypatch.setattr(hazards, "TEST", hazards.TEST.replace('os.environ["HAZARD_GUEST"]', '"telling"'))


@pytest.fixture
def artifact_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = store_without_templates(tmp_path / "artifacts")
    monkeypatch.setenv("PROPOLIS_ARTIFACT_DIR", str(directory))
    return directory


def derived(artifact_dir: Path) -> list[str]:
    place = artifact_dir / "templates" / "derived"
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


@pytest.mark.parametrize("target", ["controller", "agent", "qemu"])
@pytest.mark.parametrize("phase", ["making", pytest.param("readying", marks=pytest.mark.slow), "freezing"])
def test_a_maker_that_is_killed_leaves_nothing_half_made(artifact_dir: Path, phase: str, target: str) -> None:
    stops = {"HAZARD_QEMU_STOPS": "1"} if (phase, target) == ("freezing", "qemu") else {}
    with live_run(phase, environment=stops) as run:
        run.wait_for("qemu")
        assert phase == "freezing" or all(name.startswith(".") for name in derived(artifact_dir))
        run.hit(target, signal.SIGKILL)
        if target == "qemu":
            run.wait_for("qemu")  # the VM boots from cold then, and its test goes on
            run.hit("controller", signal.SIGKILL)
        run.controller.wait(ENDED_TIMEOUT_S)
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(run._place)}
        gc = [sys.executable, "-c", "from pytest_propolis.cli import main; main()", "gc", "--templates"]
        if target == "agent":
            subprocess.run(gc, env=environment, capture_output=True, text=True, check=True)
        run.wait_until_clean()
        subprocess.run(gc, env=environment, capture_output=True, text=True, check=True)
    left = derived(artifact_dir)
    assert left == [] or phase == "freezing"
    for name in left:
        assert ArtifactStore(artifact_dir / "templates").derived(name, Template.files(0)), "it was not complete"


def test_a_fork_that_is_killed_fails_its_test_and_leaves_the_template(artifact_dir: Path) -> None:
    with live_run("logged in") as run:
        before = derived(artifact_dir)
        run.hit("qemu", signal.SIGKILL)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.TESTS_FAILED, run.output
        run.wait_until_clean()
    assert derived(artifact_dir) == before
    assert not before[0].startswith(".")


@pytest.mark.parametrize("target", [pytest.param("controller", marks=pytest.mark.slow), "agent"])
def test_what_stands_by_goes_with_the_agent(artifact_dir: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setenv("HAZARD_STANDBY", "2")
    with live_run("logged in") as run:
        run.wait_for_number("qemu", 3)
        run.hit(target, signal.SIGKILL)
        run.controller.wait(ENDED_TIMEOUT_S)
        if target == "agent":
            environment = {**os.environ, "XDG_RUNTIME_DIR": str(run._place)}
            gc = [sys.executable, "-c", "from pytest_propolis.cli import main; main()", "gc"]
            subprocess.run(gc, env=environment, capture_output=True, text=True, check=True)
        run.wait_until_clean()
