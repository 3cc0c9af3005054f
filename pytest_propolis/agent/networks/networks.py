"""The networks of an agent, by client."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from ...agent_api.networks import MOST_PORTS, AddPort, ConnectNetworks, CreateNetwork, MovePort, NetworkFaults
from ...errors import AgentError
from ...ledger.entry import Entry, Owner
from ...ledger.writer import LedgerWriter
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.transport import open_websocket
from .dhcp import DhcpServer
from .port import Port
from .router import RouterAdvertiser
from .switch import Switch
from .trunk import Trunk

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["Network", "Networks"]

RECONNECT_S: Final = 0.5
PART_HEADER: Final = "propolis-network-part"
"""The id of the part that opens a trunk, in its request."""


class Network:
    """One network's part on this host.

    :param directory: a private directory for the sockets of its ports.
    :param writer: records them in the ledger.
    """

    def __init__(self, request: CreateNetwork, *, client: str, directory: Path, writer: LedgerWriter) -> None:
        self.id = secrets.token_hex(8)
        self.name = request.name
        self.client = client
        self.switch = Switch()
        self._directory = directory
        self._writer = writer
        self._sockets: list[Entry] = []
        self._ports: dict[int, Port] = {}
        self._trunks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def add_port(self, request: AddPort) -> Path:
        """Return the socket of a port; create it if it does not exist.

        :raises AgentError: when there can be no such port.
        """
        if not 1 <= request.number <= MOST_PORTS:
            raise AgentError(f"network {self.name!r} has ports 1 to {MOST_PORTS}, and {request.number} is none")
        if request.number not in self._ports:
            path = self._directory / f"net-{self.id[:8]}-{request.number}"
            port = self._ports[request.number] = Port(
                self.switch,
                number=request.number,
                part=self.id,
                path=path,
                dhcp=DhcpServer(request.dhcp_address) if request.dhcp_address else None,
                router=RouterAdvertiser(request.prefix) if request.prefix else None,
            )
            try:
                with self._writer.creating("socket", path) as entry:
                    await port.open()
                self._sockets.append(entry)
            except OSError as error:
                del self._ports[request.number]
                raise AgentError(f"network {self.name!r}: {path}: {error.strerror or error}") from None
            if self._closed:  # meanwhile
                port.close()
                raise AgentError(f"network {self.name!r} has been removed")
        return self._ports[request.number].path

    def move_port(self, number: int, request: MovePort) -> None:
        self.switch.move_port(number, request.part)

    def order(self, faults: NetworkFaults) -> None:
        self.switch.order(faults)

    async def connect(self, request: ConnectNetworks) -> None:
        """Connect to the part on another host, and again whenever the connection is lost.

        :raises AgentError: when it does not answer.
        """
        try:
            websocket = await self._open(request)
        except (OSError, EOFError, WebSocketException, ValueError, LookupError) as error:
            reason = str(error) or type(error).__name__
            raise AgentError(f"network {self.name!r}: {request.address} does not answer: {reason}") from None
        if self._closed:  # meanwhile
            await websocket.close()
            raise AgentError(f"network {self.name!r} has been removed")
        task = asyncio.create_task(self._keep_connected(request, websocket))
        self._trunks.add(task)
        task.add_done_callback(self._trunks.discard)

    async def _keep_connected(self, request: ConnectNetworks, websocket: ClientConnection) -> None:
        with contextlib.suppress(LookupError):
            while True:
                await Trunk(self.switch, _Opened(websocket), part=request.part).forward_frames()
                websocket = await self._reopen(request)

    async def _reopen(self, request: ConnectNetworks) -> ClientConnection:
        """Try until the part answers.

        :raises LookupError: when the network has been removed there.
        """
        while True:
            try:
                return await self._open(request)
            except (OSError, EOFError, WebSocketException):
                await asyncio.sleep(RECONNECT_S)

    async def _open(self, request: ConnectNetworks) -> ClientConnection:
        """
        :raises LookupError: when the agent there has no such network.
        """
        try:
            return await open_websocket(Endpoint.at(request.address), "/trunk", {}, headers={PART_HEADER: self.id})
        except InvalidStatus:
            raise LookupError("it has no such network") from None

    async def accept(self, websocket: WebSocket) -> None:
        """Serve the part on another host until it disconnects, or this is closed."""
        part = websocket.headers.get(PART_HEADER, "")
        task = asyncio.create_task(Trunk(self.switch, _Accepted(websocket), part=part).forward_frames())
        self._trunks.add(task)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            self._trunks.discard(task)

    def transfer(self, client: str, owner: Owner) -> None:
        """Make another client the owner."""
        self.client = client
        self._writer.transfer_ownership(owner)

    async def close(self) -> None:
        """Remove all ports and trunks. Idempotent."""
        self._closed = True
        for port in self._ports.values():
            port.close()
        sockets, self._sockets = self._sockets, []
        for entry in sockets:
            self._writer.gone(entry)
        self._ports.clear()
        for task in self._trunks:
            task.cancel()
        await asyncio.gather(*self._trunks, return_exceptions=True)


class Networks:
    """All networks of an agent.

    :param directory: the agent's.
    :param writer: returns what records the sockets of a client.
    """

    def __init__(self, directory: Path, *, writer: Callable[[str], LedgerWriter]) -> None:
        self._directory = directory
        self._writer = writer
        self._networks: dict[str, Network] = {}

    def create(self, client: str, request: CreateNetwork) -> Network:
        network = Network(request, client=client, directory=self._directory, writer=self._writer(client))
        self._networks[network.id] = network
        return network

    def find(self, network_id: str) -> Network | None:
        return self._networks.get(network_id)

    async def remove(self, network_id: str) -> None:
        """Remove a network. Idempotent."""
        if network := self._networks.pop(network_id, None):
            await network.close()

    def transfer(self, network_ids: Iterable[str], client: str) -> None:
        """Make another client the owner of networks. Skip any that are already gone."""
        for network_id in network_ids:
            if network := self._networks.get(network_id):
                network.transfer(client, self._writer(client).owner)

    def has_any_of(self, clients: Container[str]) -> bool:
        """Return whether one of these clients has a network."""
        return any(network.client in clients for network in self._networks.values())

    async def release(self, client: str) -> None:
        """Remove the networks of a client, whose VMs have ended."""
        for network in [network for network in self._networks.values() if network.client == client]:
            await self.remove(network.id)

    async def close(self) -> None:
        for network_id in list(self._networks):
            await self.remove(network_id)


class _Opened:
    """The end of a websocket on the side that opened it."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    async def send(self, message: bytes) -> None:
        try:
            await self._websocket.send(message)
        except ConnectionClosed as error:
            raise ConnectionError(str(error)) from None

    async def receive(self) -> bytes:
        try:
            message = await self._websocket.recv()
        except ConnectionClosed as error:
            raise ConnectionError(str(error)) from None
        return message if isinstance(message, bytes) else message.encode()

    async def close(self) -> None:
        await self._websocket.close()


class _Accepted:
    """The end of a websocket on the side that accepted it."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, message: bytes) -> None:
        try:
            await self._websocket.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError) as error:
            raise ConnectionError(str(error)) from None

    async def receive(self) -> bytes:
        try:
            return await self._websocket.receive_bytes()
        except (WebSocketDisconnect, RuntimeError, KeyError) as error:
            raise ConnectionError(str(error)) from None

    async def close(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._websocket.close()
