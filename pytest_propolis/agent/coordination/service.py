"""The service of the embedded key-value store: one websocket for each process, and the clock of the leases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ...agent_api.key_value import (
    COORDINATION_PATH,
    Answer,
    Change,
    Commit,
    Follow,
    Grant,
    KeepAlive,
    Notice,
    Read,
    Request,
    Revoke,
)
from .store import KeyValueStore, LeaseGone, Refusal

__all__ = ["CoordinationService"]

STALL_S: Final = 0.5
"""An event loop that lags by more than this could not process renewals of leases meanwhile."""

PENDING_BYTES: Final = 64 << 20
"""How much output may be queued for a client that does not read, before it is disconnected."""

UNSUPPORTED: Final = 1003
TOO_SLOW: Final = 1008

_decoder: Final = msgspec.msgpack.Decoder(list[Request])
_encoder: Final = msgspec.msgpack.Encoder()


class CoordinationService:
    """Serves one store. It may be used once an event loop runs."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._encoded: tuple[tuple[Change, ...], bytes] = ((), b"")
        self.store = KeyValueStore(lambda: asyncio.get_running_loop().time())

    @property
    def routes(self) -> list[WebSocketRoute]:
        return [WebSocketRoute(COORDINATION_PATH, self._serve)]

    def close(self) -> None:
        """Stop expiring leases. Idempotent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def arm(self) -> None:
        """Schedule the check of the next lease that may expire."""
        deadline_s = self.store.next_deadline_s
        if self._timer and (deadline_s is None or self._timer.when() > deadline_s or self._timer.cancelled()):
            self.close()
        if deadline_s is not None and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(deadline_s, self._expire, deadline_s)

    def _expire(self, due_s: float) -> None:
        self._timer = None
        late_s = asyncio.get_running_loop().time() - due_s
        if late_s > STALL_S:
            self.store.extend_all(late_s)
        self.store.expire()
        self.arm()

    async def _serve(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await _Connection(websocket, self.store, self.arm, self._notice).serve()

    def _notice(self, changes: tuple[Change, ...]) -> bytes:
        """Return the message about changes, which is encoded once for all connections."""
        if self._encoded[0] is not changes:
            self._encoded = changes, _encoder.encode(Notice(changes))
        return self._encoded[1]


class _Connection:
    """One client's connection."""

    def __init__(
        self,
        websocket: WebSocket,
        store: KeyValueStore,
        arm: Callable[[], None],
        encode: Callable[[tuple[Change, ...]], bytes],
    ) -> None:
        self._websocket = websocket
        self._store = store
        self._arm = arm
        self._encode = encode
        self._outgoing: list[bytes] = []
        self._pending = 0
        self._is_waiting = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the client leaves."""
        sending = asyncio.create_task(self._send())
        try:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                while self._websocket.client_state is WebSocketState.CONNECTED:
                    for request in _decoder.decode(await self._websocket.receive_bytes()):
                        self._queue(_encoder.encode(self._answer(request)))
        except msgspec.DecodeError as error:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._websocket.close(UNSUPPORTED, str(error)[:100])
        finally:
            self._store.unfollow(self._note)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _answer(self, request: Request) -> Answer:
        try:
            return self._do(request)
        except Refusal as refusal:
            is_lost = isinstance(refusal, LeaseGone)
            return Answer(request.id, self._store.revision, done=False, error=str(refusal), is_lost=is_lost)

    def _do(self, request: Request) -> Answer:
        store, done, count, lease = self._store, True, 0, 0
        entries = {}
        match request:
            case Commit():
                done, count = store.commit(request)
            case Read():
                entries = store.read(request.prefix)
            case Follow():
                entries = store.follow(request.prefix, self._note)
            case Grant():
                lease = store.grant(request.ttl_s)
                self._arm()
            case KeepAlive():
                done = store.keep_alive(request.lease)
            case Revoke():
                done = store.revoke(request.lease)
        return Answer(request.id, store.revision, done, count, lease, entries)

    def _note(self, changes: tuple[Change, ...]) -> None:
        self._queue(self._encode(changes))

    def _queue(self, message: bytes) -> None:
        self._outgoing.append(message)
        self._pending += len(message)
        self._is_waiting.set()

    async def _send(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while await self._is_waiting.wait():
                self._is_waiting.clear()
                if self._pending > PENDING_BYTES:
                    await self._websocket.close(TOO_SLOW, "too slow: changes were not read")
                    return
                outgoing, self._outgoing, self._pending = self._outgoing, [], 0
                await self._websocket.send_bytes(_array_header(len(outgoing)) + b"".join(outgoing))


def _array_header(length: int) -> bytes:
    """Return the MessagePack header of an array of this many encoded elements."""
    return b"\xdd" + length.to_bytes(4, "big")
