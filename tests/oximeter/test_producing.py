"""A producer of metrics and the stand-in for oximeter, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pytest_propolis.oximeter.collector import Collector, NotCollected
from pytest_propolis.oximeter.producer import producing
from pytest_propolis.oximeter.registration import MetricsConfig
from pytest_propolis.oximeter.samples import MetricsError, ProducerError, ProducerResults
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.propolis_api.connection.http import HttpAnswer, HttpClient
from pytest_propolis.propolis_api.connection.http_service import serving
from pytest_propolis.propolis_api.connection.sockets import address_of, listen

DEADLINE_S: Final = 60.0
LOGGER: Final = "pytest_propolis.oximeter.producer"


async def nothing() -> ProducerResults:
    return [ProducerError(MetricsError(type="datum_error", content="nothing is measured here"))]


def config(registry: str, host: str = "127.0.0.1") -> MetricsConfig:
    return MetricsConfig(host=host, registry=registry)


async def asked(address: str, method: str, path: str, content: bytes | None = None) -> HttpAnswer:
    async with HttpClient(Endpoint.at(address), headers={}) as client:
        return await client.request(method, path, content=content, timeout_s=DEADLINE_S)


class Messages(logging.Handler):
    """The producer's log messages."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._queue.put_nowait(record.getMessage())

    async def until(self, text: str) -> str:
        async with asyncio.timeout(DEADLINE_S):
            while text not in (message := await self._queue.get()):
                pass
        return message


@pytest.fixture
async def messages() -> AsyncIterator[Messages]:
    handler, logger = Messages(), logging.getLogger(LOGGER)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@contextlib.asynccontextmanager
async def registry(register: Callable[[Request], Awaitable[Response]]) -> AsyncIterator[str]:
    """A registry with the responses that a test sets."""
    with listen("127.0.0.1") as listener:
        async with serving(Starlette(routes=[Route("/metrics/producers", register, methods=["POST"])]), listener):
            yield address_of(listener)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_producer_registers_and_is_polled(host: str) -> None:
    producer_id = uuid.uuid4()
    async with Collector.opened() as collector:
        with pytest.raises(NotCollected, match="it has not registered"):
            await collector.collect(producer_id)
        async with producing(config(collector.address, host), producer_id=producer_id, produce=nothing):
            async with asyncio.timeout(DEADLINE_S):
                await collector.wait_for_producer(producer_id)
            assert await collector.collect(producer_id) == await nothing()
            (endpoint,) = collector.endpoints(producer_id)
            assert (endpoint.kind.value, endpoint.interval.seconds) == ("instance", 10.0)
            assert Endpoint.at(endpoint.address).host_and_port[0] == host
        with pytest.raises(NotCollected, match=r"where it has registered, does not answer: Connection refused"):
            await collector.collect(producer_id)


async def test_a_registration_is_renewed_within_its_lease() -> None:
    producer_id = uuid.uuid4()
    async with Collector.opened(lease_s=1.0) as collector:
        async with producing(config(collector.address), producer_id=producer_id, produce=nothing):
            async with asyncio.timeout(DEADLINE_S):
                await collector.wait_for_registrations(4)
        assert len(collector.endpoints(producer_id)) == 1


async def test_a_registry_that_comes_later_is_found(messages: Messages) -> None:
    producer_id = uuid.uuid4()
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        port = reservation.getsockname()[1]
        async with producing(config(f"127.0.0.1:{port}"), producer_id=producer_id, produce=nothing):
            assert "another attempt in 0.25 s" in await messages.until(f"not registered at 127.0.0.1:{port}")
            assert "another attempt in 0.5 s" in await messages.until(f"not registered at 127.0.0.1:{port}")
            async with Collector.opened(port=port) as collector, asyncio.timeout(DEADLINE_S):
                await collector.wait_for_producer(producer_id)
                assert await collector.collect(producer_id) == await nothing()


async def test_a_registry_that_fails_is_asked_again(messages: Messages) -> None:
    answers = iter([503, 500, 201])

    async def register(_request: Request) -> Response:
        return JSONResponse({"message": "no database", "request_id": ""}, status_code=next(answers))

    async with registry(register) as address, producing(config(address), producer_id=uuid.uuid4(), produce=nothing):
        assert "it answers 503: no database" in await messages.until("not registered")
        assert "it answers 500: no database" in await messages.until("not registered")
        # The body of that answer says nothing of a lease: as omicron's producer, this one takes two minutes.
        assert (await messages.until("registered at")).endswith("for 120 s")


async def test_a_registry_that_refuses_is_not_asked_again_and_samples_are_still_served(messages: Messages) -> None:
    producer_id = uuid.uuid4()
    sent: list[dict[str, Any]] = []

    async def register(request: Request) -> Response:
        sent.append(msgspec.json.decode(await request.body()))
        return JSONResponse({"message": "no instances here", "request_id": "1"}, status_code=403)

    async with registry(register) as address, producing(config(address), producer_id=producer_id, produce=nothing):
        message = await messages.until("refuses the producer")
        assert message.endswith("which does not ask again: it answers 403: no instances here")
        answer = await asked(sent[0]["address"], "GET", f"/{producer_id}")
        assert msgspec.json.decode(answer.content, type=ProducerResults) == await nothing()
    assert len(sent) == 1


async def test_a_poll_for_another_producer_is_an_error_of_dropshot() -> None:
    producer_id, other = uuid.uuid4(), uuid.uuid4()
    async with (
        Collector.opened() as collector,
        producing(config(collector.address), producer_id=producer_id, produce=nothing),
    ):
        async with asyncio.timeout(DEADLINE_S):
            await collector.wait_for_producer(producer_id)
        address = collector.endpoints(producer_id)[0].address
        wrong = await asked(address, "GET", f"/{other}")
        assert wrong.status == 404
        told = msgspec.json.decode(wrong.content)
        assert told["message"] == f"Producer ID {other} is not valid, expected {producer_id}"
        assert uuid.UUID(told["request_id"])
        assert (await asked(address, "GET", "/nonsense")).status == 400
        assert (await asked(address, "POST", f"/{producer_id}")).status == 405


async def test_the_address_that_registered_last_is_polled_first_whoever_renews() -> None:
    """As in a migration: the source may renew after its target has registered, and goes then."""
    producer_id = uuid.uuid4()

    async def first() -> ProducerResults:
        return []

    async with (
        Collector.opened(lease_s=1.0) as collector,
        producing(config(collector.address), producer_id=producer_id, produce=nothing),
        asyncio.timeout(DEADLINE_S),
    ):
        await collector.wait_for_producer(producer_id)
        async with producing(config(collector.address), producer_id=producer_id, produce=first):
            while len(collector.endpoints(producer_id)) < 2:
                await collector.wait_for_registrations(collector.registrations + 1)
            await collector.wait_for_registrations(collector.registrations + 4)
            assert await collector.collect(producer_id) == []
        assert await collector.collect(producer_id) == await nothing()


GOOD: Final[dict[str, Any]] = {
    "id": str(uuid.uuid4()),
    "kind": "instance",
    "address": "127.0.0.1:1",
    "interval": {"secs": 10, "nanos": 0},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "service"}, "a producer of the kind 'service' is not collected from here"),
        ({"kind": "toaster"}, "unable to parse JSON body: Invalid enum value 'toaster'"),
        ({"id": "7"}, "unable to parse JSON body: Invalid UUID"),
        ({"interval": 10}, "unable to parse JSON body: Expected `object`, got `int`"),
        ({"address": "nowhere:port"}, "unable to parse JSON body: "),
        ({"address": "127.0.0.1:0"}, "unable to parse JSON body: "),
    ],
)
async def test_a_bad_registration_is_refused_as_dropshot_does(change: dict[str, Any], message: str) -> None:
    async with Collector.opened() as collector:
        answer = await asked(collector.address, "POST", "/metrics/producers", msgspec.json.encode(GOOD | change))
        assert answer.status == 400
        told = msgspec.json.decode(answer.content)
        assert told["message"].startswith(message)
        assert uuid.UUID(told["request_id"])
        assert collector.registrations == 0


async def test_a_good_registration_is_answered_with_its_lease() -> None:
    async with Collector.opened() as collector:
        answer = await asked(collector.address, "POST", "/metrics/producers", msgspec.json.encode(GOOD))
        assert answer.status == 201
        assert msgspec.json.decode(answer.content) == {"lease_duration": {"secs": 300, "nanos": 0}}
        assert (await asked(collector.address, "POST", "/producers", b"{}")).status == 404


async def test_an_answer_that_is_none_is_named() -> None:
    producer_id = uuid.uuid4()

    async def teapot(_request: Request) -> Response:
        return Response("short and stout", status_code=418)

    async def page(_request: Request) -> Response:
        return Response("<html>")

    for handler, message in ((teapot, "answers 418: short and stout"), (page, "answers what is no list of results")):
        with listen("127.0.0.1") as listener:
            app = Starlette(routes=[Route("/{id}", handler)])
            async with serving(app, listener), Collector.opened() as collector:
                told = GOOD | {"id": str(producer_id), "address": address_of(listener)}
                await asked(collector.address, "POST", "/metrics/producers", msgspec.json.encode(told))
                with pytest.raises(NotCollected, match=message):
                    await collector.collect(producer_id)


async def test_an_address_that_cannot_be_listened_on_is_an_error() -> None:
    with pytest.raises(OSError, match="Cannot assign"):
        async with producing(config("127.0.0.1:9", "192.0.2.1"), producer_id=uuid.uuid4(), produce=nothing):
            pass
