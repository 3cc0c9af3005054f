"""The watchdog: starts the agent of a run on its host, and ends it when the connection is lost.

It runs there in the place of the loader, at the end of an SSH session. It echoes each heartbeat of the link process.

It counts iterations of its loop and uses no clock, so that time in which the process did not run does not count.
Modules needed only at the end are imported then, so as not to delay the agent's start.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from ...errors import AgentError, HostError, PropolisError
from ..known_directories import note_base_directory
from ..run_directory import agent_directory, make_private_directory
from .loader import FILES, GOODBYE

__all__ = ["supervise"]

TICK_S: Final = 0.5
START_TIMEOUT_S: Final = 30.0
LEAVE_TIMEOUT_S: Final = 15.0
LOG_LINES: Final = 15
STDIN: Final = 0
STDOUT: Final = 1

START: Final = """
import gc, runpy, sys
gc.disable()
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("pytest_propolis.agent", run_name="__main__", alter_sys=True)
"""

Send = Callable[[dict[str, Any]], None]


def supervise(order: dict[str, Any], *, bundle: str, bundle_lock: int | None, send: Send) -> None:
    """Start an agent, report that it is ready, and supervise it until it has ended.

    :param order: what the link process wants: ``agent`` (fields of `AgentConfig`), ``log_name``, ``silence_s``,
        ``grace_s``.
    :param bundle: the directory that this project was unpacked into.
    :param bundle_lock: the descriptor that keeps it there, for the agent to inherit.
    :param send: sends a message to the link process.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    try:
        agent = _Agent.start(order["agent"], bundle, bundle_lock, log_name=order["log_name"])
    except PropolisError as error:
        return send({"error": error.message, "hint": error.hint})
    except OSError as error:
        return send({"error": f"its agent cannot be started: {error}"})
    if (ready := agent.ready()) is None:
        status = agent.end(order["grace_s"])
        return send({"error": f"its agent did not start (status {status})", "log": agent.log})
    send({"ready": {**ready, "version": version("pytest-propolis")}})
    reason = agent.watch(order["silence_s"])
    status = agent.release() if reason == "goodbye" else agent.end(order["grace_s"])
    with contextlib.suppress(OSError):  # there may be no other side any more
        send({"ended": status, "why": reason, "log": agent.log})
    return None


class _Agent:
    """The agent's process, its parent-death pipe, and the pipe on which it reports readiness."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, *, ready_fd: int, parent_death_fd: int) -> None:
        self._process = process
        self._log = log
        self._socket: Path | None = None
        self._pidfd = os.pidfd_open(process.pid)
        self._ready_fd = ready_fd
        self._parent_death_fd = parent_death_fd
        self.log: list[str] = []
        """Return the end of the log of an agent that failed."""

    @classmethod
    def start(cls, config: dict[str, Any], bundle: str, bundle_lock: int | None, *, log_name: str) -> _Agent:
        """
        :raises HostError: when its directory cannot be made.
        """
        directory = _make_directory(config["run"])
        ready_fd, agent_ready_fd = os.pipe()
        # Not inherited: it closes when this process ends for any reason, and the agent exits then.
        agent_parent_death_fd, parent_death_fd = os.pipe()
        log = os.open(directory / log_name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # The prepared image of a guest is an overlay on one that the run has sent.
        config = {**config, "directory": str(directory), "image_dirs": [str(Path(bundle).parent.parent / FILES)]}
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                START,
                bundle,
                json.dumps(config),
                str(agent_ready_fd),
                str(agent_parent_death_fd),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[agent_ready_fd, agent_parent_death_fd, *([] if bundle_lock is None else [bundle_lock])],
            start_new_session=True,
            cwd="/",
        )
        for descriptor in (agent_ready_fd, agent_parent_death_fd, log):
            os.close(descriptor)
        return cls(process, directory / log_name, ready_fd=ready_fd, parent_death_fd=parent_death_fd)

    def ready(self) -> dict[str, Any] | None:
        """Wait until the agent listens; return None if it exits before, takes too long or is no longer wanted."""
        readable, _, _ = select.select([self._ready_fd, STDIN], [], [], START_TIMEOUT_S)
        if self._ready_fd not in readable:
            return None
        line = os.read(self._ready_fd, 4096)
        if not line:
            return None
        ready: dict[str, Any] = json.loads(line)
        self._socket = Path(ready["socket"])
        return ready

    def watch(self, silence_s: float) -> str:
        """Echo heartbeats until there is a reason to stop; return it."""
        quiet_s = 0.0
        while quiet_s < silence_s:
            readable, _, _ = select.select([STDIN, self._pidfd], [], [], TICK_S)
            if self._pidfd in readable:
                return "agent"
            if STDIN not in readable:
                quiet_s += TICK_S
                continue
            quiet_s = 0.0
            heartbeats = os.read(STDIN, 4096)
            if GOODBYE in heartbeats:
                return "goodbye"
            if not heartbeats or not _write(heartbeats):
                return "the connection ended"
        return f"nothing was heard for {silence_s:.0f} s"

    def release(self) -> int:
        """Let an agent without clients exit, or stay if it keeps VMs; return its status, 0 if it stays."""
        if self._keeps():
            os.write(self._parent_death_fd, b".")
            return 0
        return self.end(LEAVE_TIMEOUT_S)

    def _keeps(self) -> bool:
        from ..agent_clients.synchronous import AgentClient

        assert self._socket is not None
        try:
            return bool(AgentClient(self._socket).kept())
        except AgentError:
            return False  # it leaves already

    def end(self, grace_s: float) -> int:
        """End the agent, orderly if possible, and clean up what it leaves; return its status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if status != 0:
            with contextlib.suppress(OSError):
                self.log = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            from ...ledger.ledger import LEDGER_NAME
            from ...ledger.reaper import reap

            directory = self._log.parent
            reap(directory.parent)
            if not (directory / LEDGER_NAME).exists():  # it ended before it could own anything
                shutil.rmtree(directory, ignore_errors=True)
        return status


def _make_directory(run: str) -> Path:
    # `XDG_RUNTIME_DIR` goes when this session is the user's last, and what is kept must stay.
    runtime = os.environ.pop("XDG_RUNTIME_DIR", None)
    try:
        return _make_private(run)
    except HostError:
        if runtime is None:
            raise
        os.environ["XDG_RUNTIME_DIR"] = runtime
        return _make_private(run)


def _make_private(run: str) -> Path:
    directory = agent_directory(run)
    make_private_directory(directory.parent)
    note_base_directory(directory.parent)
    make_private_directory(directory)
    return directory


def _write(heartbeats: bytes) -> bool:
    try:
        os.write(STDOUT, heartbeats)
    except OSError:
        return False
    return True
