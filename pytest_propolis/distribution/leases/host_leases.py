"""The plugin that takes leases of a run's hosts before its workers start."""

from __future__ import annotations

import getpass
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from ...errors import PropolisError
from ...hosts.host import HostSpec
from ...hosts.inventory.inventory import read_inventory
from ...hosts.kinds import is_elsewhere
from ...hosts.local import THIS_MACHINE
from ...session.progress import line_printer
from ...session.stash import SETTINGS
from .etcd_leases import EtcdLeases
from .file_leases import FileLeases
from .holder import Holder

__all__ = ["HostLeases"]


class HostLeases:
    """A plugin of the process that has the terminal: takes the run's hosts before workers start.

    All hosts are taken in the same order by all runs, so that no two runs wait for each other.

    :param place: a directory, or the address of etcd.
    """

    def __init__(self, config: pytest.Config, place: str | Path) -> None:
        self._config = config
        self._place = place
        say = line_printer(config)
        self._leases = FileLeases(place, say=say) if isinstance(place, Path) else EtcdLeases(place, say=say)
        config.add_cleanup(self._leases.close)  # after the check of what the run has left behind

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        hosts = self._config.stash[SETTINGS].hosts
        specs = (THIS_MACHINE,) if hosts is None else read_inventory(hosts)
        is_shared = not isinstance(self._place, Path)
        try:
            self._leases.take(_names(specs, machine=socket.gethostname() if is_shared else "this-machine"), self._me())
        except OSError as error:
            raise pytest.UsageError(f"--propolis-leases {self._place}: {error.strerror or error}") from None
        except PropolisError as error:
            raise pytest.UsageError(f"--propolis-leases: {error}") from None

    def _me(self) -> Holder:
        return Holder(
            pid=os.getpid(),
            user=_user(),
            directory=str(self._config.invocation_params.dir),
            machine="" if isinstance(self._place, Path) else socket.gethostname(),
            since=time.time(),
        )


def _names(specs: Iterable[HostSpec], *, machine: str) -> list[str]:
    """Return what hosts are leased as, in order: by address, since inventories may name them differently.

    :param machine: what this machine is leased as.
    """
    named = (f"{spec.kind}-{spec.address}" if is_elsewhere(spec) else machine for spec in specs)
    return sorted({re.sub(r"[^\w.@-]+", "_", name) for name in named})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in a container
        return str(os.getuid())
