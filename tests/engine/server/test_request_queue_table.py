"""The request queue answers as propolis-server's does: a table of conditions and requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from request_queue_scene import Scene, outcome_of

from pytest_propolis.engine.request_queue import (
    DenyReason,
    MigrateAsSource,
    Reboot,
    ReplaceVolume,
    Request,
    Run,
    Stop,
)

TABLE = """
condition             | Run             | Stop   | Reboot                    | Migrate                | Volume
----------------------+-----------------+--------+---------------------------+------------------------+---------------
not started           | queue           | queue  | InstanceNotActive         | InstanceNotActive      | queue
start queued          | ignore          | queue  | StartInProgress           | queue                  | queue
starting              | ignore          | queue  | StartInProgress           | queue                  | queue
migrating in          | ignore          | queue  | StartInProgress           | queue                  | queue
running               | ignore          | queue  | queue                     | queue                  | queue
reboot queued         | ignore          | queue  | ignore                    | queue                  | queue
rebooting             | ignore          | queue  | ignore                    | queue                  | queue
rebooting by itself   | ignore          | queue  | ignore                    | queue                  | queue
migration held        | ignore          | queue  | InvalidForMigrationSource | AlreadyMigrationSource | queue
migration queued      | ignore          | queue  | InvalidForMigrationSource | AlreadyMigrationSource | queue
migrating out         | ignore          | queue  | InvalidForMigrationSource | AlreadyMigrationSource | queue
migrating out + stop  | HaltPending     | ignore | InvalidForMigrationSource | AlreadyMigrationSource | queue
migration held + stop | HaltPending     | ignore | InvalidForMigrationSource | AlreadyMigrationSource | queue
not started + stop    | HaltPending     | ignore | HaltPending               | HaltPending            | queue
start queued + stop   | HaltPending     | ignore | HaltPending               | HaltPending            | queue
starting + stop       | HaltPending     | ignore | HaltPending               | HaltPending            | queue
running + stop        | HaltPending     | ignore | HaltPending               | HaltPending            | queue
rebooting + stop      | HaltPending     | ignore | HaltPending               | HaltPending            | queue
stopping              | HaltPending     | ignore | HaltPending               | HaltPending            | queue
stopping by itself    | HaltPending     | ignore | HaltPending               | HaltPending            | queue
stopped               | Halted          | ignore | Halted                    | Halted                 | Halted
migrated out          | MigratedOut     | ignore | MigratedOut               | MigratedOut            | MigratedOut
failed                | InstanceFailed  | ignore | InstanceFailed            | InstanceFailed         | InstanceFailed
"""

REQUESTS: dict[str, Callable[[], Request]] = {
    "Run": Run,
    "Stop": Stop,
    "Reboot": Reboot,
    "Migrate": lambda: MigrateAsSource("another migration"),
    "Volume": lambda: ReplaceVolume("disk-backend", "{}"),
}


def cells() -> Iterator[tuple[str, str, str]]:
    header, _, *rows = (line.split("|") for line in TABLE.strip().splitlines())
    names = [name.strip() for name in header[1:]]
    for condition, *outcomes in rows:
        for name, outcome in zip(names, outcomes, strict=True):
            yield condition.strip(), name, outcome.strip()


@pytest.mark.parametrize(("condition", "request_name", "outcome"), list(cells()))
def test_table(condition: str, request_name: str, outcome: str) -> None:
    scene = Scene(condition)
    assert outcome_of(scene.queue, REQUESTS[request_name]()) == outcome


def test_the_table_has_every_reason_and_every_request() -> None:
    outcomes = {outcome for _, _, outcome in cells()}
    assert outcomes == {"queue", "ignore"} | {reason.name for reason in DenyReason}
    assert {name for _, name, _ in cells()} == REQUESTS.keys()


def test_requests_know_what_they_change() -> None:
    changes_state = {name: make().is_state_change for name, make in REQUESTS.items()}
    assert changes_state == {"Run": True, "Stop": True, "Reboot": True, "Migrate": True, "Volume": False}


def test_a_volume_request_does_not_show_its_keys() -> None:
    assert "secret" not in repr(ReplaceVolume("disk-backend", '{"key": "secret"}', reply="secret"))


# Order
