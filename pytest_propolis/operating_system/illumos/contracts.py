"""Process contracts, contract(5) and process(5), by means of libcontract(3LIB)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, final

from ...errors import CapabilityMissing

__all__ = ["CT_PR_NOORPHAN", "ContractLibrary", "Contracts"]

CT_PR_NOORPHAN: Final = 0x2
"""The members are killed when the contract is abandoned, which it is when the process that holds it ends."""

LIBRARY: Final = "libcontract.so.1"


class ContractLibrary(Protocol):
    """The functions of libcontract that are used. Each returns 0, or the number of an error."""

    def ct_pr_tmpl_set_param(self, template: int, parameters: int, /) -> int: ...
    def ct_tmpl_set_critical(self, template: int, events: int, /) -> int: ...
    def ct_tmpl_set_informative(self, template: int, events: int, /) -> int: ...
    def ct_tmpl_activate(self, template: int, /) -> int: ...
    def ct_tmpl_clear(self, template: int, /) -> int: ...
    def ct_ctl_abandon(self, control: int, /) -> int: ...


@final
class Contracts:
    """The process contracts that this process holds.

    :param root: the directory of process contracts.
    :param library: None for the system's own.
    """

    def __init__(self, root: Path, library: ContractLibrary | None = None) -> None:
        self._root = root
        self._library = library

    @contextmanager
    def template(self) -> Iterator[None]:
        """Return a context in which each process that this thread starts gets its own contract.

        The contract is this process's, and its members are killed with it. No events are asked for: nothing reads them.

        :raises CapabilityMissing: when there are no contracts.
        """
        template = self._open("template")
        try:
            for outcome in (
                self._functions.ct_pr_tmpl_set_param(template, CT_PR_NOORPHAN),
                self._functions.ct_tmpl_set_critical(template, 0),
                self._functions.ct_tmpl_set_informative(template, 0),
                self._functions.ct_tmpl_activate(template),
            ):
                if outcome:
                    raise _refused(os.strerror(outcome))
            try:
                yield
            finally:
                self._functions.ct_tmpl_clear(template)
        finally:
            os.close(template)

    def abandon(self, contract: int) -> None:
        """Abandon a contract, which kills its members. Idempotent."""
        try:
            control = os.open(self._root / str(contract) / "ctl", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._functions.ct_ctl_abandon(control)
        finally:
            os.close(control)

    def _open(self, name: str) -> int:
        try:
            return os.open(self._root / name, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _refused(f"{self._root / name}: {error.strerror}") from None

    @property
    def _functions(self) -> ContractLibrary:
        if self._library is None:
            try:
                self._library = ctypes.CDLL(LIBRARY)
            except OSError as error:
                raise _refused(str(error)) from None
        assert self._library is not None
        return self._library


def _refused(why: str) -> CapabilityMissing:
    return CapabilityMissing(
        f"programs cannot be bound to this process: process contracts do not work here ({why})",
        hint="mount the contract file system at /system/contract; a zone has it",
    )
