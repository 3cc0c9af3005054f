"""Signals that end a run: the first Ctrl-C (or SIGTERM, or SIGHUP), and those that come after it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any, Final

import pytest

__all__ = ["INTERRUPTION", "Interruption"]

POLITE: Final = (signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """How signals end the run of one pytest process.

    SIGTERM and SIGHUP, with which CI systems cancel jobs, do what the first Ctrl-C does: the test is cancelled, and its
    finalizers run. They do no more than that, however often they come. Every further Ctrl-C ends whatever is waited
    for just then; what is still there of the VMs is left to the agents, and the terminal says so. The run ends with its
    usual summary and exit status all the same.

    Handlers that were there before are called first, and put back in the end. Outside of the main thread nothing is
    changed, because Python allows no more.

    :param say: shows a line to the person at the terminal.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.letting_go: list[Callable[[], int]] = []
        """What lets go of VMs without waiting; each returns how many are left to be removed by others."""
        self.breaks_waits = True
        """Whether a further Ctrl-C ends what this process waits for. xdist's controller waits for workers alone."""
        self.has_let_go = False
        """Whether VMs were left to the agents: then nobody waits for what becomes of them."""
        self.patience_s = 0.0
        """How long a further Ctrl-C is left to the process that ends this one: to xdist's controller, in a worker.

        A terminal sends it to both. If the worker let go at once, its VMs would go before the controller counts them.
        """
        self._say = say
        self._previous: dict[signal.Signals, Any] = {}
        self._is_asked = False
        self._is_interrupted = False
        self._is_tearing_down = False
        self._has_said = False
        self._waiting: threading.Timer | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Around the tests. When they are interrupted, it goes on listening until `restore`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A signal that is ignored, as under nohup, stays ignored.
        for number in POLITE:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._take(number, self._polite)
        try:
            yield
        except KeyboardInterrupt:
            self._is_interrupted = True
            self._take(signal.SIGINT, self._again)
            raise
        finally:
            if not self._is_interrupted:
                self.restore()

    def finish(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Around the end of the session, where an interrupted run tears its fixtures down.

        Pytest gives up at the first finalizer there that raises or is interrupted; here the others follow.
        """
        if not self._is_interrupted:
            return (yield)
        self._is_tearing_down = True
        try:
            return (yield)
        except BaseException as error:
            self._tear_down_the_rest(session, error)
        finally:
            self._is_tearing_down = False

    def restore(self) -> None:
        """Put the handlers back that were there. Calling it twice is fine."""
        if self._waiting:
            self._waiting.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _take(self, number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        self._previous[number] = signal.getsignal(number)
        signal.signal(number, handler)

    def _polite(self, number: int, frame: FrameType | None) -> None:
        before = self._previous[signal.Signals(number)]
        if callable(before):
            before(number, frame)
        if not (self._is_asked or self._is_interrupted or _is_cancelling()):
            self._is_asked = True
            signal.raise_signal(signal.SIGINT)

    def _again(self, _number: int, _frame: FrameType | None) -> None:
        if self.patience_s:
            self._wait_for_controller()
            return
        self.has_let_go = True
        left = sum(let_go() for let_go in self.letting_go)
        if left and not self._has_said:
            self._has_said = self._tell(f"{left} {'VM is' if left == 1 else 'VMs are'} being removed in the background")
        if not (self._is_tearing_down and self.breaks_waits):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise KeyboardInterrupt from None
        for task in asyncio.all_tasks(loop):
            loop.call_soon_threadsafe(task.cancel)

    def _wait_for_controller(self) -> None:
        if self._waiting is None:
            self._waiting = threading.Timer(self.patience_s, self._lose_patience)
            self._waiting.daemon = True
            self._waiting.start()

    def _lose_patience(self) -> None:
        self.patience_s = 0.0
        signal.pthread_kill(_main_thread_id(), signal.SIGINT)

    def _tear_down_the_rest(self, session: pytest.Session, error: BaseException | None) -> None:
        while error is not None:
            if isinstance(error, Exception):
                self._tell(f"a finalizer failed: {type(error).__name__}: {error}")
            try:
                session._setupstate.teardown_exact(None)
            except BaseException as further:
                error = further
            else:
                return

    def _tell(self, text: str) -> bool:
        try:
            self._say(f"propolis: {text}")
        except RuntimeError:  # the signal came in the middle of another line
            return False
        return True


INTERRUPTION: pytest.StashKey[Interruption] = pytest.StashKey()
"""Where a config keeps how signals end its run."""


def _main_thread_id() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


def _is_cancelling() -> bool:
    """Whether Ctrl-C is cancelling a test in its event loop just now: one more would not let it finish.

    A Ctrl-C at the terminal reaches a worker of xdist's directly, and then once more through the controller. That it
    has come is known to nobody but `asyncio.Runner`, whose handler takes the place of Python's own.
    """
    runner = getattr(getattr(signal.getsignal(signal.SIGINT), "func", None), "__self__", None)
    return bool(getattr(runner, "_interrupt_count", 0))
