"""Random histories of a request queue, compared step by step with a small model of propolis-server's table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference_model import ENDS, Model

from pytest_propolis.engine.request_queue import (
    MigrateAsSource,
    MigrationOut,
    QueueState,
    Reboot,
    ReplaceVolume,
    Request,
    RequestDenied,
    RequestQueue,
    Run,
    Stop,
)

STATES: Final = {
    "NotStarted": QueueState.NotStarted,
    "Starting": QueueState.StartPending,
    "Running": QueueState.Running,
    "Stopped": QueueState.Stopped,
    "MigratedOut": QueueState.MigratedOut,
    "Failed": QueueState.Failed,
}


def make(kind: str) -> Request:
    requests: dict[str, Request] = {
        "Run": Run(),
        "Stop": Stop(),
        "Reboot": Reboot(),
        "MigrateAsSource": MigrateAsSource("migration"),
        "ReplaceVolume": ReplaceVolume("disk-backend", "{}"),
    }
    return requests[kind]


class QueueMachine(RuleBasedStateMachine):
    """A driver that takes permitted steps in random order while requests arrive."""

    @initialize(migrating_in=st.booleans())
    def ensure(self, migrating_in: bool) -> None:
        self.discarded: list[Request] = []
        self.service = ExitStack()
        self.migration = MigrationOut()
        self.queue = RequestQueue(discard=self.discarded.append, migrating_in=migrating_in)
        self.model = Model("Starting" if migrating_in else "NotStarted")

    @precondition(lambda self: self.model.phase in ENDS)
    @rule(migrating_in=st.booleans())
    def ensure_again(self, migrating_in: bool) -> None:
        self.ensure(migrating_in)

    # Stops are kept rare, or hardly a VM would live to see a migration.
    @rule(
        kinds=st.lists(st.sampled_from(["Run", "Reboot", "MigrateAsSource", "ReplaceVolume"]), min_size=1, max_size=3)
    )
    def enqueue(self, kinds: list[str]) -> None:
        for kind in kinds:
            self._enqueue(kind)

    @precondition(lambda self: self.model.phase in ENDS or self.model.waiting or self.model.doing)
    @rule()
    def enqueue_stop(self) -> None:
        self._enqueue("Stop")

    def _enqueue(self, kind: str) -> None:
        request, expected = make(kind), self.model.outcome(kind)
        waiting = len(self.queue)
        try:
            self.queue.enqueue(request)
            outcome = ("ignore", "queue")[len(self.queue) - waiting]
        except RequestDenied as denied:
            outcome = denied.reason.name
        assert outcome == expected
        if outcome == "queue":
            self.model.accept(kind, request)

    @precondition(lambda self: self.model.doing is None)
    @rule()
    def pop(self) -> None:
        expected = self.model.next()
        popped = self.queue.pop()
        if expected is None:
            assert popped is None
            return
        kind, request = expected
        assert popped is request
        self.model.waiting.remove(expected)
        if kind in ("Stop", "Reboot", "MigrateAsSource"):
            self.model.doing = kind
        if kind == "Reboot":
            self.service.enter_context(self.queue.rebooting())
        if kind == "MigrateAsSource":
            self.migration = self.service.enter_context(self.queue.migrating_out())

    @precondition(lambda self: self.model.doing is not None)
    @rule(method=st.sampled_from(["pop", "pop_state_change", "pop_component_change"]))
    def pop_too_early(self, method: str) -> None:
        with pytest.raises(RuntimeError, match="still being served"):
            getattr(self.queue, method)()

    @precondition(lambda self: self.model.phase == "Starting" and not self.model.is_pending("Run"))
    @rule()
    def start_succeeds(self) -> None:
        self.queue.started()
        self.model.phase = "Running"

    @precondition(lambda self: self.model.phase == "Running" and self.model.doing is None)
    @rule()
    def guest_resets_itself(self) -> None:
        self.service.enter_context(self.queue.rebooting())
        self.model.doing = "Reboot"

    @precondition(lambda self: self.model.doing is None and len(self.model.waiting) > 1)
    @rule()
    def guest_shuts_itself_down(self) -> None:
        self.queue.halting()
        self.model.doing = "Stop"

    @precondition(lambda self: self.model.doing == "Reboot")
    @rule(raises=st.booleans())
    def reboot_ends(self, raises: bool) -> None:
        self._leave(raises)
        self.model.doing = None

    @precondition(lambda self: self.model.doing == "MigrateAsSource")
    @rule(hands_over=st.booleans(), raises=st.booleans())
    def migration_ends(self, hands_over: bool, raises: bool) -> None:
        self.migration.handed_over = hands_over
        self.model.doing = None
        if hands_over:
            self._check_end("MigratedOut", lambda: self._leave(raises))
        else:
            self._leave(raises)

    @precondition(lambda self: self.model.doing == "Stop")
    @rule()
    def vm_stops(self) -> None:
        self._check_end("Stopped", self.queue.stopped)

    @precondition(lambda self: len(self.model.waiting) > 2)
    @rule(end=st.sampled_from(["Stopped", "Failed"]))
    def vm_ends_unexpectedly(self, end: str) -> None:
        self._check_end(end, self.queue.stopped if end == "Stopped" else self.queue.failed)

    @precondition(lambda self: self.model.phase in ENDS)
    @rule()
    def driver_says_so_twice(self) -> None:
        self.queue.halting()
        self._check_end("Stopped", self.queue.stopped)
        self._check_end("Failed", self.queue.failed)

    def _check_end(self, phase: str, end: Callable[[], object]) -> None:
        expected = self.model.end(phase)
        told_before = len(self.discarded)
        end()
        self._leave(raises=False)
        told = self.discarded[told_before:]
        assert [id(request) for request in told] == [id(request) for request in expected]

    def _leave(self, raises: bool) -> None:
        service, self.service = self.service, ExitStack()
        error = OSError("in service") if raises else None
        service.__exit__(type(error) if error else None, error, None)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.queue.state is STATES[self.model.phase]
        assert len(self.queue) == len(self.model.waiting)
        assert len(self.queue) == len(self.model.waiting)
        assert self.queue.awaiting_stop == self.model.is_pending("Stop")
        assert self.queue.awaiting_reboot == self.model.is_pending("Reboot")
        assert self.queue.awaiting_migration_out == self.model.is_pending("MigrateAsSource")


QueueMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
test_random_histories: Any = QueueMachine.TestCase
