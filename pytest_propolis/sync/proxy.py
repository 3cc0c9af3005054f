"""Proxies: objects with asynchronous methods, whose proxies have the same methods without ``await``."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final

from ..vm.vm import TestVm
from .event_loop_thread import EventLoopThread

__all__ = ["SyncProxy", "SyncVm", "wrapped"]

OWN_PACKAGE: Final = __name__.partition(".")[0]


class SyncProxy:
    """Stands for an object of an event loop in another thread.

    - A method that is awaited there returns its result here.
    - ``async with`` is ``with``, and ``async for`` is ``for``.
    - Whatever a method or an attribute gives is a proxy, if it has asynchronous methods itself; and a proxy may be an
      argument wherever the object itself may.

    All of it runs in the loop's thread, callbacks as well: these cannot use proxies.
    """

    __slots__ = ("_held", "_target", "_thread")

    def __init__(self, target: Any, thread: EventLoopThread) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_thread", thread)
        object.__setattr__(self, "_held", [])

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # for isinstance, as where fields of a configuration are checked
        return type(self._target)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{type(self._target).__name__!r} object has no attribute {name!r}")
        if self._thread.is_current:  # the object is used by another one, such as a network by a card
            return getattr(self._target, name)
        value = self._thread.call(_attribute(self._target, name))
        return self._blocking(value) if inspect.isroutine(value) else wrapped(value, self._thread)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, _unwrapped(value))

    def __repr__(self) -> str:
        return repr(self._target)

    def __dir__(self) -> list[str]:
        return dir(self._target)

    def __eq__(self, other: object) -> bool:
        return bool(self._target == _unwrapped(other))

    def __hash__(self) -> int:
        return hash(self._target)

    def __enter__(self) -> Any:
        held = _HeldContext(self._target)
        value = self._thread.call(held.enter())
        self._held.append(held)
        return wrapped(value, self._thread)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        suppressed: bool = self._thread.call(self._held.pop().leave(error))
        return suppressed

    def __iter__(self) -> Iterator[Any]:
        iterator = aiter(self._target)
        try:
            while True:
                try:
                    value = self._thread.call(_next(iterator))
                except StopAsyncIteration:
                    return
                yield wrapped(value, self._thread)
        finally:
            if close := getattr(iterator, "aclose", None):
                self._thread.call(close())

    def _blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def blocking(*arguments: Any, **named: Any) -> Any:
            called = _called(method, _unwrapped(arguments), _unwrapped(named))
            return wrapped(self._thread.call(called), self._thread)

        return blocking


class SyncVm(SyncProxy):
    """A `TestVm` whose methods are not awaited."""

    __slots__ = ()

    def debug(self, command: str, **options: Any) -> str:
        """Run a command, and return its output with any status; as `TestVm.debug`, from any thread."""
        return str(self.run(command, check=False, **options))


def wrapped(value: Any, thread: EventLoopThread) -> Any:
    """A proxy of a value that has asynchronous methods, also inside of lists, tuples and dictionaries; else itself."""
    if type(value) in (list, tuple):
        return type(value)(wrapped(each, thread) for each in value)
    if type(value) is dict:
        return {key: wrapped(each, thread) for key, each in value.items()}
    if isinstance(value, TestVm):
        return SyncVm(value, thread)
    kind: Any = type(value)
    return SyncProxy(value, thread) if _is_asynchronous(kind) else value


def _unwrapped(value: Any) -> Any:
    """The object that a proxy stands for, also inside of lists, tuples, dictionaries and dataclasses; else itself."""
    if isinstance(value, SyncProxy):
        return value._target
    if type(value) in (list, tuple):
        return type(value)(map(_unwrapped, value))
    if type(value) is dict:
        return {key: _unwrapped(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value):
        proxies = {name: _unwrapped(field) for name, field in _fields(value) if _has_proxies(field)}
        return dataclasses.replace(value, **proxies) if proxies else value  # type: ignore[type-var]
    return value


def _has_proxies(value: Any) -> bool:
    if isinstance(value, SyncProxy):
        return True
    if type(value) in (list, tuple):
        return any(map(_has_proxies, value))
    return any(_has_proxies(field) for _, field in _fields(value))


def _fields(value: Any) -> list[tuple[str, Any]]:
    """Return the fields of a dataclass, such as a network card; none of anything else."""
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return []
    return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]


@functools.cache
def _is_asynchronous(kind: Any) -> bool:
    if hasattr(kind, "__aenter__") or hasattr(kind, "__aiter__"):
        return True
    if kind.__module__.partition(".")[0] != OWN_PACKAGE:
        return False
    return any(inspect.iscoroutinefunction(inspect.getattr_static(kind, name)) for name in dir(kind))


async def _attribute(target: Any, name: str) -> Any:
    return getattr(target, name)


async def _next(iterator: Any) -> Any:
    return await anext(iterator)


async def _called(method: Callable[..., Any], arguments: Any, named: Any) -> Any:
    result = method(*arguments, **named)
    return await result if inspect.isawaitable(result) else result


class _HeldContext:
    """A context manager that one task enters and leaves: what it opens may belong to a task, as `asyncio.timeout`."""

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager

    async def enter(self) -> Any:
        loop = asyncio.get_running_loop()
        self._entered: asyncio.Future[Any] = loop.create_future()
        self._left: asyncio.Future[BaseException | None] = loop.create_future()
        self._task = loop.create_task(self._hold())
        try:
            await asyncio.wait([self._task, self._entered], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        if not self._entered.done():
            await self._task
        return self._entered.result()

    async def leave(self, error: BaseException | None) -> bool:
        """Leave it, with the exception that the block has ended by; return whether it is suppressed."""
        if not self._left.done():
            self._left.set_result(error)
        try:
            await self._task
        except asyncio.CancelledError:
            if not isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return False
        except BaseException as raised:
            if raised is not error:
                raise
            return False
        return error is not None

    async def _hold(self) -> None:
        async with self._manager as value:
            self._entered.set_result(value)
            error = await self._left
            if isinstance(error, KeyboardInterrupt | SystemExit):  # raised in a task, they would end the loop
                raise asyncio.CancelledError
            if error is not None:
                raise error
