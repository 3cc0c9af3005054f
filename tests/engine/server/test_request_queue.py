"""The request queue: the order of service, and the ends of a VM."""

from __future__ import annotations

from contextlib import suppress

import pytest
from request_queue_scene import Scene, outcome_of

from pytest_propolis.engine.request_queue import (
    MigrateAsSource,
    QueueState,
    Reboot,
    ReplaceVolume,
    Request,
    RequestQueue,
    Run,
    Stop,
)


def volume(backend_id: str = "disk-backend") -> ReplaceVolume:
    return ReplaceVolume(backend_id, "{}")


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
