"""Which agent lingers for a run depends on everything that the agent was started with, and on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_propolis.hosts.lingering import AgentEnvironment
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.settings import Settings


def agent_id(run: str = "a" * 16, **options: Any) -> str:
    return LocalHost(Settings(linger=60.0, **options), run_id=run).agent_id


def test_runs_with_the_same_options_share_an_agent() -> None:
    assert agent_id("a" * 16) == agent_id("b" * 16)
    assert LocalHost(Settings(linger=1.0), run_id="c" * 16).agent_id == agent_id()


def test_a_run_without_lingering_has_an_agent_of_its_own() -> None:
    assert LocalHost(Settings(), run_id="a" * 16).agent_id == "a" * 16


@pytest.mark.parametrize(
    "options",
    [
        {"qemu": Path("/opt/qemu")},
        {"accelerator": "tcg"},
        {"standby": 3},
        {"artifact_dir": Path("/store")},
        {"disk_dir": Path("/disks")},
        {"image_dirs": (Path("/images"),)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_agent_count(options: dict[str, Any]) -> None:
    assert agent_id(**options) != agent_id()


def test_options_of_tests_do_not_count() -> None:
    assert agent_id(guest="micro", cpus=4, memory_mib=1024, boot="cold", keep="always") == agent_id()


def test_the_environment_counts_but_for_what_belongs_to_one_shell_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = agent_id()
    for name in ("PWD", "SHLVL", "PYTEST_XDIST_WORKER", "PROPOLIS_LINGER", "COV_CORE_SOURCE", "SSH_CONNECTION"):
        monkeypatch.setenv(name, "another")
    assert agent_id() == before
    monkeypatch.setenv("https_proxy", "http://proxy")
    assert agent_id() != before


def test_a_directory_of_runs_has_agents_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAME", "environment")
    ids = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch:
            environment = AgentEnvironment.current()
            environment.pin()
            patch.setenv("XDG_RUNTIME_DIR", str(tmp_path / name))
            ids.add(agent_id())
            AgentEnvironment.unpin()
    assert len(ids) == 2


def test_what_is_settled_does_not_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = agent_id()
    AgentEnvironment.current().pin()
    try:
        monkeypatch.setenv("OF_ONE_TEST", "1")
        assert agent_id() == before
    finally:
        AgentEnvironment.unpin()
    assert agent_id() != before


def test_a_worker_takes_the_digest_of_its_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = AgentEnvironment.current()
    monkeypatch.setenv("OF_ONE_WORKER", "gw0")
    worker = AgentEnvironment.current(digest=controller.digest)
    assert worker.digest == controller.digest
    assert worker.variables["OF_ONE_WORKER"] == "gw0"
