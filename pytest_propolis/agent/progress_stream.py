"""Responses of requests that take long: lines of progress, then the result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import msgspec
from starlette.responses import Response, StreamingResponse

from ..agent_api.messages import Fault, ProgressMade, StreamLine, WorkFailed
from ..agent_api.templates import TemplateMaking
from ..errors import PropolisError

__all__ = ["cancel_once", "progress_response"]

logger = logging.getLogger(__name__)

Work: TypeAlias = Callable[[Callable[[StreamLine], None]], Awaitable[StreamLine]]


def progress_response(work: Work, in_progress: set[asyncio.Future[StreamLine]]) -> Response:
    """Stream the progress of `work`, then its result. Cancel it when the client disconnects.

    :param in_progress: holds the work until it has ended. A response whose client has left is cancelled again at each
        await, so it is waited for in `close`.
    """
    return StreamingResponse(_lines(work, in_progress), media_type="application/x-ndjson")


async def _lines(work: Work, in_progress: set[asyncio.Future[StreamLine]]) -> AsyncIterator[bytes]:
    lines: asyncio.Queue[StreamLine] = asyncio.Queue()
    task = asyncio.ensure_future(work(lines.put_nowait))
    in_progress.add(task)
    task.add_done_callback(in_progress.discard)
    task.add_done_callback(lambda done: lines.put_nowait(_last_line(done)))
    try:
        while True:
            line = await lines.get()
            yield msgspec.json.encode(line) + b"\n"
            if not isinstance(line, ProgressMade | TemplateMaking):
                return
    finally:
        cancel_once(task)


def cancel_once(work: asyncio.Future[StreamLine]) -> None:
    """A second cancellation would keep it from ending its QEMU properly and recording that in the ledger."""
    if not (isinstance(work, asyncio.Task) and work.cancelling()):
        work.cancel()


def _last_line(task: asyncio.Future[StreamLine]) -> StreamLine:
    if task.cancelled():
        return WorkFailed(Fault(kind="AgentError", message="cancelled"))
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, PropolisError):
        return WorkFailed(Fault.of(error))
    logger.error("unexpected error", exc_info=error)
    return WorkFailed(Fault(kind="AgentError", message=f"{type(error).__name__}: {error}"))
