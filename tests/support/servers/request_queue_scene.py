"""A request queue in the condition that a test needs."""

from __future__ import annotations

from pytest_propolis.engine.request_queue import (
    MigrateAsSource,
    QueueState,
    Reboot,
    Request,
    RequestDenied,
    RequestQueue,
    Run,
    Stop,
)

__all__ = ["Scene", "outcome_of"]


class Scene:
    """A queue that reaches a condition step by step, and a record of discarded requests."""

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


def outcome_of(queue: RequestQueue, request: Request) -> str:
    """Return the outcome of a request: ``ignore``, ``queue``, or the name of the reason why it is denied."""
    waiting = len(queue)
    try:
        queue.enqueue(request)
    except RequestDenied as denied:
        assert len(queue) == waiting
        return denied.reason.name
    return {0: "ignore", 1: "queue"}[len(queue) - waiting]
