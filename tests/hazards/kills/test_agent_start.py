"""An agent that does not come up, or goes at the worst moment, costs an error and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from pytest_propolis.agent_api.agent_process import AgentConfig
from pytest_propolis.errors import AgentError
from pytest_propolis.hosts import launcher
from pytest_propolis.hosts.launcher import Launched, connect_or_launch
from pytest_propolis.hosts.lifeline import AgentNotRunning, Lifeline
from pytest_propolis.ledger.rendezvous import Rendezvous, remove_abandoned

HANGS = "import sys, time; sys.stderr.write('stuck on the way\\n'); sys.stderr.flush(); time.sleep(600)"
FAILS = "raise SystemExit('no such thing as a start')"
LEAVES = """
import json, os, sys
config = json.loads(sys.argv[1])
answer = {"pid": os.getpid(), "socket": config["directory"] + "/agent.sock"}
os.write(int(sys.argv[2]), json.dumps(answer).encode() + b"\\n")
"""

START_TIMEOUT_S = 60


@pytest.fixture
def base() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="a-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def config(base: Path) -> AgentConfig:
    return AgentConfig(run="0123456789abcdef", directory=str(base / f"run-{secrets.token_hex(4)}"))


def interpreter(place: Path, program: str) -> str:
    """Return an interpreter that runs this program in place of any other, with the agent's arguments."""
    script = place / "interpreter"
    (place / "program.py").write_text(program)
    script.write_text(f'#!/bin/sh\nshift 5\nexec {shlex.quote(sys.executable)} {place}/program.py "$@"\n')
    script.chmod(0o700)
    return str(script)


def processes_of(base: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(base).encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # gone meanwhile
            continue
    return found


@pytest.mark.parametrize(
    ("program", "message"),
    [(HANGS, "stuck on the way"), (FAILS, "no such thing as a start"), (LEAVES, "left before it could be used")],
    ids=["hangs", "fails", "leaves"],
)
async def test_an_agent_that_does_not_come_up_leaves_nothing(
    program: str, message: str, base: Path, config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, program))
    monkeypatch.setattr(launcher, "START_TIMEOUT_S", 2.0)
    with pytest.raises(AgentError, match=message):
        await connect_or_launch(config, client="c")
    assert list(base.iterdir()) == []
    assert processes_of(base) == []


async def test_a_cancelled_start_leaves_nothing(
    base: Path, config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, HANGS))
    starting = asyncio.create_task(connect_or_launch(config, client="c"))
    async with asyncio.timeout(30):
        while not processes_of(base):
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert list(base.iterdir()) == []
    assert processes_of(base) == []


async def test_a_client_that_goes_away_in_the_middle_of_the_handshake_is_not_missed(
    base: Path, config: AgentConfig
) -> None:
    launched = await connect_or_launch(config, client="stays")
    for sent in (
        b"",
        b"GET /lifeline/ HT",
        b"GET /lifeline/ HTTP/1.1\r\nHost: agent\r\nx-propolis-client: goes\r\n\r\n",
    ):
        _, writer = await asyncio.open_unix_connection(str(launched.socket))
        writer.write(sent)
        writer.transport.abort()
    other = await Lifeline.open(launched.socket, client="other")
    other.close()
    launched.lifeline.close()
    async with asyncio.timeout(30):
        while list(base.iterdir()):
            await asyncio.sleep(0.05)


async def test_an_agent_that_is_killed_in_the_middle_of_the_handshake_is_no_agent(base: Path) -> None:
    path, before = base / "agent.sock", set(Lifeline.all_open())

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        await writer.drain()
        writer.transport.abort()

    async with await asyncio.start_unix_server(dies, path):
        with pytest.raises(AgentNotRunning):
            await Lifeline.open(path, client="c")
    assert set(Lifeline.all_open()) == before


@pytest.fixture
async def launched(config: AgentConfig, base: Path) -> AsyncIterator[Launched]:
    """An agent, which has left in the end."""
    launched = await connect_or_launch(config, client="c")
    yield launched
    launched.lifeline.close()
    assert launched.wait_until_left(START_TIMEOUT_S)
    assert list(base.iterdir()) == []


async def test_an_agent_is_no_descendant_of_the_process_that_started_it(launched: Launched) -> None:
    assert launched.agent
    assert launched.agent.pid not in descendants(os.getpid())


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child, *descendants(child)}
    return found


async def test_neither_coverage_nor_a_debugger_follows_an_agent(
    base: Path, config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "COV_CORE_SOURCE", "PYDEVD_USE_CYTHON"):
        monkeypatch.setenv(name, "followed")
    launched = await connect_or_launch(config, client="c")
    assert launched.agent
    environment = Path(f"/proc/{launched.agent.pid}/environ").read_bytes()
    launched.lifeline.close()
    assert launched.wait_until_left(START_TIMEOUT_S)
    assert b"followed" not in environment


@pytest.mark.parametrize("module", ["logging", "uvicorn"])
async def test_a_test_modules_name_does_not_replace_a_module_of_the_agents(
    module: str, base: Path, config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text("raise SystemExit('a module of the tests')")
    monkeypatch.syspath_prepend(tmp_path)
    launched = await connect_or_launch(config, client="c")
    launched.lifeline.close()
    assert launched.wait_until_left(START_TIMEOUT_S)


async def test_an_agent_whose_starter_has_died_leaves_at_once(config: AgentConfig, base: Path) -> None:
    Path(config.directory).mkdir(mode=0o700)
    ours, theirs = socket.socketpair()
    ours.close()
    arguments = [msgspec.json.encode(config).decode(), str(theirs.fileno())]
    with theirs:
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest_propolis.agent", *arguments), pass_fds=[theirs.fileno()], cwd="/"
        )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            assert await agent.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            agent.kill()
    assert list(base.iterdir()) == []


async def test_whoever_is_killed_while_starting_an_agent_leaves_no_rendezvous(base: Path) -> None:
    place = Rendezvous(base, "run")
    holder = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom pytest_propolis.ledger.rendezvous import Rendezvous\n"
        "async def hold():\n    async with Rendezvous(Path(sys.argv[1]), 'run').hold():\n"
        "        print('held', flush=True)\n        await asyncio.sleep(600)\nasyncio.run(hold())\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(base)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        assert remove_abandoned(base) == [], "somebody is about to start an agent"
        process.send_signal(signal.SIGKILL)
    assert place.path.exists()
    assert remove_abandoned(base) == [place.path]
    assert list(base.iterdir()) == []


async def test_a_rendezvous_that_is_held_is_not_removed(base: Path) -> None:
    place = Rendezvous(base, "run")
    place.path.touch()
    descriptor = os.open(place.path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert remove_abandoned(base) == []
    os.close(descriptor)
    assert remove_abandoned(base) == [place.path]
