"""Jobs with programs on hosts that only SSH reaches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_rig import enable_users, etcd_cluster, require_etcd
from propolis_command import COMMAND, propolis
from ssh_rig import SshRig, inventory_of, link_processes, require_rigs, ssh_rig
from tls_files import make_certificate

TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def own_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short one: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2") as made:
        yield made


@pytest.fixture
def hosts(rig: SshRig, tmp_path: Path) -> Path:
    path = tmp_path / "hosts.toml"
    path.write_text(inventory_of(rig))
    return path


def write(path: Path, *nodes: dict[str, Any]) -> str:
    tables = ("".join(f"{key} = {json.dumps(value)}\n" for key, value in node.items()) for node in nodes)
    file = path / "job.toml"
    file.write_text("".join(f"[[node]]\n{table}" for table in tables))
    return str(file)


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that still runs when a test fails, which would wait for it."""
    try:
        yield
    finally:
        process.kill()


def wait_until(is_so: Callable[[], object], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, what()
        select.select([], [], [], 0.05)


def test_programs_of_two_hosts_and_of_this_machine_meet(rig: SshRig, hosts: Path, tmp_path: Path) -> None:
    far = "propolis kv put from-$(hostname) $(pwd); propolis barrier ready 3; propolis node list | cut -f1 | tr '\\n' ,"
    near = "propolis barrier ready 3; propolis kv list; test -d $(propolis kv get from-h1) || echo elsewhere"
    file = write(
        tmp_path,
        {"name": "far", "host": ["h1", "h2"], "command": f"{far}; echo; pwd"},
        {"name": "near", "command": near},
    )
    output = propolis("job", "--propolis-hosts", str(hosts), file)
    lines = [line.split(maxsplit=1) for line in output.splitlines()]
    assert [float(at) for at, _ in lines] == sorted(float(at) for at, _ in lines)
    told = {text for _, text in lines}
    assert {"far-h1: 1", "far-h2: 1", "near: 1", "near: from-h1", "near: from-h2", "near: elsewhere"} <= told, output
    for host in rig.hosts.values():
        assert host.processes() == {} or not host.find("pytest_propolis"), host.processes()
        assert host.run("find", "/run", "/tmp", "/var/tmp", "-name", "program-*") == ""


def test_a_program_that_fails_on_one_host_ends_those_of_others(rig: SshRig, hosts: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"name": "a", "host": "h1", "command": "trap 'echo put away; exit 1' TERM; propolis barrier up 2; sleep 1000"},
        {"name": "b", "host": "h2", "command": "propolis barrier up 2; echo the reason; exit 7"},
    )
    output = propolis("job", "--propolis-hosts", str(hosts), file, status=7)
    assert "a: put away" in output
    assert "node 'b' has failed: /bin/sh ended with status 7" in output
    assert "    | the reason" in output
    assert not rig.hosts["h1"].find("sleep 1000")


@pytest.mark.parametrize("is_secure", [False, True])
def test_the_secret_of_a_served_store_is_in_no_command_line(
    rig: SshRig, hosts: Path, tmp_path: Path, is_secure: bool
) -> None:
    chain, key = map(str, make_certificate(tmp_path))
    options = ("--certificate", chain, "--key", key, "--ca", chain) if is_secure else ()
    serving = subprocess.Popen([*COMMAND, "node", "serve", "--json", *options], stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    with serving:
        group = json.loads(serving.stdout.readline())["group"]
        store = group.rpartition("#")[0]
        token = store.partition("://")[2].partition("@")[0]
        command = "propolis kv put a b; ps axo args >/proc/$$/fd/1; propolis barrier ready 2; propolis kv get a"
        file = write(
            tmp_path,
            {"name": "far", "host": "h1", "command": command},
            {"name": "near", "command": "propolis barrier ready 2"},
        )
        output = propolis("job", "--propolis-hosts", str(hosts), "--propolis-coordination", store, file)
        serving.terminate()
    assert "far: b" in output
    assert "pytest_propolis" in output
    assert token not in output


def test_a_job_that_is_killed_leaves_nothing_on_a_host(rig: SshRig, hosts: Path, tmp_path: Path) -> None:
    command = "setsid sleep 1111 & echo up; sleep 1000"
    file = write(tmp_path, {"name": "a", "host": "h1", "command": command})
    running = subprocess.Popen(
        [*COMMAND, "job", "--propolis-hosts", str(hosts), file], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    with running, killed_at_the_end(running):
        assert running.stdout.readline().endswith(" a: up\n")
        host = rig.hosts["h1"]
        wait_until(lambda: host.find("sleep 1000") and host.find("sleep 1111"), host.processes)
        running.kill()
        running.communicate(timeout=TIMEOUT_S)
    wait_until(lambda: not host.find("sleep 1"), host.processes)
    wait_until(lambda: not host.find("pytest_propolis") and not link_processes(), host.processes)
    assert "agent.sock" not in host.run("find", "/run", "/tmp", "/var/tmp", "-name", "*.sock")


@pytest.mark.slow
def test_a_host_that_is_lost_fails_the_job(rig: SshRig, hosts: Path, tmp_path: Path) -> None:
    hosts.write_text(inventory_of(rig, silence_s=2))
    file = write(
        tmp_path,
        {"name": "a", "host": "h1", "command": "echo up; sleep 1000"},
        {"name": "b", "host": "h2", "command": "sleep 1000"},
    )
    running = subprocess.Popen(
        [*COMMAND, "job", "--propolis-hosts", str(hosts), file], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    with running, killed_at_the_end(running):
        assert running.stdout.readline().endswith(" a: up\n")
        rig.cut("h1")
        output, _ = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 5
    assert "a: propolis: host h1" in output
    assert "b: propolis: node 'a' has failed: host h1" in output
    wait_until(lambda: not rig.hosts["h1"].find("sleep 1000"), rig.hosts["h1"].processes)
    assert not rig.hosts["h2"].find("sleep 1000")


def test_relative_directories_are_for_this_machine(hosts: Path, tmp_path: Path) -> None:
    file = write(tmp_path, {"name": "a", "host": "h1", "command": "true", "directory": "here"})
    output = propolis("job", "--propolis-hosts", str(hosts), file, status=1)
    assert "node 'a' on host 'h1': its directory must be an absolute path there" in output
    file = write(tmp_path, {"name": "a", "host": "h1", "command": "pwd; id -u", "directory": "/"})
    output = propolis("job", "--propolis-hosts", str(hosts), file)
    assert "a: /\n" in output
    assert f"a: {os.geteuid()}\n" in output


def test_a_program_gets_its_files(rig: SshRig, hosts: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/check").write_text("#!/bin/sh\nread line <input; echo checked $line; rm input\n")
    (tmp_path / "bin/check").chmod(0o755)
    (tmp_path / "input").write_text("content\n")
    node = {"name": "a", "host": "h1", "command": "bin/check", "files": ["bin/check", "input"]}
    for _ in range(2):
        assert "a: checked content" in propolis("job", "--propolis-hosts", str(hosts), write(tmp_path, node))
    for key, value, reason in (
        ("files", ["../x"], "'../x' is not below the directory of the job's file"),
        ("files", ["none"], "none: No such file or directory"),
        ("directory", "/", "give files or directory, not both"),
    ):
        file = write(tmp_path, {**node, key: value})
        output = propolis("job", "--propolis-hosts", str(hosts), file, status=1)
        assert reason in output


def test_a_store_of_this_machine_is_forwarded_to_hosts(rig: SshRig, hosts: Path, tmp_path: Path) -> None:
    """Of three members; and one with TLS and users, named localhost, with the password in a file of this machine."""
    require_etcd()
    chain, key = make_certificate(tmp_path)
    (tmp_path / "password").write_text("p@ss:word/\n")
    file = write(
        tmp_path,
        {"name": "far", "host": ["h1", "h2"], "command": "propolis barrier ready 3; propolis kv put $PROPOLIS_NODE 1"},
        {"name": "near", "command": "propolis barrier ready 3; propolis kv wait far-h1; propolis kv wait far-h2"},
    )

    async def run(store: str) -> str:
        words = ("job", "--propolis-hosts", str(hosts), "--propolis-coordination", store, file)
        return await asyncio.to_thread(propolis, *words)

    async def open_one() -> str:
        async with etcd_cluster(3) as cluster:
            return await run(f"etcd://{cluster.hosts}")

    async def closed_one() -> str:
        flags = ("--cert-file", str(chain), "--key-file", str(key), "--bcrypt-cost", "4")
        async with etcd_cluster(1, *flags, scheme="https") as cluster:
            member = cluster.hosts.replace("127.0.0.1", "localhost")
            await enable_users(f"etcds://{member}?ca={chain}", "ci", "p@ss:word/", prefix="lab")
            return await run(f"etcds://{member}/lab?ca={chain}&user=ci&password_file={tmp_path / 'password'}")

    for store in (open_one, closed_one):
        output = asyncio.run(store())
        assert output.count(" 1\n") == 5, output
