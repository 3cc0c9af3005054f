"""etcd's JSON gateway: requests to whichever member answers, with a token."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec

from ....errors import CoordinationError, CoordinationLost
from ....propolis_api.connection.http import HttpAnswer, HttpClient, HttpStream
from .address import EtcdAddress
from .messages import Token

__all__ = ["NO_LEASE", "Gateway"]

T = TypeVar("T")

ANSWER_TIMEOUT_S: Final = 1.0
"""How long a member may be silent at first. A member without a leader answers after 7 s or more."""

MOST_DOUBLINGS: Final = 3
"""Each time that all members have been silent they get twice as long: the machine may just be slow."""

SECONDS_PER_BYTE: Final = 1 / (1 << 20)
"""How much longer it may take for each byte of a request."""

PATIENCE_S: Final = 20.0
"""How long all members may fail."""

AUTHENTICATION_TIMEOUT_S: Final = 5.0
PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2)
CONNECTIONS: Final = 8
NO_LEASE: Final = "lease not found"
QUOTED_BYTES: Final = 500


class Gateway:
    """The members of a cluster. One of them is asked until it fails, then the next.

    :param patience_s: how long all members may fail before `CoordinationLost`.
    """

    def __init__(self, address: EtcdAddress, *, patience_s: float = PATIENCE_S) -> None:
        self._address = address
        self._endpoints = address.endpoints()
        self._patience_s = patience_s
        self._token = ""
        self._current = 0
        self._client = self._new_client()
        self._retired: list[HttpClient] = []
        self._free = asyncio.Semaphore(CONNECTIONS)
        self.switched = asyncio.Event()
        """Set when the member that is asked has changed."""

    async def aclose(self) -> None:
        for client in (self._client, *self._retired):
            await client.aclose()

    async def ask(self, path: str, body: object, kind: type[T]) -> T:
        """As `ask_again`, for what may be done more than once."""
        return (await self.ask_again(path, body, kind))[0]

    async def ask_again(self, path: str, body: object, kind: type[T]) -> tuple[T, bool]:
        """Ask until a member answers; return the answer, and whether the request may have been done before.

        :raises CoordinationLost: when no member answers.
        :raises CoordinationError: when the request is refused.
        """
        content = msgspec.json.encode(body)
        reason, attempt = "", 0
        deadline_s = asyncio.get_running_loop().time() + self._patience_s
        while asyncio.get_running_loop().time() < deadline_s:
            number = self._current
            try:
                async with self._free:
                    answer = await self._client.request(
                        "POST", f"/v3/{path}", content=content, timeout_s=self._limit_s(attempt, content)
                    )
                if answer.is_success:
                    return _decoded(answer.content, kind), attempt > 0
                reason = f"HTTP {answer.status}: {_text(answer)}"
                if _wants_token(answer):
                    await self._authenticate()
                    continue
                if answer.status < 500:
                    failure = CoordinationLost if NO_LEASE in reason else CoordinationError
                    raise failure(f"etcd refuses {path}: {_text(answer)}")
            except OSError as error:
                reason = str(error) or type(error).__name__
            self.leave(number)
            await asyncio.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
            attempt += 1
        raise CoordinationLost(
            f"no member of etcd at {', '.join(self._address.urls)} answers: {reason}", waited_s=self._patience_s
        )

    def _limit_s(self, attempt: int, content: bytes) -> float:
        """Return how long a member may take to answer."""
        doublings = min(attempt // len(self._endpoints), MOST_DOUBLINGS)
        return ANSWER_TIMEOUT_S * (1 << doublings) + len(content) * SECONDS_PER_BYTE

    @asynccontextmanager
    async def stream(self, path: str, content: bytes) -> AsyncIterator[HttpStream]:
        """Ask the current member for a stream, once.

        :raises OSError: when it does not answer.
        """
        client = self._new_client()
        async with (
            contextlib.aclosing(client),
            client.stream("POST", f"/v3/{path}", content=content, timeout_s=None) as answer,
        ):
            yield answer

    def leave(self, number: int) -> None:
        """Ask another member from now on, if this one is still asked."""
        if number == self._current:
            self._current = (number + 1) % len(self._endpoints)
            self._replace_client()
            self.switched.set()

    async def _authenticate(self) -> None:
        """Get a token. The request carries none: etcd refuses one that is out of date here, too."""
        if not self._address.user:
            raise CoordinationError("etcd wants a user", hint="write etcd://USER:PASSWORD@HOST:PORT")
        credentials = {"name": self._address.user, "password": self._address.password}
        async with HttpClient(self._endpoints[self._current], headers={}) as client:
            answer = await client.request(
                "POST",
                "/v3/auth/authenticate",
                content=msgspec.json.encode(credentials),
                timeout_s=AUTHENTICATION_TIMEOUT_S,
            )
        if not answer.is_success:
            raise CoordinationError(f"etcd refuses user {self._address.user!r}: {_text(answer)}")
        self._token = _decoded(answer.content, Token).token
        self._replace_client()

    def _replace_client(self) -> None:
        """Requests that are under way end with the old one."""
        self._retired.append(self._client)
        self._client = self._new_client()

    def _new_client(self) -> HttpClient:
        headers = {"authorization": self._token} if self._token else {}
        return HttpClient(self._endpoints[self._current], headers=headers)


def _decoded(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind, strict=False)
    except msgspec.DecodeError as error:
        raise CoordinationError(f"etcd's answer is not understood: {error}: {content[:QUOTED_BYTES]!r}") from None


def _wants_token(answer: HttpAnswer) -> bool:
    text = _text(answer)
    return answer.status == 401 or (
        answer.status == 400 and ("revision of auth store is old" in text or "user name is empty" in text)
    )


def _text(answer: HttpAnswer) -> str:
    with contextlib.suppress(msgspec.DecodeError):
        found: Any = msgspec.json.decode(answer.content)
        if isinstance(found, dict):
            return str(found.get("error") or found.get("message") or found)
    return answer.content[:QUOTED_BYTES].decode(errors="replace")
