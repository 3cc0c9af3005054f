"""The status of a run while it runs: `--propolis-status`, and `propolis top`."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any

import pytest
from inner_run import InnerRun
from propolis_command import COMMAND, propolis

LOOKING = """
import json, subprocess, sys

import pytest

COMMAND = (sys.executable, "-c", "from pytest_propolis.cli import main; main()", "top")

@pytest.mark.parametrize("number", range(4))
async def test_looks(test_vm, number, tmp_path):
    top = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, check=True)
    with open(f"seen-{number}.json", "w") as file:
        file.write(top.stdout)

def test_other():
    pass
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def seen(inner: InnerRun) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in inner.pytester.path.glob("seen-*.json")]
    assert len(texts) == 4
    return [json.loads(text) for text in texts if text]


def test_the_status_of_a_spread_run_tells_hosts_slots_and_what_runs_where(inner: InnerRun) -> None:
    inner.write(test_it=LOOKING)
    inner.run("--propolis-hosts", "local:2", "-n", "3", "--propolis-status", "status.jsonl").assert_outcomes(passed=5)
    *during, last = lines(inner.pytester.path / "status.jsonl")
    assert [status["state"] for status in (*during, last)] == ["running"] * len(during) + ["ended"]
    assert (last["tests"], last["finished"], last["failed"], last["forks"]) == (5, 5, 0, 4)
    assert last["running"] == last["waiting"] == []
    assert {host["name"]: host["used"] for host in last["hosts"]} == {"local-1": 0, "local-2": 0}
    live = seen(inner)
    running = {test["test"]: test for status in (*during, *live) for test in status["running"]}
    placed = [test for test in running.values() if test["hosts"]]
    assert placed
    assert {test["worker"] for test in placed} <= {"gw0", "gw1", "gw2"}
    for status in live:
        for test in status["running"]:
            for name in test["hosts"]:
                (host,) = [host for host in status["hosts"] if host["name"] == name]
                assert host["used"] >= 1
    assert inner.leavings() == []
    assert not (inner.runtime / "propolis-status").exists()


def test_the_status_of_a_run_without_workers_is_seen_too(inner: InnerRun) -> None:
    inner.write(test_it=LOOKING)
    inner.run().assert_outcomes(passed=5)
    live = seen(inner)
    assert [status["tests"] for status in live] == [5] * len(live)
    assert any(test["test"].startswith("test_it.py::test_looks") for status in live for test in status["running"])
    assert "no run of this user is running here" in propolis("top")


def test_a_run_without_vms_publishes_nothing(inner: InnerRun) -> None:
    inner.write(test_it="def test_it():\n    pass\n")
    inner.run().assert_outcomes(passed=1)
    assert not (inner.runtime / "propolis-status").exists()


def test_the_status_of_a_killed_run_is_not_shown(inner: InnerRun) -> None:
    inner.write(test_it="import os\ndef test_it(propolis):\n    os.kill(os.getpid(), 9)\n")
    inner.run()
    assert list((inner.runtime / "propolis-status").iterdir())
    assert "no run of this user is running here" in propolis("top")


def test_a_file_that_cannot_be_written_ends_the_run_before_its_tests(inner: InnerRun) -> None:
    inner.write(test_it="def test_it():\n    pass\n")
    result = inner.run("--propolis-status", "/nowhere/status.jsonl")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--propolis-status /nowhere/status.jsonl cannot be written: No such file*"])


def test_top_fills_a_terminal_until_q_is_pressed(inner: InnerRun) -> None:
    leader, follower = os.openpty()
    with subprocess.Popen([*COMMAND, "top"], stdin=follower, stdout=follower) as process:
        os.close(follower)
        shown = b""
        while b"no run of this user" not in shown:
            assert select.select([leader], [], [], 30)[0], shown
            shown += os.read(leader, 4096)
        os.write(leader, b"q")
        assert process.wait(60) == 0
    os.close(leader)
    assert shown.startswith(b"\x1b[?1049h")
