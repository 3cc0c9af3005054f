"""The agent's paths below ``/derived``: templates and prepared images that hosts pass on to each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...agent_api.derived import AdoptDerived, DescribeDerived, FindDerived, FoundDerived
from ...agent_api.image_recipe import ImageNeeded
from ...agent_api.messages import DerivedAdopted, ProgressMade, StreamLine
from ...engine.server.app import decoded, encoded
from ..disks.images import ImageMaker
from ..progress_stream import progress_response
from .templates import SharedTemplates

__all__ = ["DerivedRoutes"]


class DerivedRoutes:
    """Requests of clients that have a host fetch what another one has made.

    :param in_progress: holds what takes long until it has ended.
    """

    def __init__(
        self, templates: SharedTemplates, images: ImageMaker, *, in_progress: set[asyncio.Future[StreamLine]]
    ) -> None:
        self._templates = templates
        self._images = images
        self._in_progress = in_progress

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/derived/state", self._state, methods=["POST"]),
            Route("/derived/found", self._find, methods=["POST"]),
            Route("/derived/adopted", self._adopt, methods=["POST"]),
        ]

    async def _state(self, request: Request) -> Response:
        needed = (await decoded(request, DescribeDerived)).needed
        if isinstance(needed, ImageNeeded):
            return encoded(self._images.state(needed))
        return encoded(await self._templates.state(needed))

    async def _find(self, request: Request) -> Response:
        identity = (await decoded(request, FindDerived)).identity
        return encoded(FoundDerived(found=await self._images.find(identity) or await self._templates.find(identity)))

    async def _adopt(self, request: Request) -> Response:
        adopted = await decoded(request, AdoptDerived)

        async def work(tell: Callable[[StreamLine], None]) -> StreamLine:
            def progress(text: str) -> None:
                tell(ProgressMade(text))

            if isinstance(adopted.needed, ImageNeeded):
                await self._images.adopt(adopted.needed, adopted.sent, progress)
            else:
                await self._templates.adopt(adopted.needed, adopted.sent, progress=progress)
            return DerivedAdopted()

        return progress_response(work, self._in_progress)
