"""A producer of metrics: it registers, renews its registration, and serves its samples.

It does what omicron's `oximeter/producer/src/lib.rs` does for propolis-server. A registration that fails is in the log
alone: metrics never fail a virtual machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
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
from ..propolis_api.error import Error
from .dropshot import answer, refuse
from .registration import (
    REGISTRATION_PATH,
    Duration,
    MetricsConfig,
    ProducerEndpoint,
    ProducerKind,
    ProducerRegistrationResponse,
)
from .samples import ProducerResults

__all__ = ["Produce", "producing"]

INTERVAL_S: Final = 10.0
"""How often propolis-server asks to be polled."""

DEFAULT_LEASE_S: Final = 120.0
"""The lease, where the registry agrees and does not say."""

RENEWALS_PER_LEASE: Final = 4
SHORTEST_RENEWAL_S: Final = 0.25
FIRST_RETRY_S: Final = 0.25
LONGEST_RETRY_S: Final = 180.0
REQUEST_TIMEOUT_S: Final = 15.0

logger = logging.getLogger(__name__)

Produce = Callable[[], Awaitable[ProducerResults]]


@contextlib.asynccontextmanager
async def producing(config: MetricsConfig, *, producer_id: UUID, produce: Produce) -> AsyncIterator[None]:
    """Run a producer of the kind ``instance`` for the length of the block.

    :param produce: measures; called at every poll.
    :raises OSError: when the address cannot be listened on.
    """
    with listen(config.host) as listener:
        endpoint = ProducerEndpoint(
            id=producer_id,
            kind=ProducerKind.INSTANCE,
            address=address_of(listener),
            interval=Duration.of(INTERVAL_S),
        )
        async with serving(_app(producer_id, produce), listener):
            registration = asyncio.create_task(_keep_registered(config.registry, endpoint))
            try:
                yield
            finally:
                registration.cancel()
                await asyncio.gather(registration, return_exceptions=True)


def _app(producer_id: UUID, produce: Produce) -> Starlette:
    async def collect(request: Request) -> Response:
        text = request.path_params["producer_id"]
        try:
            requested = UUID(text)
        except ValueError:
            raise HTTPException(400, f"bad parameter in URL path: {text!r} is no UUID") from None
        if requested != producer_id:
            raise HTTPException(404, f"Producer ID {requested} is not valid, expected {producer_id}")
        return answer(await produce())

    return Starlette(
        routes=[Route("/{producer_id}", collect, methods=["GET"])], exception_handlers={HTTPException: refuse}
    )


async def _keep_registered(registry: str, endpoint: ProducerEndpoint) -> None:
    async with HttpClient(Endpoint.at(registry), headers={}) as client:
        while True:
            if (lease_s := await _register(client, registry, endpoint)) is None:
                return
            await asyncio.sleep(max(lease_s / RENEWALS_PER_LEASE, SHORTEST_RENEWAL_S))


async def _register(client: HttpClient, registry: str, endpoint: ProducerEndpoint) -> float | None:
    """Register, with ever longer pauses while the registry does not answer.

    :returns: the lease, in seconds; None when the registry refuses: it would refuse again.
    """
    pause_s = FIRST_RETRY_S
    body = msgspec.json.encode(endpoint)
    while True:
        try:
            answered = await client.request("POST", REGISTRATION_PATH, content=body, timeout_s=REQUEST_TIMEOUT_S)
            failure = f"it answers {answered.status}: {_message(answered)}"
        except OSError as error:
            answered, failure = None, reason_of(error)
        if answered is not None and answered.is_success:
            lease_s = _lease_s(answered)
            logger.info(
                "registered at %s as the producer %s at %s for %g s", registry, endpoint.id, endpoint.address, lease_s
            )
            return lease_s
        if answered is not None and answered.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("%s refuses the producer %s, which does not ask again: %s", registry, endpoint.id, failure)
            return None
        logger.warning("not registered at %s: %s; another attempt in %g s", registry, failure, pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_RETRY_S)


def _lease_s(answered: HttpAnswer) -> float:
    try:
        return msgspec.json.decode(answered.content, type=ProducerRegistrationResponse).lease_duration.seconds
    except msgspec.DecodeError:
        return DEFAULT_LEASE_S


def _message(answered: HttpAnswer) -> str:
    try:
        return msgspec.json.decode(answered.content, type=Error).message
    except msgspec.DecodeError:
        return answered.content.decode(errors="replace")
