"""The engine as a separate program: a server of the Propolis API for one VM at a time, as `propolis-server` is.

All its resources are recorded in a ledger below the directory of all agents: those of a killed server are removed by
``propolis gc``, and by the agent of the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from ...agent_api.agent_process import AgentConfig
from ...agent_api.boot_source import BootSource
from ...engine.server.app import SERVER_KEY, engine_app
from ...engine.server.dropshot_errors import HttpError
from ...engine.server.publisher import PublisherGone
from ...engine.server.server import VmServer
from ...engine.server.server_config import ServerConfig
from ...errors import HostError
from ...ledger.entry import Owner, command_line_tag
from ...ledger.identity import ProcessIdentity
from ...ledger.ledger import LEDGER_NAME, Ledger
from ...ledger.writer import LedgerWriter
from ...oximeter.registration import MetricsConfig
from ...propolis_api import InstanceState, InstanceStateRequested
from ...propolis_api.connection.endpoint import Endpoint
from ..http_server import http_server
from ..hypervisor import Hypervisor, HypervisorFinder
from .block_backends import BACKENDS

__all__ = ["Address", "listening", "serve"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RELAYED_BYTES: Final = 1 << 16
STOP_TIMEOUT_S: Final = 10.0
ENDS: Final = (InstanceState.DESTROYED, InstanceState.FAILED)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a server: a TCP port, or a UNIX socket.

    :param host: an IP address; empty for a UNIX socket.
    :param port: 0 for any free port.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def serve(
    config: AgentConfig,
    *,
    boot: BootSource,
    address: Address,
    vnc: Address | None,
    ready: Callable[[Address], None],
    metric_addr: str | None = None,
) -> None:
    """Serve the Propolis API until SIGTERM, SIGINT or SIGHUP; then stop the VM, and remove its resources.

    :param config: the server's run and its private directory.
    :param vnc: where the display is to be found; without it, the VM has none.
    :param ready: called with the address once it is listened on.
    :param metric_addr: where to register for metrics, which are served at the IP address of `address`; None for none.
    :raises CapabilityMissing: when there is no usable QEMU or accelerator.
    :raises HostError: when an address cannot be listened on.
    """
    directory = Path(config.directory)
    finder = HypervisorFinder(config)
    leave = _signalled()
    with (
        Ledger.open(directory / LEDGER_NAME, run=config.run) as ledger,
        listening(address) as listener,
    ):
        bound = _bound(address, listener)
        writer = LedgerWriter(ledger, Owner(f"propolis serve {bound}", ProcessIdentity.current()))
        server_config = _server_config(config, await finder.find(), writer, boot=boot, address=bound, display=bool(vnc))
        if metric_addr is not None:
            metrics = MetricsConfig(host=address.host, registry=metric_addr)
            server_config = dataclasses.replace(server_config, metrics=metrics)
        server = VmServer(server_config)
        async with contextlib.AsyncExitStack() as stack:
            if vnc is not None:
                assert server_config.display_socket is not None
                await stack.enter_async_context(_relay(vnc, server_config.display_socket))
            ready(bound)
            try:
                await _serve_until(leave, _with_server(server), listener)
                await _stop(server)
            finally:
                await server.close()
        left = ledger.entries()
    await finder.aclose()
    if left:
        logger.error("still there: %s", left)
        return
    shutil.rmtree(directory)


def _signalled() -> asyncio.Event:
    """Return an event that the first terminating signal sets."""
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, leave.set)
    return leave


def _server_config(
    config: AgentConfig,
    hypervisor: Hypervisor,
    journal: LedgerWriter,
    *,
    boot: BootSource,
    address: Address,
    display: bool,
) -> ServerConfig:
    directory = Path(config.directory) / "vm"  # the server removes it
    directory.mkdir(mode=0o700)
    return ServerConfig(
        tag=f"{command_line_tag(config.run)}server",
        qemu=hypervisor.qemu,
        accelerator=hypervisor.accelerator.name,
        boot=boot,
        directory=directory,
        log_path=directory / "qemu.log",
        journal=journal,
        display=display,
        address=_endpoint(address).address,
        backends=BACKENDS,
    )


async def _serve_until(leave: asyncio.Event, app: ASGIApp, listener: socket.socket) -> None:
    server = http_server(app)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await leave.wait()
    finally:
        server.should_exit = True
        await serving


async def _stop(server: VmServer) -> None:
    """Stop the VM as a client would, with a time limit."""
    with contextlib.suppress(HttpError, PublisherGone, TimeoutError):
        server.put_state(InstanceStateRequested.STOP)
        async with asyncio.timeout(STOP_TIMEOUT_S):
            generation = 0
            while (seen := await server.monitor(generation)).state not in ENDS:
                generation = seen.gen + 1


def _with_server(server: VmServer) -> ASGIApp:
    app = engine_app()

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SERVER_KEY] = server
        await app(scope, receive, send)

    return asgi


@contextlib.contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """Listen at an address for the length of the block.

    :raises HostError: when that is not possible.
    """
    family = socket.AF_UNIX if address.path is not None else socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            if address.path is not None:
                _remove_stale(address.path)
                listener.bind(str(address.path))
                address.path.chmod(0o600)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # asyncio sets it only for sockets that it creates. Without it a short response waits 40 ms for the
                # client's acknowledgement of the previous one.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                listener.bind((address.host, address.port))
            listener.listen(128)
        except OSError as error:
            raise HostError(
                f"{address} cannot be listened on: {error.strerror}", hint="choose another address"
            ) from None
        try:
            yield listener
        finally:
            if address.path is not None:
                address.path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove a UNIX socket that no process listens on: a killed server has left it."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


def _endpoint(address: Address) -> Endpoint:
    if address.path is None:
        return Endpoint(base_url=f"http://{address}")
    return Endpoint(base_url="http://server", uds=address.path)


def _bound(address: Address, listener: socket.socket) -> Address:
    return address if address.path is not None else Address(host=address.host, port=listener.getsockname()[1])


@contextlib.asynccontextmanager
async def _relay(address: Address, target: Path) -> AsyncIterator[None]:
    """Forward connections at a TCP address to a UNIX socket, which need not exist yet."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(str(target))
        except OSError:  # the VM is not there
            writer.close()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, inner_writer))
            group.create_task(_copy(inner_reader, writer))

    with listening(address) as listener:
        server = await asyncio.start_server(connected, sock=listener)
        try:
            yield
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(RELAYED_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
