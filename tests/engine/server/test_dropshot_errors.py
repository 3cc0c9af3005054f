"""The error bodies of propolis-server, verbatim."""

from __future__ import annotations

import pytest

from pytest_propolis.engine.request_queue import DenyReason
from pytest_propolis.engine.server import dropshot_errors as errors

GONE = "VM destroyed before request could be handled"
DENIED = "instance state change not allowed: "


@pytest.mark.parametrize(
    ("answer", "status", "error_code", "message"),
    [
        (errors.NO_INSTANCE, 424, "NoInstance", "Server not initialized (no instance)"),
        (errors.ALREADY_INITIALIZED, 409, "AlreadyInitialized", "instance already initialized"),
        (errors.VM_DESTROYED, 410, GONE, "Gone"),
        (errors.never_published(7), 410, "NoInstance", "No instance present; will never reach generation 7"),
        (errors.backend_not_found("b"), 404, "No crucible backend for id b", "Not Found"),
        (errors.crucible_error("no"), 400, "no", "no"),
        (errors.bad_request("why"), 400, None, "why"),
        (errors.initialization_failed("why"), 500, "Internal", "VM initialization failed: why"),
        (
            errors.state_change_denied(DenyReason.HaltPending),
            403,
            DENIED + "Instance is preparing to stop",
            "Forbidden",
        ),
        (
            errors.state_change_denied(DenyReason.InstanceFailed),
            403,
            DENIED + "Instance failed to start or halted due to a failure",
            "Forbidden",
        ),
    ],
)
def test_error(answer: errors.ErrorResponse, status: int, error_code: str | None, message: str) -> None:
    assert (answer.status, answer.error_code, answer.message) == (status, error_code, message)


def test_the_body_has_what_the_api_demands() -> None:
    assert errors.VM_DESTROYED.body(request_id="r") == {"request_id": "r", "error_code": GONE, "message": "Gone"}


def test_the_body_has_no_error_code_where_there_is_none() -> None:
    assert errors.bad_request("why").body(request_id="r") == {"request_id": "r", "message": "why"}
