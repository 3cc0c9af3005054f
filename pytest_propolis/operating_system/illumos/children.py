"""Child processes on illumos: a process contract for each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from .contracts import Contracts
from .processes import PFEXEC, IllumosProcesses, Kill

__all__ = ["IllumosChildren"]


@final
class IllumosChildren:
    """Children that are members of contracts, which the kernel ends with the process that holds them."""

    privileges: tuple[str, ...] = (PFEXEC,)

    def __init__(self, processes: IllumosProcesses, contracts: Contracts, *, kill: Kill) -> None:
        self._processes = processes
        self._contracts = contracts
        self._kill = kill

    @contextmanager
    def ending_with_parent(self) -> Iterator[tuple[str, ...]]:
        """Start children in a contract that the kernel abandons when this process ends.

        It kills only members that this process may signal: what has more privileges is left to ``propolis gc``.
        """
        with self._contracts.template():
            yield ()

    def descendants(self, pid: int, *, pipe: int) -> _Members:
        found = self._processes.psinfo(pid)
        return _Members(self._contracts, found.contract if found else None)

    def signal_group(self, group: int, number: signal.Signals) -> None:
        try:
            os.killpg(group, number)
        except PermissionError:
            self._kill(-group, number)


class _Members:
    """The members of a contract: a child and its descendants.

    :param contract: None where the child was gone before it was looked at.
    """

    def __init__(self, contracts: Contracts, contract: int | None) -> None:
        self._contracts = contracts
        self._contract = contract

    def kill(self) -> None:
        self.close()

    def close(self) -> None:
        contract, self._contract = self._contract, None
        if contract is not None:
            self._contracts.abandon(contract)
