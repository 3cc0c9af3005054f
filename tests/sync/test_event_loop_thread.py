"""Calls of synchronous callers, and what interrupts them."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Iterator

import pytest

from pytest_propolis.sync.event_loop_thread import EventLoopThread


@pytest.fixture
def thread() -> Iterator[EventLoopThread]:
    thread = EventLoopThread()
    yield thread
    thread.close()


async def answer() -> int:
    return 42


def test_a_call_returns_the_result(thread: EventLoopThread) -> None:
    assert thread.call(answer()) == 42


def test_nothing_complains_of_the_error_of_a_call_that_was_interrupted(
    thread: EventLoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    caller = threading.get_ident()

    async def fail_when_cancelled() -> None:
        signal.pthread_kill(caller, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("the VM has stopped") from None

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        with pytest.raises(KeyboardInterrupt):
            thread.call(fail_when_cancelled())
        assert thread.call(answer()) == 42
        thread.close()
        gc.collect()
    assert caplog.records == []


def test_a_call_that_is_interrupted_before_it_starts_is_not_left_running(
    thread: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread.call(answer())
    began = threading.Event()

    async def begin() -> None:
        began.set()

    loop = thread._loop
    assert loop is not None
    schedule = loop.call_soon_threadsafe
    interruptions = iter([KeyboardInterrupt()])

    def interrupted(*arguments: object) -> object:
        for interruption in interruptions:
            raise interruption
        return schedule(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        thread.call(begin())
    assert thread.call(answer()) == 42
    assert not began.is_set()
