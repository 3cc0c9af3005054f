"""The agent's paths below ``/templates``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...agent_api.messages import Fault, ProgressMade, StreamLine, TemplateFound
from ...agent_api.templates import FreezeVm, TemplateNeeded
from ...engine.server.app import decoded
from ..progress_stream import progress_response
from .templates import Templates

__all__ = ["TemplateRoutes"]


class TemplateRoutes:
    """Requests for templates.

    :param client: returns the client that sent a request.
    :param in_progress: holds what takes long until it has ended.
    """

    def __init__(
        self,
        templates: Templates,
        *,
        client: Callable[[Request], str],
        in_progress: set[asyncio.Future[StreamLine]],
    ) -> None:
        self._templates = templates
        self._client = client
        self._in_progress = in_progress

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/templates", self._get, methods=["POST"]),
            Route("/templates/{id}/freeze", self._freeze, methods=["POST"]),
            Route("/templates/{id}/give-up", self._give_up, methods=["POST"]),
        ]

    async def _get(self, request: Request) -> Response:
        client, needed = self._client(request), await decoded(request, TemplateNeeded)

        async def work(tell: Callable[[StreamLine], None]) -> StreamLine:
            key = await self._templates.get(
                client,
                needed,
                progress=lambda text: tell(ProgressMade(text)),
                on_build_needed=tell,
            )
            return TemplateFound(key)

        return progress_response(work, self._in_progress)

    async def _freeze(self, request: Request) -> Response:
        self._templates.freeze(request.path_params["id"], await decoded(request, FreezeVm))
        return Response(status_code=204)

    async def _give_up(self, request: Request) -> Response:
        self._templates.give_up(request.path_params["id"], await decoded(request, Fault))
        return Response(status_code=204)
