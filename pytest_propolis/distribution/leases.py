"""Leases of hosts: runs that are given the same directory take turns at the hosts that they share.

A lease is a lock on a file, which the kernel releases when its process ends, however it ends. Beside it lies what tells
people which run has it. The files stay: one that is removed could be locked by two runs.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
from filelock import FileLock, Timeout

from ..hosts.host import HostSpec
from ..hosts.inventory.inventory import read_inventory
from ..hosts.local import THIS_MACHINE
from ..session.progress import line_printer
from ..session.stash import SETTINGS

__all__ = ["HostLeases"]

LOOK_S: Final = 1.0
"""How often a run that waits looks which run has the host now."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has a host.

    :param since: since when, in s since the epoch.
    """

    pid: int
    user: str
    directory: str
    since: float

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"the run of {self.user} in {self.directory} (pid {self.pid}), which has it since {since}"


class HostLeases:
    """A plugin of the process that has the terminal: takes the run's hosts before workers start.

    All hosts are taken in the same order by all runs, so that no two runs wait for each other.

    :param directory: of the leases; it is made.
    """

    def __init__(self, config: pytest.Config, directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._taken = contextlib.ExitStack()
        config.add_cleanup(self._taken.close)  # after the check of what the run has left behind

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        hosts = self._config.stash[SETTINGS].hosts
        specs = (THIS_MACHINE,) if hosts is None else read_inventory(hosts)
        say = line_printer(self._config)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for name in _names(specs):
                self._taken.enter_context(_lease(self._directory / f"{name}.lock", name, say, self._me()))
        except OSError as error:
            raise pytest.UsageError(f"--propolis-leases {self._directory}: {error.strerror or error}") from None

    def _me(self) -> Holder:
        return Holder(
            pid=os.getpid(), user=_user(), directory=str(self._config.invocation_params.dir), since=time.time()
        )


@contextlib.contextmanager
def _lease(path: Path, host: str, say: Callable[[str], None], me: Holder) -> Iterator[None]:
    lock, note = FileLock(path, mode=0o666, thread_local=False), path.with_suffix(".json")
    told: Holder | None = None
    waited = False
    while True:
        try:
            lock.acquire(timeout=LOOK_S if waited else 0)
            break
        except Timeout:
            holder = _holder(note)
            if not waited or holder != told:
                say(f"propolis: waiting for host {host}: {holder or 'another run has it'}")
            waited, told = True, holder
    try:
        note.write_bytes(msgspec.json.encode(me))
        if waited:
            say(f"propolis: host {host} is free now")
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> Holder | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):  # it is about to write it, or has just ended
        return None


def _names(specs: Iterable[HostSpec]) -> list[str]:
    """Return what hosts are leased as, in order: by address, since inventories may name them differently."""
    named = ("this-machine" if spec.kind == "local" else f"{spec.kind}-{spec.address}" for spec in specs)
    return sorted({re.sub(r"[^\w.@-]+", "_", name) for name in named})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in a container
        return str(os.getuid())
