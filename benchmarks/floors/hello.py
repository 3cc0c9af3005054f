"""A minimal HTTP server: a process that says hello over a socket, with the agent's uvicorn."""

from __future__ import annotations

import contextlib
import socket
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
async def hello_client(directory: Path | None) -> AsyncIterator[HttpClient]:
    """Start such a process, and open a client of it for the length of the block.

    :param directory: for its UNIX socket; None has it listen on a TCP port of the loopback interface.
    """
    with socket.socket(socket.AF_INET if directory is None else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if directory is None else str(directory / "hello.sock"))
        if directory is None:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.listen()
        descriptor = listener.fileno()
        command = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", __name__, str(descriptor)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[descriptor])
        if directory is None:
            endpoint = Endpoint(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        else:
            endpoint = Endpoint(base_url="http://hello", uds=directory / "hello.sock")
    try:
        async with http_client(endpoint) as client:
            await client.request("GET", "/", timeout_s=START_TIMEOUT_S)
            yield client
    finally:
        process.kill()
        process.wait()


async def _hello(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


if __name__ == "__main__":
    uvicorn.run(_hello, fd=int(sys.argv[1]), log_config=None, access_log=False, lifespan="off")
