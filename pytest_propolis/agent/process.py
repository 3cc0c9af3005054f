"""The agent's process: lock, socket, signals, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.agent_process import LOG_NAME, SOCKET_NAME, AgentConfig, AgentReady
from ..errors import PropolisError
from ..ledger.disk_directories import remove_abandoned_disks
from ..ledger.ledger import LEDGER_NAME, Ledger
from ..ledger.reaper import reap
from ..ledger.rendezvous import Rendezvous, remove_abandoned
from ..operating_system.open_files import raise_open_files_limit
from ..operating_system.python_processes import end_of_imports
from ..storage.eviction import evict
from ..storage.user_directories import template_directory
from .app import AgentApp
from .disks.disk_space import disk_base
from .http_server import http_server

__all__ = ["run_agent"]

FIRST_CLIENT_TIMEOUT_S: Final = 30.0
TEMPLATE_AGE_S: Final = 30 * 86400.0
TEMPLATE_BYTES: Final = 16 << 30

logger = logging.getLogger(__name__)


def run_agent(config: AgentConfig, *, ready_fd: int, parent_death_fd: int | None = None) -> None:
    """Serve until the last client has disconnected. Write one `AgentReady` line to `ready_fd` once it is listening.

    :param parent_death_fd: a pipe whose other end another process holds: the agent exits when that process ends,
        unless a byte was written to the pipe before.
    """
    end_of_imports()
    directory = Path(config.directory)
    os.umask(0o077)
    raise_open_files_limit()
    logging.basicConfig(
        filename=directory / LOG_NAME, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(_live(config, directory, ready_fd, parent_death_fd))


async def _live(config: AgentConfig, directory: Path, ready_fd: int, parent_death_fd: int | None) -> None:
    socket_path = directory / SOCKET_NAME
    disks = disk_base(config)
    disk_directory = str(disks / directory.name)
    with Ledger.open(
        directory / LEDGER_NAME, run=config.run, disk_directory=disk_directory, lingers=config.lingers
    ) as ledger:
        reaping = asyncio.create_task(
            asyncio.to_thread(_clean_up_after_others, directory.parent, template_directory(config.artifact_dir), disks)
        )
        await _serve(config, ledger, socket_path, ready_fd, parent_death_fd)
        await reaping
        Rendezvous(directory.parent, config.run).leave(socket_path)
        if left := ledger.entries():
            logger.error("still there: %s", left)
        else:
            shutil.rmtree(directory)


def _clean_up_after_others(base: Path, templates: Path, disks: Path) -> None:
    """Clean up after killed agents, if that is possible. It blocks, so it runs in a thread of its own."""
    try:
        _reap_dead_runs(base, templates, disks)
    except (OSError, PropolisError):  # this run is unaffected
        logger.exception("what killed agents have left cannot be removed")


def _reap_dead_runs(base: Path, templates: Path, disks: Path) -> None:
    report = reap(base)
    remove_abandoned(base)
    for abandoned in remove_abandoned_disks(disks):
        logger.info("%s is removed: its agent and its ledger are gone", abandoned)
    for evicted in evict(templates, max_age_s=TEMPLATE_AGE_S, max_bytes=TEMPLATE_BYTES, disks=disks):
        logger.info("%s is removed: %s", evicted.path, evicted.reason)
    for failure in report.failed:
        logger.warning("could not be undone: %s", failure)


async def _serve(config: AgentConfig, ledger: Ledger, path: Path, ready_fd: int, parent_death_fd: int | None) -> None:
    leave = asyncio.Event()
    app = AgentApp(config, ledger, on_empty=leave.set)
    server = http_server(app.asgi)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, leave.set)
    loop.add_signal_handler(signal.SIGUSR1, _log_tasks)
    if parent_death_fd is not None:
        loop.add_reader(parent_death_fd, _read_parent_death_pipe, loop, parent_death_fd, leave)
    with _listening(path) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        # In this order whatever happens: asyncio's own end cancels everything at once, and may then wait forever for a
        # process that was just being started.
        try:
            if not _report_ready(ready_fd, path):
                leave.set()
            loop.call_later(FIRST_CLIENT_TIMEOUT_S, lambda: leave.set() if app.is_unused else None)
            await leave.wait()
        finally:
            # No client may connect to an agent that is about to exit.
            path.unlink(missing_ok=True)
            await app.close()
            server.should_exit = True
            await serving


def _read_parent_death_pipe(loop: asyncio.AbstractEventLoop, parent_death_fd: int, leave: asyncio.Event) -> None:
    loop.remove_reader(parent_death_fd)
    if not os.read(parent_death_fd, 1):
        leave.set()


def _report_ready(ready_fd: int, path: Path) -> bool:
    """Report readiness to the launcher; return False if it has exited. No other process knows of this agent yet."""
    try:
        os.write(ready_fd, msgspec.json.encode(AgentReady(pid=os.getpid(), socket=str(path))) + b"\n")
    except BrokenPipeError:
        return False
    finally:
        os.close(ready_fd)
    return True


def _log_tasks() -> None:
    """Handle SIGUSR1: log what each task is waiting for."""
    for task in asyncio.all_tasks():
        text = io.StringIO()
        task.print_stack(file=text)
        logger.info("%s", text.getvalue())


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        yield listener
    path.unlink(missing_ok=True)
