"""The request queue: propolis-server's table of conditions and requests, the order of service, and the ends of a VM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from pytest_propolis.engine.request_queue import (
    DenyReason,
    MigrateAsSource,
    QueueState,
    Reboot,
    ReplaceVolume,
    Request,
    RequestDenied,
    RequestQueue,
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


class Scene:
    """A queue that is brought into a condition word by word, with a note of what it discarded."""

    def __init__(self, condition: str = "not started") -> None:
        self.discarded: list[Request] = []
        self.queue = RequestQueue(discard=self.discarded.append, migrating_in=condition == "migrating in")
        self.contexts: list[object] = []
        state, _, stop = condition.partition(" + ")
        getattr(self, state.replace(" ", "_"))()
        if stop:
            self.queue.enqueue(Stop())

    def not_started(self) -> None:
        assert self.queue.state is QueueState.NotStarted

    def migrating_in(self) -> None:
        assert self.queue.state is QueueState.StartPending

    def start_queued(self) -> None:
        self.queue.enqueue(Run())

    def starting(self) -> None:
        self.start_queued()
        assert self.queue.pop() == Run()

    def running(self) -> None:
        self.starting()
        self.queue.started()

    def reboot_queued(self) -> None:
        self.running()
        self.queue.enqueue(Reboot())

    def rebooting(self) -> None:
        self.reboot_queued()
        assert self.queue.pop() == Reboot()
        self._enter(self.queue.rebooting())

    def rebooting_by_itself(self) -> None:
        self.running()
        self._enter(self.queue.rebooting())

    def migration_held(self) -> None:
        self.starting()
        self.queue.enqueue(MigrateAsSource("the migration"))

    def migration_queued(self) -> None:
        self.running()
        self.queue.enqueue(MigrateAsSource("the migration"))

    def migrating_out(self) -> None:
        self.migration_queued()
        assert isinstance(self.queue.pop(), MigrateAsSource)
        self._enter(self.queue.migrating_out())

    def stopping(self) -> None:
        self.running()
        self.queue.enqueue(Stop())
        assert self.queue.pop() == Stop()

    def stopping_by_itself(self) -> None:
        self.running()
        self.queue.halting()

    def stopped(self) -> None:
        self.stopping()
        self.queue.stopped()

    def migrated_out(self) -> None:
        self.migration_queued()
        self.queue.pop()
        with self.queue.migrating_out() as migration:
            migration.handed_over = True

    def failed(self) -> None:
        self.starting()
        self.queue.failed()

    def _enter(self, context: object) -> None:
        context.__enter__()  # type: ignore[attr-defined]
        self.contexts.append(context)  # a context manager that is collected is left


def cells() -> Iterator[tuple[str, str, str]]:
    header, _, *rows = (line.split("|") for line in TABLE.strip().splitlines())
    names = [name.strip() for name in header[1:]]
    for condition, *outcomes in rows:
        for name, outcome in zip(names, outcomes, strict=True):
            yield condition.strip(), name, outcome.strip()


def outcome_of(queue: RequestQueue, request: Request) -> str:
    waiting = len(queue)
    try:
        queue.enqueue(request)
    except RequestDenied as denied:
        assert len(queue) == waiting
        return denied.reason.name
    return {0: "ignore", 1: "queue"}[len(queue) - waiting]


def volume(backend_id: str = "disk-backend") -> ReplaceVolume:
    return ReplaceVolume(backend_id, "{}")


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


def test_state_changes_overtake_component_changes() -> None:
    queue = Scene("running").queue
    first, second = volume("one"), volume("two")
    for request in (first, second, Reboot()):
        queue.enqueue(request)
    assert queue.pop() == Reboot()
    with queue.rebooting():
        pass
    assert [queue.pop(), queue.pop(), queue.pop()] == [first, second, None]


def test_state_changes_are_served_in_their_order() -> None:
    queue = Scene("running").queue
    migration = MigrateAsSource("m")
    for request in (Reboot(), migration, Stop()):
        queue.enqueue(request)
    assert queue.pop() == Reboot()
    with queue.rebooting():
        pass
    assert queue.pop() is migration
    with queue.migrating_out():
        pass
    assert queue.pop() == Stop()


def test_each_kind_can_be_popped_alone() -> None:
    queue = Scene("running").queue
    replace = volume()
    queue.enqueue(replace)
    assert queue.pop_state_change() is None
    queue.enqueue(Stop())
    assert queue.pop_component_change() is replace
    assert queue.pop_component_change() is None
    assert queue.pop_state_change() == Stop()
    assert len(queue) == 0


def test_volumes_are_served_before_and_during_a_start() -> None:
    scene = Scene("not started")
    queue, early, late = scene.queue, volume("early"), volume("late")
    queue.enqueue(early)
    assert queue.pop() is early
    scene.starting()
    queue.enqueue(late)
    assert queue.pop() is late


def test_stop_is_popped_during_a_start() -> None:
    assert Scene("starting + stop").queue.pop() == Stop()


@pytest.mark.parametrize("condition", ["rebooting", "rebooting by itself", "migrating out", "stopping by itself"])
def test_nothing_is_popped_while_a_state_change_is_served(condition: str) -> None:
    scene = Scene(condition)
    scene.queue.enqueue(volume())
    for pop in (scene.queue.pop, scene.queue.pop_state_change, scene.queue.pop_component_change):
        with pytest.raises(RuntimeError, match="still being served"):
            pop()
    assert len(scene.queue) == 1


def test_reboots_are_coalesced_until_the_last_has_ended() -> None:
    queue = Scene("running").queue
    for _ in range(5):
        queue.enqueue(Reboot())
    assert queue.pop() == Reboot()
    with queue.rebooting():
        queue.enqueue(Reboot())
    assert len(queue) == 0
    assert not queue.awaiting_reboot
    assert outcome_of(queue, Reboot()) == "queue"


def test_a_reboot_asked_for_before_the_guest_reset_itself_is_still_served() -> None:
    queue = Scene("reboot queued").queue
    with queue.rebooting():
        assert outcome_of(queue, Reboot()) == "ignore"
    assert queue.pop() == Reboot()


def test_a_reboot_that_raises_is_over() -> None:
    queue = Scene("running").queue
    with pytest.raises(OSError, match="reset"), queue.rebooting():
        raise OSError("reset")
    assert not queue.awaiting_reboot


# Migration out


def test_a_stop_behind_a_migration_is_discarded_when_it_succeeds() -> None:
    scene = Scene("migration queued")
    scene.queue.enqueue(Stop())
    scene.queue.pop()
    with scene.queue.migrating_out() as migration:
        migration.handed_over = True
    assert scene.queue.state is QueueState.MigratedOut
    assert scene.discarded == [Stop()]
    assert scene.queue.pop() is None


def test_a_stop_behind_a_migration_is_served_when_it_fails() -> None:
    scene = Scene("migration queued")
    scene.queue.pop()
    with scene.queue.migrating_out():
        scene.queue.enqueue(Stop())
    assert scene.queue.state is QueueState.Running
    assert scene.queue.pop() == Stop()
    assert scene.discarded == []


def test_an_error_after_the_hand_over_does_not_bring_the_guest_back() -> None:
    scene = Scene("migration queued")
    scene.queue.pop()
    with suppress(OSError), scene.queue.migrating_out() as migration:
        migration.handed_over = True
        raise OSError("late")
    assert scene.queue.state is QueueState.MigratedOut


def test_a_guest_that_ends_during_its_migration_has_not_migrated() -> None:
    scene = Scene("migration queued")
    scene.queue.pop()
    with scene.queue.migrating_out() as migration:
        scene.queue.stopped()
        migration.handed_over = True
    assert scene.queue.state is QueueState.Stopped


# The end


@pytest.mark.parametrize("end", ["stopped", "failed"])
@pytest.mark.parametrize("condition", ["not started", "starting", "migrating in", "running", "stopping by itself"])
def test_whoever_waits_is_told_once_when_the_vm_ends(condition: str, end: str) -> None:
    scene = Scene(condition)
    waiting = [volume("one"), volume("two")]
    for request in waiting:
        scene.queue.enqueue(request)
    getattr(scene.queue, end)()
    assert scene.discarded == waiting
    assert len(scene.queue) == 0
    scene.queue.failed()
    scene.queue.stopped()
    assert scene.discarded == waiting


def test_one_waiter_that_cannot_be_told_leaves_the_others_told() -> None:
    told: list[Request] = []

    def discard(request: Request) -> None:
        told.append(request)
        if request is waiting[0]:
            raise RuntimeError("nobody listens")

    waiting = [volume("one"), volume("two"), volume("three")]
    queue = RequestQueue(discard=discard)
    for request in waiting:
        queue.enqueue(request)
    with pytest.raises(RuntimeError, match="nobody listens"):
        queue.failed()
    assert told == waiting
    assert queue.state is QueueState.Failed


@pytest.mark.parametrize("condition", ["stopped", "migrated out", "failed"])
def test_an_end_is_final(condition: str) -> None:
    scene = Scene(condition)
    ended = scene.queue.state
    for notify in (scene.queue.halting, scene.queue.stopped, scene.queue.failed):
        notify()
        assert scene.queue.state is ended
    assert not scene.queue.awaiting_stop


# Misuse


def test_started_needs_a_pending_start() -> None:
    for condition in ("not started", "running", "failed"):
        with pytest.raises(RuntimeError, match=f"must be start pending, but is {condition}"):
            Scene(condition).queue.started()


def test_rebooting_needs_a_running_vm() -> None:
    queue = Scene("starting").queue
    with pytest.raises(RuntimeError, match="must be running, but is start pending"), queue.rebooting():
        pass


def test_migrating_out_needs_a_popped_migration() -> None:
    queue = Scene("migration queued").queue
    with pytest.raises(RuntimeError, match="no migration out was popped"), queue.migrating_out():
        pass


def test_halting_needs_the_migration_to_be_over() -> None:
    scene = Scene("migrating out")
    with pytest.raises(RuntimeError, match=r"still being served: MigrateAsSource\(migration_id='the migration'\)"):
        scene.queue.halting()


# The suspected upstream defects


def test_a_migration_asked_for_during_the_start_waits_until_the_vm_runs() -> None:
    # Upstream's start loop panics on it when a backend blocks.
    queue = Scene("starting").queue
    migration, replace = MigrateAsSource("early"), volume()
    queue.enqueue(migration)
    queue.enqueue(replace)
    assert queue.pop() is replace
    assert queue.pop() is None
    assert len(queue) == 1
    queue.started()
    assert queue.pop() is migration


@pytest.mark.parametrize("condition", ["start queued", "starting", "migrating in"])
def test_a_stop_overtakes_a_migration_that_waits_for_the_start_and_its_target_is_told(condition: str) -> None:
    scene = Scene(condition)
    migration = MigrateAsSource("early")
    scene.queue.enqueue(migration)
    scene.queue.enqueue(Stop())
    if condition == "start queued":
        assert scene.queue.pop() == Run()
    assert scene.queue.pop() == Stop()
    scene.queue.stopped()
    assert scene.discarded == [migration]


def test_a_failed_start_tells_the_target_of_a_migration_that_waits_for_it() -> None:
    scene = Scene("migration held")
    scene.queue.failed()
    assert [type(request) for request in scene.discarded] == [MigrateAsSource]


def test_a_migration_that_fails_in_its_negotiation_leaves_nothing_behind() -> None:
    # Upstream refuses reboots and further migrations ever after.
    queue = Scene("migration queued").queue
    queue.pop()
    with suppress(ConnectionError), queue.migrating_out():
        raise ConnectionError("no common protocol")
    assert not queue.awaiting_migration_out
    assert outcome_of(queue, Reboot()) == "queue"
    assert outcome_of(queue, MigrateAsSource("again")) == "queue"


def test_a_driver_that_forgets_a_popped_migration_is_told_at_its_next_step() -> None:
    queue = Scene("migration queued").queue
    queue.pop()
    with pytest.raises(RuntimeError, match="still being served: MigrateAsSource"):
        queue.pop()


@pytest.mark.parametrize("condition", ["starting", "starting + stop", "migrating in", "start queued"])
def test_a_stop_during_the_start_is_an_end(condition: str) -> None:
    # Upstream stays in StartPending when the guest halts, or is stopped, after a failed start of its devices.
    queue = Scene(condition).queue
    queue.stopped()
    assert queue.state is QueueState.Stopped
    assert outcome_of(queue, Run()) == "Halted"


def test_a_stop_after_a_failed_start_leaves_it_failed() -> None:
    queue = Scene("starting + stop").queue
    queue.failed()
    queue.stopped()
    assert queue.state is QueueState.Failed
    assert outcome_of(queue, Reboot()) == "InstanceFailed"
