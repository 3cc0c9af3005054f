"""An event loop in a thread of its own, for callers that cannot await."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Final, Generic, TypeVar

from ..errors import ConfigError

__all__ = ["EventLoopThread", "is_cancelling_a_call"]

T = TypeVar("T")

NAME: Final = "propolis-sync"
CLOSE_TIMEOUT_S: Final = 30.0
"""How long what still runs in the loop may take to be cancelled, before the thread is left to the process's end."""


class EventLoopThread:
    """Runs coroutines for synchronous callers. The thread starts with the first of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop, and return its result or raise its exception.

        An exception in the waiting thread, such as KeyboardInterrupt or that of a time-out, cancels the coroutine, and
        is raised when the coroutine has ended. One more meanwhile is raised at once.

        :raises ConfigError: when an event loop runs in the caller's thread, or this one is closed.
        """
        try:
            self._require_blocking()
            call = _Call(self._started(), coroutine)
        except ConfigError:
            coroutine.close()
            raise
        try:
            call.start()
            call.ended.wait()
        except BaseException:
            call.cancel()
            with _cancelling():
                call.ended.wait()
            raise
        return call.result()

    def close(self) -> None:
        """End the thread; what still runs in its loop is cancelled. Idempotent."""
        with self._starting:
            self._closed = True
        if self._thread and self._loop and self._end:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(CLOSE_TIMEOUT_S)

    def _require_blocking(self) -> None:
        if asyncio._get_running_loop() is not None:
            raise ConfigError(
                "a synchronous method was called where an event loop runs, which it would block",
                hint="use the asynchronous fixtures there (`test_vm`, `vm_factory`), and await their methods",
            )

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._closed:
                raise ConfigError(
                    "the event loop of the synchronous fixtures is closed",
                    hint="VMs end with the fixture that they come from",
                )
            if self._loop is None:
                # Here, because every run imports this module for its signals, and few have such a loop.
                from ..propolis_api.connection.sockets import new_event_loop

                self._loop, self._end = new_event_loop(), asyncio.Event()
                # A daemon: the interpreter does not wait for it where the session's end was cut short.
                self._thread = threading.Thread(target=_run, args=(self._loop, self._end), name=NAME, daemon=True)
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop, end: asyncio.Event) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_wait(end))


async def _wait(end: asyncio.Event) -> None:
    await end.wait()


class _Call(Generic[T]):
    """A coroutine that runs in the loop of another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self.ended = threading.Event()
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        self._loop.call_soon_threadsafe(self._start)

    def cancel(self) -> None:
        """Cancel the coroutine; its exception is dropped."""
        self._loop.call_soon_threadsafe(self._cancel)

    def result(self) -> T:
        assert self._task is not None
        return self._task.result()

    def _start(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(lambda _: self.ended.set())

    def _cancel(self) -> None:
        if self._task is None:  # the interruption came before it was started
            self._coroutine.close()
            self.ended.set()
            return
        self._task.cancel()
        self._task.add_done_callback(_retrieve_exception)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not report it as never retrieved."""
    if not task.cancelled():
        task.exception()


_calls_being_cancelled = 0


@contextlib.contextmanager
def _cancelling() -> Iterator[None]:
    global _calls_being_cancelled
    _calls_being_cancelled += 1
    try:
        yield
    finally:
        _calls_being_cancelled -= 1


def is_cancelling_a_call() -> bool:
    """Whether an interrupted call waits for its coroutine to end: another interruption would not let it."""
    return bool(_calls_being_cancelled)
