"""Jobs of several programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from directory_tree import paths_below
from etcd_rig import etcd_cluster, require_etcd
from propolis_command import COMMAND, propolis

from pytest_propolis.coordination.backends.address import connect_store

PROGRAM = shlex.join(COMMAND)
END_TIMEOUT_S = 30.0


@pytest.fixture(autouse=True)
def own_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short one: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield


def job(path: Path, **commands: str) -> Path:
    file = path / "job.toml"
    file.write_text("".join(f"[[node]]\nname = '{name}'\ncommand = '''{text}'''\n" for name, text in commands.items()))
    return file


def test_programs_of_a_job_meet_and_their_output_is_in_one_log(tmp_path: Path) -> None:
    file = job(
        tmp_path,
        server=f"{PROGRAM} kv put port 80; {PROGRAM} barrier ready 2 >/dev/null; echo served",
        client=f"{PROGRAM} barrier ready 2 >/dev/null; {PROGRAM} kv get port",
    )
    output = propolis("job", str(file))
    times = [float(line.split()[0]) for line in output.splitlines()]
    assert times == sorted(times)
    assert {"server: served", "client: 80"} <= texts(output)


def test_a_program_that_fails_ends_the_job_with_its_status(tmp_path: Path) -> None:
    output = propolis("job", str(job(tmp_path, waits="sleep 1000", fails="echo the reason; exit 7")), status=7)
    assert "fails: the reason" in output
    assert "waits: propolis: node 'fails' has failed: /bin/sh ended with status 7" in output


def write(path: Path, *nodes: dict[str, Any]) -> str:
    """Write a job of these tables; return the path of the file."""
    tables = ("".join(f"{key} = {json.dumps(value)}\n" for key, value in node.items()) for node in nodes)
    file = path / "job.toml"
    file.write_text("".join(f"[[node]]\n{table}" for table in tables))
    return str(file)


def texts(output: str) -> set[str]:
    """The lines of a job, without their times."""
    return {line.split(maxsplit=1)[1] for line in output.splitlines()}


def marked(mark: str) -> list[int]:
    """The processes that have a text in their command lines, apart from jobs and this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "cmdline").read_text() and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that still runs when a test fails, which would wait for it."""
    try:
        yield
    finally:
        process.kill()


def wait_until(is_so: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, what()
        select.select([], [], [], 0.02)


def wait_until_ended(mark: str) -> None:
    wait_until(lambda: not marked(mark), lambda: marked(mark))


def test_programs_run_on_the_hosts_that_they_name(tmp_path: Path) -> None:
    say = "propolis barrier ready 3 >/dev/null; echo $PROPOLIS_NODE under $PPID in $(pwd)"
    file = write(
        tmp_path,
        {"name": "all", "host": ["local-1", "local-2"], "command": say},
        {"name": "one", "host": "local-2", "command": say},
    )
    output = propolis("job", "--propolis-hosts", "local:2", file)
    found = re.findall(r" (\S+): \1 under (\d+) in (\S+)", output)
    agents = {name: agent for name, agent, _ in found}
    assert set(agents) == {"all-local-1", "all-local-2", "one"}, output
    assert agents["all-local-2"] == agents["one"] != agents["all-local-1"]
    assert {directory for *_, directory in found} == {str(tmp_path)}


def test_what_a_program_has_started_ends_with_it(tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    leaves = f"setsid sh -c 'sleep 1000; : {mark}' & python3 -c {shlex.quote(DAEMON)} {mark}; echo done as $$"
    output = propolis("job", write(tmp_path, {"name": "a", "command": f"propolis ps; {leaves}"}))
    (own,) = re.findall(r"a: done as (\d+)", output)
    listed = [line for line in output.splitlines() if line.endswith(f"process     pid {own}, program 'a'")]
    assert len(listed) == 1, output
    assert marked(mark) == []


DAEMON = """
import subprocess, sys
subprocess.Popen(["sh", "-c", "sleep 1000; : " + sys.argv[1]], start_new_session=True)
"""


def test_a_program_may_end_in_an_orderly_way_when_another_one_fails(tmp_path: Path) -> None:
    waits = "trap 'echo put away; exit 0' TERM; echo up; propolis kv put up 1; while :; do sleep 0.05; done"
    fails = "propolis kv wait up; exit 3"
    output = propolis("job", str(job(tmp_path, waits=waits, fails=fails)), status=3)
    assert "waits: put away" in output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_programs_end_with_their_job(tmp_path: Path, number: signal.Signals) -> None:
    mark = secrets.token_hex(8)
    command = f"setsid sh -c 'sleep 1000; : {mark}' & echo up; sleep 1000; : {mark}"
    file = write(
        tmp_path, *({"name": f"on-{host}", "host": host, "command": command} for host in ("local-1", "local-2"))
    )
    running = subprocess.Popen(
        [*COMMAND, "job", "--propolis-hosts", "local:2", file],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    with running, killed_at_the_end(running):
        lines = [running.stdout.readline() for _ in range(2)]
        assert all(line.endswith(": up\n") for line in lines), lines
        wait_until(lambda: len(marked(mark)) == 4, lambda: marked(mark))
        running.send_signal(number)
        running.communicate(timeout=END_TIMEOUT_S)
        wait_until_ended(mark)
    assert running.returncode == (-number if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + END_TIMEOUT_S
    while left := [path for path in paths_below(Path(os.environ["XDG_RUNTIME_DIR"])) if path.name == "agent.sock"]:
        assert time.monotonic() < deadline, left
        select.select([], [], [], 0.02)


def test_a_job_may_coordinate_in_etcd(tmp_path: Path) -> None:
    require_etcd()
    file = write(
        tmp_path,
        {"name": "all", "host": ["local-1", "local-2"], "command": "propolis barrier ready 3"},
        {"name": "here", "command": "propolis barrier ready 3 --json; propolis kv put a b; propolis kv get a"},
    )

    async def run() -> tuple[str, list[str]]:
        async with etcd_cluster(1) as cluster:
            store = f"etcd://{cluster.hosts}"
            words = ("job", "--propolis-hosts", "local:2", "--propolis-coordination", store, file)
            output = await asyncio.to_thread(propolis, *words)
            async with contextlib.aclosing(await connect_store(store)) as backend:
                return output, list(await backend.read(""))

    output, left = asyncio.run(run())
    assert {"all-local-1: 1", "all-local-2: 1", "here: b"} <= texts(output)
    assert left == []


def test_the_end_of_an_agent_ends_its_programs(tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    kills = f"setsid sh -c 'sleep 1000; : {mark}' & propolis barrier up 2; kill -9 $PPID; sleep 1000; : {mark}"
    file = write(
        tmp_path,
        {"name": "a", "host": "local-1", "command": "propolis barrier up 2; sleep 1000"},
        {"name": "b", "host": "local-2", "command": kills},
    )
    output = propolis("job", "--propolis-hosts", "local:2", file, status=1)
    assert "b: propolis: host local-2: its agent ended while it ran a program" in output
    assert "a: propolis: node 'b' has failed: host local-2: its agent ended" in output
    assert "the agent left something behind" in output
    propolis("gc")
    wait_until_ended(mark)


def test_a_job_goes_on_when_its_output_is_no_longer_read(tmp_path: Path) -> None:
    command = f"echo first; while [ ! -e {tmp_path}/closed ]; do sleep 0.02; done; echo second; echo third; exit 7"
    file = write(tmp_path, {"name": "a", "command": command})
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "job", file], stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().endswith("a: first\n")
        running.stdout.close()
        (tmp_path / "closed").touch()
        errors = running.stderr.read()
    assert (running.returncode, errors) == (7, "")


def test_a_host_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, {"name": "a", "command": "true", "host": "b"})
    assert "node 'a': there is no host 'b'" in propolis("job", file, status=1)
    wanted = write(tmp_path, {"name": "a", "command": "true", "directory": "none"})
    assert f"a program cannot be run in {tmp_path}/none: No such file" in propolis("job", wanted, status=5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing required field `node`"),
        ("[[node]]\nname = 'a'", "missing required field `command`"),
        ("[[node]]\nname = 'a'\ncommand = 'b'\ncolour = 1", "unknown field `colour`"),
        ("[[node]]\nname = 'a'\ncommand = 'b'\n[[node]]\nname = 'a'\ncommand = 'c'", "has two nodes 'a'"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    assert reason in propolis("job", str(tmp_path / "job.toml"), status=1)
