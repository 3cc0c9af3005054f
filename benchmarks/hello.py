"""The least that an HTTP server can do: a process that says hello over a UNIX socket, with the agent's uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send

from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.propolis_api.connection.http import HttpClient
from pytest_propolis.propolis_api.connection.transport import http_client

__all__ = ["hello_client"]

START_TIMEOUT_S = 30.0


@contextlib.asynccontextmanager
async def hello_client(directory: Path) -> AsyncIterator[HttpClient]:
    """A client of such a process, which ends with the block."""
    socket = directory / "hello.sock"
    command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", __name__, str(socket)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        async with http_client(Endpoint(base_url="http://hello", uds=socket)) as client:
            await _until_up(client)
            yield client
    finally:
        process.kill()
        process.wait()


async def _until_up(client: HttpClient) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(OSError):
                await client.request("GET", "/", timeout_s=START_TIMEOUT_S)
                return
            await asyncio.sleep(0.01)


async def _hello(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


if __name__ == "__main__":
    uvicorn.run(_hello, uds=sys.argv[1], log_config=None, access_log=False, lifespan="off")
