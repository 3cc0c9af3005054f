"""Signals that end a run: SIGTERM and SIGHUP do what the first Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

__all__ = ["interrupting"]

SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into Ctrl-C while this is open: the test is cancelled, and its finalizers run.

    CI systems cancel jobs with these signals, and by default they end a process at once. Handlers that were there are
    called first, and put back in the end. Outside of the main thread nothing is changed, because Python allows no more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def interrupt(number: int, frame: FrameType | None) -> None:
        before = previous[signal.Signals(number)]
        if callable(before):
            before(number, frame)
        signal.raise_signal(signal.SIGINT)

    # A signal that is ignored, as under nohup, stays ignored.
    for number in SIGNALS:
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in SIGNALS:
            if signal.getsignal(number) is interrupt:
                signal.signal(number, previous[number])
