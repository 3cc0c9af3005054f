"""A stand-in for Nexus and oximeter's collector: producers register with it, and are polled on request.

PHD's is `phd-tests/framework/src/test_vm/metrics.rs` of oxidecomputer/propolis.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final
from uuid import UUID

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..propolis_api.connection.endpoint import Endpoint
from ..propolis_api.connection.http import HttpAnswer, HttpClient
from ..propolis_api.connection.http_service import serving
from ..propolis_api.connection.sockets import address_of, listen, reason_of
from .dropshot import answer, refuse
from .registration import (
    REGISTRATION_PATH,
    Duration,
    ProducerEndpoint,
    ProducerKind,
    ProducerRegistrationResponse,
)
from .samples import ProducerResults

__all__ = ["Collector", "NotCollected", "Reach"]

Reach = Callable[[str], Awaitable[Endpoint]]

LOOPBACK: Final = "127.0.0.1"

LEASE_S: Final = 300.0
"""As PHD's. A producer that is gone is not forgotten after it: it does not answer, which says the same."""

POLL_TIMEOUT_S: Final = 15.0


class NotCollected(Exception):
    """Raised when a producer cannot be polled: it has not registered, does not answer, or answers something else."""


class Collector:
    """The registered producers. `opened` creates a collector that listens.

    :param lease_s: the lease that producers are granted, in seconds.
    """

    def __init__(self, *, lease_s: float = LEASE_S) -> None:
        self._lease = Duration.of(lease_s)
        self._endpoints: dict[UUID, dict[str, ProducerEndpoint]] = defaultdict(dict)
        self._changed = asyncio.Event()
        self.registrations = 0
        """How often a producer has registered or renewed its registration."""
        self.address = ""
        """Its IP address and port, for ``--metric-addr``."""

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, *, lease_s: float = LEASE_S, port: int = 0) -> AsyncIterator[Collector]:
        """Open a collector that listens on 127.0.0.1, for the length of the block.

        :param port: 0 for one that is free.
        """
        collector = cls(lease_s=lease_s)
        with listen(LOOPBACK, port) as listener:
            collector.address = address_of(listener)
            async with serving(collector._app(), listener):
                yield collector

    def endpoints(self, producer_id: UUID) -> tuple[ProducerEndpoint, ...]:
        """Return the addresses of a producer, the latest first: an instance that migrates registers two."""
        return tuple(reversed(self._endpoints.get(producer_id, {}).values()))

    async def wait_for_registrations(self, count: int) -> None:
        """Wait for a number of registrations since this was opened, including renewals; no time limit."""
        while self.registrations < count:
            await self._changed.wait()

    async def wait_for_producer(self, producer_id: UUID) -> None:
        """Wait until a producer has registered; no time limit."""
        while producer_id not in self._endpoints:
            await self._changed.wait()

    async def collect(self, producer_id: UUID, *, reach: Reach | None = None) -> ProducerResults:
        """Poll a producer once.

        :param reach: returns where this process finds an address at which the producer has registered.
        :raises NotCollected: with the reason.
        """
        failure = "it has not registered"
        for endpoint in self.endpoints(producer_id):
            try:
                found = Endpoint.at(endpoint.address) if reach is None else await reach(endpoint.address)
                async with HttpClient(found, headers={}) as client:
                    return _results(await client.request("GET", f"/{producer_id}", timeout_s=POLL_TIMEOUT_S))
            except OSError as error:
                failure = f"{endpoint.address}, where it has registered, does not answer: {reason_of(error)}"
        raise NotCollected(failure)

    def _app(self) -> Starlette:
        return Starlette(
            routes=[Route(REGISTRATION_PATH, self._register, methods=["POST"])],
            exception_handlers={HTTPException: refuse},
        )

    async def _register(self, request: Request) -> Response:
        try:
            endpoint = msgspec.json.decode(await request.body(), type=ProducerEndpoint)
            Endpoint.at(endpoint.address)
        except (msgspec.DecodeError, ValueError) as error:
            raise HTTPException(400, f"unable to parse JSON body: {error}") from None
        if endpoint.kind is not ProducerKind.INSTANCE:
            raise HTTPException(400, f"a producer of the kind {endpoint.kind.value!r} is not collected from here")
        # A renewal takes no one's place: the source of a migration may renew after its target has registered.
        self._endpoints[endpoint.id].setdefault(endpoint.address, endpoint)
        self.registrations += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return answer(ProducerRegistrationResponse(lease_duration=self._lease), status=201)


def _results(answered: HttpAnswer) -> ProducerResults:
    """
    :raises NotCollected: when it is no list of results.
    """
    if not answered.is_success:
        raise NotCollected(f"its server answers {answered.status}: {answered.content.decode(errors='replace')}")
    try:
        return msgspec.json.decode(answered.content, type=ProducerResults)
    except msgspec.DecodeError as error:
        raise NotCollected(f"its server answers what is no list of results: {error}") from None
