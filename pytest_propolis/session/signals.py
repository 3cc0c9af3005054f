"""Signals that end a run: the first Ctrl-C (or SIGTERM, or SIGHUP), and those that follow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Final

import pytest

from .internals import is_cancelling_a_test, tear_down_everything

__all__ = ["Interruption"]

TERMINATION: Final = (signal.SIGTERM, signal.SIGHUP)
"""The signals with which CI systems and terminals end a run."""


class Interruption:
    """How signals end the run of one pytest process.

    Once there are VMs (`arm`), SIGTERM and SIGHUP do what the first Ctrl-C does: the test is cancelled, and its
    finalizers run. They do no more than that, however often they come. Every further Ctrl-C ends the current wait,
    leaves the remaining VMs to the agents, and reports that on the terminal. The run ends with its usual summary and
    exit status all the same.

    A run without VMs keeps its handlers. Previous handlers are called first, and restored at the end; a process that is
    forked from this one acts on a signal as if there were no handler. Outside the main thread nothing is changed,
    because Python does not allow it.

    :param show: shows a line on the terminal.
    :param signals: the signals that end the run in order.
    :param always: further signals, which end a run without VMs, too.
    :param abandon: functions that leave VMs to the agents without waiting; each returns how many VMs are left.
    :param breaks_waits: whether a further Ctrl-C ends what this process waits for. xdist's controller waits only for
        workers.
    :param patience_s: how long a further Ctrl-C is left to the process that ends this one: to xdist's controller, in a
        worker. A terminal sends it to both; if the worker released its VMs at once, they would be gone before the
        controller counts them.
    """

    def __init__(
        self,
        show: Callable[[str], None],
        *,
        signals: Sequence[signal.Signals] = TERMINATION,
        always: Sequence[signal.Signals] = (),
        abandon: Sequence[Callable[[], int]] = (),
        breaks_waits: bool = True,
        patience_s: float = 0.0,
    ) -> None:
        self.has_abandoned = False
        """Whether VMs were left to the agents: then nothing waits for their removal."""
        self._show = show
        self._signals = signals
        self._always = always
        self._abandon = abandon
        self._breaks_waits = breaks_waits
        self._patience_s = patience_s
        self._previous: dict[signal.Signals, Any] = {}
        self._is_listening = False
        self._is_asked = False
        self._is_interrupted = False
        self._is_tearing_down = False
        self._has_printed = False
        self._waiting: threading.Timer | None = None
        self._is_cancelling_a_call: Callable[[], bool] = bool

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Wrap the tests: `arm` has an effect inside the block and, after an interruption, until `restore`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_listening = True
        self._handle(self._always)
        try:
            yield
        except KeyboardInterrupt:
            self._is_interrupted = True
            if self._previous and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._take(signal.SIGINT, self._again)
            raise
        finally:
            self._is_listening = False
            if not self._is_interrupted:
                self.restore()

    def arm(self) -> None:
        """Install the handlers, as there are now resources to clean up. Idempotent."""
        if not self._is_listening or threading.current_thread() is not threading.main_thread():
            return
        self._handle(self._signals)

    def _handle(self, numbers: Sequence[signal.Signals]) -> None:
        if numbers:
            # Here, because a run without VMs does not pay for it, and not in a handler, which may interrupt an import.
            from ..sync.event_loop_thread import is_cancelling_a_call

            self._is_cancelling_a_call = is_cancelling_a_call
        for number in numbers:
            # A signal that is ignored, as SIGHUP under nohup, stays ignored.
            if number not in self._previous and signal.getsignal(number) is not signal.SIG_IGN:
                self._take(number, self._terminate)

    def finish(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Wrap the end of the session, where an interrupted run tears its fixtures down.

        There pytest stops at the first finalizer that raises or is interrupted; this runs the others, too.
        """
        if not self._is_interrupted:
            return (yield)
        self._is_tearing_down = True
        try:
            return (yield)
        except BaseException as error:
            self._tear_down_remaining(session, error)
        finally:
            self._is_tearing_down = False

    def restore(self) -> None:
        """Restore the previous handlers. Idempotent."""
        if self._waiting:
            self._waiting.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        _handling.discard(self)

    @property
    def handled(self) -> Iterable[signal.Signals]:
        """The signals for which this object has installed a handler."""
        return self._previous.keys()

    def _take(self, number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        self._previous[number] = signal.getsignal(number)
        _handling.add(self)
        signal.signal(number, handler)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        before = self._previous[signal.Signals(number)]
        if callable(before):
            before(number, frame)
        if not (self._is_asked or self._is_interrupted or is_cancelling_a_test() or self._is_cancelling_a_call()):
            self._is_asked = True
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in every background job of a shell script
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    def _again(self, _number: int, _frame: FrameType | None) -> None:
        if self._patience_s:
            self._wait_for_controller()
            return
        self.has_abandoned = True
        left = sum(abandon() for abandon in self._abandon)
        if left and not self._has_printed:
            self._has_printed = self._print(
                f"{left} {'VM is' if left == 1 else 'VMs are'} being removed in the background"
            )
        if not (self._is_tearing_down and self._breaks_waits):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise KeyboardInterrupt from None
        for task in asyncio.all_tasks(loop):
            loop.call_soon_threadsafe(task.cancel)

    def _wait_for_controller(self) -> None:
        if self._waiting is None:
            self._waiting = threading.Timer(self._patience_s, self._interrupt_now)
            self._waiting.daemon = True
            self._waiting.start()

    def _interrupt_now(self) -> None:
        self._patience_s = 0.0
        signal.pthread_kill(_main_thread_id(), signal.SIGINT)

    def _tear_down_remaining(self, session: pytest.Session, error: BaseException | None) -> None:
        while error is not None:
            if isinstance(error, Exception):
                self._print(f"a finalizer failed: {type(error).__name__}: {error}")
            try:
                tear_down_everything(session)
            except BaseException as another:
                error = another
            else:
                return

    def _print(self, text: str) -> bool:
        try:
            self._show(f"propolis: {text}")
        except RuntimeError:  # the signal came in the middle of another line
            return False
        return True


_handling: set[Interruption] = set()
"""The objects whose handlers are installed: one, except in tests that run pytest within pytest."""

_masks: list[set[int]] = []
"""The signal masks of threads that are forking."""


def _block_before_fork() -> None:
    # Python forgets in the child which signals its handlers were about to be called for: one that came before the
    # handlers are put back would be lost.
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, {n for each in _handling for n in each.handled}))


def _unblock_after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _restore_in_child() -> None:
    """Restore the previous signal handling in a forked process."""
    for each in list(_handling):
        each.restore()
    _unblock_after_fork()


os.register_at_fork(before=_block_before_fork, after_in_parent=_unblock_after_fork, after_in_child=_restore_in_child)


def _main_thread_id() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident
