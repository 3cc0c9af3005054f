"""The agent's routes for replicated volumes: below ``/volumes``, and extensions of the Propolis API for a VM."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...agent_api.disks import AttachDisk
from ...agent_api.volumes import CreateVolume, DownstairsFault
from ...engine.server.app import decoded, encoded
from ...engine.server.dropshot_errors import ErrorResponse, HttpError
from ...engine.server.server import VmServer
from ...propolis_api import InstanceVCRReplace
from ..registry import ResourceRegistry

__all__ = ["VolumeRoutes"]


class VolumeRoutes:
    """
    :param client: returns the client that sent a request.
    """

    def __init__(self, registry: ResourceRegistry, client: Callable[[Request], str]) -> None:
        self._registry = registry
        self._client = client

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/volumes", self._list, methods=["GET"]),
            Route("/volumes", self._create, methods=["POST"]),
            Route("/volumes/{id}", self._get, methods=["GET"]),
            Route("/volumes/{id}", self._remove, methods=["DELETE"]),
            Route("/volumes/{id}/downstairs", self._add_downstairs, methods=["POST"]),
            Route("/volumes/{id}/downstairs/{address}/fault", self._fault, methods=["POST"]),
            Route("/vms/{id}/disks", self._attach, methods=["POST"]),
            Route("/vms/{id}/disks/{backend}/vcr", self._replace_unchecked, methods=["PUT"]),
        ]

    async def _list(self, _request: Request) -> Response:
        return encoded(self._registry.disks.list_volumes())

    async def _create(self, request: Request) -> Response:
        client = self._client(request)
        created = await self._registry.disks.create_volume(client, await decoded(request, CreateVolume))
        if await request.is_disconnected():
            await self._registry.disks.remove_volume(client, created.id)
        return encoded(created, 201)

    async def _get(self, request: Request) -> Response:
        return encoded(self._registry.disks.find_volume(self._client(request), request.path_params["id"]).listed())

    async def _remove(self, request: Request) -> Response:
        await self._registry.disks.remove_volume(self._client(request), request.path_params["id"])
        return Response(status_code=204)

    async def _add_downstairs(self, request: Request) -> Response:
        address = await self._registry.disks.add_downstairs(self._client(request), request.path_params["id"])
        return encoded(address, 201)

    async def _fault(self, request: Request) -> Response:
        volume = self._registry.disks.find_volume(self._client(request), request.path_params["id"])
        downstairs = volume.find(request.path_params["address"])
        await volume.fault(downstairs, await decoded(request, DownstairsFault))
        return Response(status_code=204)

    async def _attach(self, request: Request) -> Response:
        message = await decoded(request, AttachDisk)
        return encoded(await self._server(request).attach(message.components))

    async def _replace_unchecked(self, request: Request) -> Response:
        new = await decoded(request, InstanceVCRReplace)
        backend = request.path_params["backend"]
        return encoded(await self._server(request).replace_volume(backend, new.vcr_json, checked=False))

    def _server(self, request: Request) -> VmServer:
        vm = self._registry.find_vm(request.path_params["id"])
        if vm is None or vm.engine is None:
            raise HttpError(ErrorResponse(status=404, message="the engine has no such VM"))
        return vm.engine
