"""The agent's paths for forks of images: below ``/image-forks``."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...agent_api.disks import ForkImage
from ...engine.server.app import decoded, encoded
from ..registry import ResourceRegistry
from .image_forks import OwnedFork

__all__ = ["ForkRoutes"]


class ForkRoutes:
    """
    :param client: returns the client that sent a request.
    """

    def __init__(self, registry: ResourceRegistry, client: Callable[[Request], str]) -> None:
        self._registry = registry
        self._client = client

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/image-forks", self._create, methods=["POST"]),
            Route("/image-forks/{id}", self._remove, methods=["DELETE"]),
            Route("/image-forks/{id}/snapshots/{name}", self._snapshot, methods=["PUT"]),
            Route("/image-forks/{id}/rollback/{name}", self._rollback, methods=["PUT"]),
            Route("/image-forks/{id}/sha256", self._sha256, methods=["GET"]),
            Route("/image-forks/{id}/content/{offset:int}/{length:int}", self._read, methods=["GET"]),
            Route("/image-forks/{id}/content/{offset:int}", self._write, methods=["PUT"]),
        ]

    async def _create(self, request: Request) -> Response:
        client = self._client(request)
        fork = await self._registry.disks.fork_image(client, await decoded(request, ForkImage))
        if await request.is_disconnected():
            await self._registry.disks.remove_disk(client, fork.id)
        return encoded(fork.described, 201)

    async def _remove(self, request: Request) -> Response:
        await self._registry.disks.remove_disk(self._client(request), request.path_params["id"])
        return Response(status_code=204)

    async def _snapshot(self, request: Request) -> Response:
        await self._fork(request).snapshot(request.path_params["name"])
        return Response(status_code=204)

    async def _rollback(self, request: Request) -> Response:
        await self._fork(request).rollback(request.path_params["name"])
        return Response(status_code=204)

    async def _sha256(self, request: Request) -> Response:
        return encoded(await self._fork(request).sha256())

    async def _read(self, request: Request) -> Response:
        data = await self._fork(request).read(request.path_params["offset"], request.path_params["length"])
        return Response(data, media_type="application/octet-stream")

    async def _write(self, request: Request) -> Response:
        await self._fork(request).write(request.path_params["offset"], await request.body())
        return Response(status_code=204)

    def _fork(self, request: Request) -> OwnedFork:
        return self._registry.disks.find_fork(self._client(request), request.path_params["id"])
