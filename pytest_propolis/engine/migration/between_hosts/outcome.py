"""Query the source for the outcome of a migration whose connection was lost during the hand-over."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final
from uuid import UUID

import msgspec

from ....agent_api.migration_report import MigrationSide
from ....propolis_api.connection.endpoint import Endpoint
from ....propolis_api.connection.http import HttpClient
from ....propolis_api.connection.transport import http_client

__all__ = ["was_handed_over"]

LIMIT_S: Final = 10.0
INTERVAL_S: Final = 0.1


async def was_handed_over(address: str, migration_id: UUID) -> bool:
    """Return whether the source has handed its guest over; False if it does not confirm that in time.

    :param address: as in `FromMigration.src_addr`.
    """
    try:
        async with asyncio.timeout(LIMIT_S), http_client(Endpoint.at(address)) as client:
            while True:
                side = await _side(client, migration_id)
                if side is not None and (side.handed_over or side.failure):
                    return side.handed_over
                await asyncio.sleep(INTERVAL_S)  # it has not noticed the loss yet
    except (OSError, LookupError):  # TimeoutError is the first
        return False


async def _side(client: HttpClient, migration_id: UUID) -> MigrationSide | None:
    """Return the source's current answer; None if it cannot be reached now.

    :raises LookupError: when it has no such migration.
    """
    try:
        answer = await client.request("GET", f"/instance/migrate/{migration_id}/outcome", timeout_s=LIMIT_S)
    except TimeoutError:
        raise
    except OSError:
        return None
    if answer.status == HTTPStatus.NOT_FOUND:
        raise LookupError
    return msgspec.json.decode(answer.content, type=MigrationSide) if answer.is_success else None
