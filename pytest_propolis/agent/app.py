"""The agent's HTTP application: lifelines, images, disks, and a Propolis API for each VM below ``/vms/{id}``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from ..agent_api.agent_process import CLIENT_HEADER, PID_HEADER, AgentConfig
from ..agent_api.disks import CreateDisk
from ..agent_api.image_recipe import ImageNeeded
from ..agent_api.messages import (
    AgentInfo,
    CreateVm,
    Departed,
    ImagesFetched,
    Keep,
    ProgressMade,
    ResourceIds,
    StreamLine,
    VmCreated,
    run_of_client,
)
from ..agent_api.templates import ForkVm
from ..engine.server.app import SERVER_KEY, decoded, encoded, engine_app, error_response
from ..engine.server.dropshot_errors import ErrorResponse, HttpError, bad_request
from ..ledger.ledger import Ledger
from ..storage.user_directories import template_directory
from .coordination.service import CoordinationService
from .disks.disk_images import allowed_image_directories
from .disks.fork_routes import ForkRoutes
from .disks.images import ImageMaker
from .disks.volume_routes import VolumeRoutes
from .exception_handlers import EXCEPTION_HANDLERS
from .hypervisor import HypervisorFinder
from .lingering import Lingering
from .networks.network_routes import NetworkRoutes
from .networks.networks import Networks
from .peers.files import SharedFiles
from .peers.peers import Peers
from .programs.program_routes import Programs
from .progress_stream import cancel_once, progress_response
from .registry import ResourceRegistry
from .sharing.routes import DerivedRoutes
from .sharing.templates import SharedTemplates
from .templates.routes import TemplateRoutes
from .templates.templates import Templates
from .vm_extensions import VmExtensions

__all__ = ["AgentApp"]


logger = logging.getLogger(__name__)


class AgentApp:
    """The agent as an ASGI application.

    :param on_empty: called when the last client has disconnected and everything is released.
    """

    def __init__(self, config: AgentConfig, ledger: Ledger, *, on_empty: Callable[[], None]) -> None:
        self._config = config
        self._on_empty = on_empty
        self._leaving = False
        self._expiries: set[asyncio.Task[None]] = set()
        self._stays_ended: set[asyncio.Task[None]] = set()
        self._works: set[asyncio.Future[StreamLine]] = set()
        self._creations: set[asyncio.Task[Any]] = set()
        """Requests that create a resource, and remove it if their client has disconnected meanwhile."""
        self._hypervisors = HypervisorFinder(config)
        self._images = ImageMaker(config, ledger, self._hypervisors)
        self._engine = engine_app()
        self._coordination = CoordinationService()
        self._lingering = Lingering(config, self._hypervisors, over=self._stay_no_longer)
        self.registry = ResourceRegistry(config, ledger, self._hypervisors, lingers=lambda: self._lingering.is_wanted)
        self._networks = Networks(Path(config.directory), writer=self.registry.writer_of)
        self._programs = Programs(
            Path(config.directory), writer=lambda request: self.registry.writer_of(_client(request))
        )
        self._peers = Peers(
            Path(config.directory),
            app=self._serve_peer,
            writer=self.registry.writer_of,
            client=self._live_client,
        )
        allowed = allowed_image_directories(config)
        self._templates = Templates(
            self._hypervisors,
            self.registry,
            directory=template_directory(config.artifact_dir),
            allowed=allowed,
        )
        self._template_routes = TemplateRoutes(self._templates, client=_client, in_progress=self._works)
        shared = SharedTemplates(self._templates, self._hypervisors, allowed=allowed)
        self._derived = DerivedRoutes(shared, self._images, in_progress=self._works)
        self.asgi = Starlette(
            routes=self._routes(),
            exception_handlers=EXCEPTION_HANDLERS,
        )

    def _routes(self) -> list[BaseRoute]:
        return [
            Route("/agent", self._info),
            Mount("/lifeline", app=self._lifeline),
            Route("/clients/{id}/departure", self._await_departure),
            Route("/images", self._get_image, methods=["POST"]),
            Route("/forks", self._fork, methods=["POST"]),
            Route("/disks", self._create_disk, methods=["POST"]),
            Route("/disks/{id}", self._remove_disk, methods=["DELETE"]),
            Route("/removal", self._remove, methods=["POST"]),
            Route("/kept", self._list_kept, methods=["GET"]),
            Route("/kept", self._keep, methods=["POST"]),
            Route("/kept", self._release_kept, methods=["DELETE"]),
            Route("/vms", self._list_vms, methods=["GET"]),
            Route("/vms", self._create_vm, methods=["POST"]),
            Route("/vms/{id}", self._remove_vm, methods=["DELETE"]),
            *ForkRoutes(self.registry, _client).routes,
            *VmExtensions(self.registry.find_vm).routes,
            *VolumeRoutes(self.registry, _client).routes,
            *self._coordination.routes,
            *self._lingering.routes,
            *NetworkRoutes(self._networks, self._live_client).routes,
            *self._programs.routes,
            *self._peers.routes,
            *self._template_routes.routes,
            *self._derived.routes,
            *SharedFiles(self._works, shortcut=self._peers.shortcut).routes,
            Mount("/vms/{id}", app=self._propolis_api),
        ]

    @contextlib.contextmanager
    def _creating(self) -> Iterator[None]:
        """Make `close` wait until the block ends."""
        request = asyncio.current_task()
        assert request is not None
        self._creations.add(request)
        try:
            yield
        finally:
            self._creations.discard(request)

    @property
    def is_unused(self) -> bool:
        """Whether it has no clients, keeps no resources, and does not linger."""
        return self.registry.is_empty and not self._lingering.is_wanted

    async def close(self) -> None:
        self._leaving = True
        self._lingering.close()
        for task in self._stays_ended:
            task.cancel()
        await self._programs.close()
        self._coordination.close()
        for expiry in self._expiries:
            expiry.cancel()
        for work in self._works:
            cancel_once(work)
        await self.registry.release_all()
        await self._networks.close()
        await self._peers.close()
        while in_progress := self._works | self._creations:
            await asyncio.wait(in_progress)
        self.registry.close()
        self._templates.close()
        await self._hypervisors.aclose()

    async def _info(self, _request: Request) -> Response:
        hypervisor = await self._hypervisors.find()
        return encoded(
            AgentInfo(
                pid=os.getpid(),
                run=self._config.run,
                version=version("pytest-propolis"),
                qemu=str(hypervisor.qemu.system),
                qemu_version=".".join(map(str, hypervisor.qemu.version)),
                accelerator=hypervisor.accelerator.name,
                accelerator_reason=hypervisor.accelerator.reason,
                standing_by=self.registry.standby.ready,
            )
        )

    async def _lifeline(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the client's lifeline; when the connection ends for any reason, release the client's resources."""
        request = Request(scope)
        client = _client(request)
        if self._leaving or not self._may_serve(client):
            await Response(status_code=503)(scope, receive, send)
            return
        self._lingering.join(request)
        await self.registry.admit(client, pid=int(request.headers.get(PID_HEADER, 0)))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"alive\n", "more_body": True})
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            await asyncio.shield(self._lifeline_ended(client))

    async def _lifeline_ended(self, client: str) -> None:
        await self.registry.drop_lifeline(client)
        if not self.registry.has_client(client):
            await self._release_connections(client)
        self._leave_if_empty()

    async def _client_left(self, client: str) -> None:
        await self.registry.release(client)
        await self._release_connections(client)
        self._leave_if_empty()

    async def _release_connections(self, client: str) -> None:
        """Release a client's networks, and connections to other agents unless kept networks may use them."""
        await self._networks.release(client)
        if not self._networks.has_any_of(self.registry.kept_clients):
            await self._peers.release_all_but(self.registry.has_client)

    def _may_serve(self, client: str) -> bool:
        """Return whether a client may join; an agent that is out of date leaves as soon as it has no clients."""
        if self.registry.has_client_of_run(run_of_client(client)):
            return True  # a run that has begun here goes on here
        if self._lingering.is_outdated():
            self._lingering.stop()
            return False
        self._templates.forget_failures()
        return True

    def _stay_no_longer(self) -> None:
        if self.registry.is_empty:
            self._leave_if_empty()
        elif not self.registry.has_lifelines:
            ending = asyncio.create_task(self.registry.standby.rest())  # what was kept needs none
            self._stays_ended.add(ending)
            ending.add_done_callback(self._stays_ended.discard)

    def _leave_if_empty(self) -> None:
        if self.registry.has_lifelines or self._lingering.begin():
            return
        if self.registry.is_empty and not self._leaving:
            self._leaving = True
            self._on_empty()

    async def _await_departure(self, request: Request) -> Response:
        """Respond once everything that a client owned is released; for clients that have just closed their lifeline."""
        await self.registry.released(request.path_params["id"])
        return encoded(Departed(agent_stays=not self.registry.is_empty or self._lingering.is_wanted))

    async def _list_kept(self, _request: Request) -> Response:
        await self.registry.refresh()
        return encoded(self.registry.list_kept())

    async def _keep(self, request: Request) -> Response:
        message = await decoded(request, Keep)
        await self.registry.refresh()
        kept = self.registry.keep(_client(request), message)
        if kept.vms:
            self._networks.transfer(message.resources.networks, kept.id)
        expiry = asyncio.create_task(self._expire(kept.id, message.ttl_s))
        self._expiries.add(expiry)
        expiry.add_done_callback(self._expiries.discard)
        return encoded(kept, 201)

    async def _expire(self, key: str, ttl_s: float) -> None:
        await asyncio.sleep(ttl_s)
        await self._client_left(key)

    async def _release_kept(self, _request: Request) -> Response:
        kept = self.registry.list_kept()
        await asyncio.gather(*(self._client_left(item.id) for item in kept))
        return encoded(kept)

    async def _get_image(self, request: Request) -> Response:
        needed = await decoded(request, ImageNeeded)

        async def work(tell: Callable[[StreamLine], None]) -> StreamLine:
            return ImagesFetched(await self._images.get(needed, lambda text: tell(ProgressMade(text))))

        return progress_response(work, self._works)

    async def _fork(self, request: Request) -> Response:
        client = _client(request)
        message = await decoded(request, ForkVm)
        with self._creating():
            forked = await self._templates.fork(client, message)
            return await _created(request, forked, lambda: self.registry.remove_vm(client, forked.id))

    async def _create_disk(self, request: Request) -> Response:
        client = _client(request)
        message = await decoded(request, CreateDisk)
        with self._creating():
            disk = await self.registry.disks.create_disk(client, message)
            return await _created(request, disk, lambda: self.registry.disks.remove_disk(client, disk.id))

    async def _remove(self, request: Request) -> Response:
        resources = await decoded(request, ResourceIds)
        await self.registry.remove(_client(request), resources)
        for network_id in resources.networks:
            await self._networks.remove(network_id)
        return Response(status_code=204)

    async def _remove_disk(self, request: Request) -> Response:
        await self.registry.disks.remove_disk(_client(request), request.path_params["id"])
        return Response(status_code=204)

    async def _list_vms(self, _request: Request) -> Response:
        await self.registry.refresh()
        return encoded(self.registry.list_vms())

    async def _create_vm(self, request: Request) -> Response:
        client = _client(request)
        message = await decoded(request, CreateVm)
        with self._creating():
            vm = await self.registry.create_vm(client, message)
            created = VmCreated(id=vm.id, path=f"/vms/{vm.id}", port=vm.port)
            return await _created(request, created, lambda: self.registry.remove_vm(client, vm.id))

    async def _remove_vm(self, request: Request) -> Response:
        await self.registry.remove_vm(_client(request), request.path_params["id"])
        return Response(status_code=204)

    async def _serve_peer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.asgi(scope, receive, send)

    def _live_client(self, request: Request) -> str:
        """
        :raises AgentError: when the client that sent a request has no lifeline.
        """
        client = _client(request)
        self.registry.require_client(client)
        return client

    async def _propolis_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        vm = self.registry.find_vm(scope["path_params"]["id"])
        if vm is None or vm.engine is None:
            await _answer_missing_vm(scope, receive, send)
            return
        scope[SERVER_KEY] = vm.engine
        await self._engine(scope, receive, send)


def _client(request: HTTPConnection) -> str:
    client = request.headers.get(CLIENT_HEADER)
    if not client:
        raise HttpError(bad_request(f"the header {CLIENT_HEADER} is missing"))
    return client


async def _created(request: Request, answer: object, undo: Callable[[], Awaitable[None]]) -> Response:
    """Respond with the created resource; remove it if the client has disconnected, since its id is then unknown."""
    if await request.is_disconnected():
        await undo()
    return encoded(answer, 201)


async def _answer_missing_vm(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1001, "reason": "no such VM"})
    else:
        await error_response(ErrorResponse(status=404, message="no such VM"))(scope, receive, send)
