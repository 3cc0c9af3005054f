"""Decode an agent's HTTP responses: results and errors."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ...agent_api.agent_process import LOG_NAME
from ...agent_api.messages import Fault
from ...errors import AgentError, PropolisError
from ...propolis_api.connection.http import HttpAnswer
from ...propolis_api.failure import api_error

__all__ = ["BASE_URL", "ResponseDecoder"]

T = TypeVar("T")
BASE_URL: Final = "http://agent"
QUOTED_BYTES: Final = 2000


class ResponseDecoder:
    """Decodes the responses of one agent, for the client with an event loop and for the one without.

    Another program, or an agent of another version, may be listening on the socket: any such response becomes an error
    that shows the text.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def result(self, answer: HttpAnswer, kind: type[T], operation: str) -> T:
        """Return the decoded response.

        :raises PropolisError: the error that the agent reports.
        """
        if not answer.is_success:
            raise self.error(answer.status, answer.content, operation)
        return self.decode(answer.content or b"null", kind, operation)

    def decode(self, content: bytes, kind: type[T], operation: str) -> T:
        """
        :raises AgentError: when it is of another kind.
        """
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError as error:
            raise self._failed(
                f"answered {operation} with what is no {_name(kind)} ({error}): {_text(content)}"
            ) from None

    def error(self, status: int, content: bytes, operation: str) -> PropolisError:
        """Return the error for a response other than 2xx."""
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(content, type=Fault).to_error()
        if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_IMPLEMENTED):
            return api_error(status, content, vm=None, operation=operation)
        return self._failed(f"answered {status} to {operation}: {_text(content)}")

    def lost(self, error: object) -> AgentError:
        """Return the error for a missing or truncated response."""
        return self._failed(f"does not answer: {error or type(error).__name__}")

    def _failed(self, how: str) -> AgentError:
        return AgentError(
            f"the agent behind {self._socket} {how}", hint=f"its log is {self._socket.with_name(LOG_NAME)}"
        )


def _text(content: bytes) -> str:
    return content[:QUOTED_BYTES].decode(errors="replace").strip() or "nothing"


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
