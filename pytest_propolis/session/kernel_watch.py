"""Watch the guests of a process's VMs for unexpected panics, resets and ends."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import pytest

from .stash import FAILURE, KERNEL_FAILURES

if TYPE_CHECKING:
    from ..console.kernel.ends import EndKind, UnexpectedEnd
    from ..console.kernel.failures import FailureKind, KernelFailure, KernelFailures
    from ..settings import FailOn

__all__ = ["KernelWatch"]

COUNTED: Final[dict[FailOn, tuple[FailureKind | EndKind, ...]]] = {
    "never": (),
    "panic": ("panic", "reset", "exit"),
    "oops": ("oops", "panic", "reset", "exit"),
}
WHAT: Final[dict[FailureKind | EndKind, str]] = {
    "oops": "the guest's kernel failed unexpectedly",
    "panic": "the guest's kernel panicked unexpectedly",
    "reset": "the guest reset itself unexpectedly",
    "exit": "the VM stopped unexpectedly",
}
EXPECTED_BY: Final[dict[FailureKind | EndKind, str]] = {
    "oops": "expect_panic",
    "panic": "expect_panic",
    "reset": "expect_reset",
    "exit": "expect_exit",
}
HINT: Final = "expect it with `async with vm.{}():`, or see --propolis-fail-on"


class KernelWatch:
    """Fails a test in which a guest has failed unexpectedly: a plugin, registered with the first VM.

    A VM that several tests share fails the test that ran when its console showed the failure.
    """

    def __init__(self, fail_on: FailOn) -> None:
        self._counted = COUNTED[fail_on]
        self._watched: list[KernelFailures] = []

    def add(self, failures: KernelFailures) -> None:
        """Watch another VM, until it is closed."""
        self._watched.append(failures)

    def collect(self, item: pytest.Item) -> None:
        """Move the failures seen so far to the test's item."""
        collected = item.stash.setdefault(KERNEL_FAILURES, [])
        for failures in self._watched:
            found: list[KernelFailure | UnexpectedEnd] = [*failures.take(), *failures.ends.take()]
            collected += [(failures.vm, failure) for failure in found]
        self._watched = [failures for failures in self._watched if not failures.is_closed]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        self._check(item)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        if FAILURE not in item.stash:  # it has failed already, and a second failure would add nothing
            self._check(item)
        return result

    def _check(self, item: pytest.Item) -> None:
        self.collect(item)
        for vm, failure in item.stash[KERNEL_FAILURES]:
            if failure.kind in self._counted:
                hint = HINT.format(EXPECTED_BY[failure.kind])
                raise pytest.fail.Exception(
                    f"VM {vm!r}: {WHAT[failure.kind]}: {failure.line}\nhint: {hint}", pytrace=False
                )
