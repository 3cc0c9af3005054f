"""The request queue of a VM: requests that the state driver has not served yet.

As propolis-server's request queue: a request is queued, silently ignored, or denied, depending on the VM's state and on
earlier requests. The queue exists from the moment the VM is active until it is run down; the wrapper answers before and
after. Pure and synchronous: nothing here waits, reads a clock or does I/O, and the state driver and the HTTP handlers
use it from one event loop.

Four things differ from upstream on purpose. A migration requested while the VM starts is held until it runs, because
nothing could serve it earlier. Whether a reboot, a migration or a stop is pending is derived from the queue and the
request being served, never stored separately, so that it cannot outlive them. A VM that stopped, however far its start
got, is stopped. And the guest's own reset or shutdown counts like a requested one: upstream accepts a reboot of
a guest that shuts itself down, only to drop it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final, final

import msgspec

__all__ = [
    "DenyReason",
    "MigrateAsSource",
    "MigrationOut",
    "QueueState",
    "Reboot",
    "ReplaceVolume",
    "Request",
    "RequestDenied",
    "RequestQueue",
    "Run",
    "StateChange",
    "Stop",
]


@dataclass(frozen=True, slots=True)
class Run:
    """Start a VM that was not made by migration (that one starts by itself)."""

    is_state_change: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Stop:
    """Halt the VM, without asking the guest."""

    is_state_change: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Reboot:
    """Reset the VM, without asking the guest."""

    is_state_change: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, eq=False)
class MigrateAsSource:
    """Migrate the VM to the target that requests it.

    :param migration_id: the migration, as the target named it.
    :param payload: the connection to the target; opaque here.
    """

    is_state_change: ClassVar[bool] = True
    migration_id: str
    payload: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class ReplaceVolume:
    """Give a block backend a new volume construction request.

    :param backend_id: the key of the block backend in the instance spec.
    :param vcr_json: the new volume construction request; not shown by ``repr``, because it may hold keys.
    :param reply: the receiver of the response; opaque here.
    :param is_checked: whether propolis-server's rules for replacements are to be kept.
    """

    is_state_change: ClassVar[bool] = False
    backend_id: str
    vcr_json: str = field(repr=False)
    reply: object = field(default=None, repr=False)
    is_checked: bool = True


StateChange = Run | Stop | Reboot | MigrateAsSource
Request = StateChange | ReplaceVolume


class DenyReason(Enum):
    """Why a request was denied: upstream's names, with the texts that its error codes carry."""

    InstanceNotActive = "Operation requires an active instance"
    StartInProgress = "Instance is currently starting"
    AlreadyMigrationSource = "Instance is already a migration source"
    InvalidForMigrationSource = "Operation cannot be performed on a migration source"
    HaltPending = "Instance is preparing to stop"
    MigratedOut = "Instance has migrated out and is being torn down"
    Halted = "Instance has already halted"
    InstanceFailed = "Instance failed to start or halted due to a failure"


class QueueState(Enum):
    """The VM's progress, as far as it determines which requests are allowed. Upstream's names."""

    NotStarted = "not started"
    StartPending = "start pending"
    Running = "running"
    MigratedOut = "migrated out"
    Stopped = "stopped"
    Failed = "failed"

    @property
    def deny_reason(self) -> DenyReason | None:
        """Why the VM accepts no more requests, or None while it does."""
        return _FINAL.get(self)

    @property
    def is_terminal(self) -> bool:
        return self in _FINAL


_FINAL: Final = {
    QueueState.MigratedOut: DenyReason.MigratedOut,
    QueueState.Stopped: DenyReason.Halted,
    QueueState.Failed: DenyReason.InstanceFailed,
}


class RequestDenied(Exception):
    """Raised when a request cannot be served, now or later. The queue is as before."""

    def __init__(self, reason: DenyReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason.value


class MigrationOut(msgspec.Struct):
    """The outcome of a migration out.

    :param handed_over: whether the guest is on the target. Set it at the hand-over point: no error after it brings
        the guest back.
    """

    handed_over: bool = False


@final
class RequestQueue:
    """The requests to one VM.

    The driver pops a request, serves it, and reports that; until then the request counts as pending. Reboots and
    migrations are served inside a context manager, so that their end is recorded whatever happens. A driver that exits
    calls `failed` in any case (it has no effect on a VM that has ended), and no caller waits forever.

    :param discard: called once with each queued request that will never be served, when the VM ends. All are called,
        even if some raise.
    :param migrating_in: whether the VM comes from another host. It starts by itself then.
    """

    def __init__(self, *, discard: Callable[[Request], None], migrating_in: bool = False) -> None:
        self._discard = discard
        self._state = QueueState.StartPending if migrating_in else QueueState.NotStarted
        self._state_changes: deque[StateChange] = deque()
        self._component_changes: deque[ReplaceVolume] = deque()
        self._served: Stop | Reboot | MigrateAsSource | None = None

    def __len__(self) -> int:
        """The number of queued requests, including a migration held until the VM runs."""
        return len(self._state_changes) + len(self._component_changes)

    @property
    def state(self) -> QueueState:
        return self._state

    @property
    def awaiting_stop(self) -> bool:
        """Whether a stop is queued or being served, including the guest's own shutdown."""
        return self._awaiting(Stop)

    @property
    def awaiting_reboot(self) -> bool:
        """Whether a reboot is queued or being served, including the guest's own reset."""
        return self._awaiting(Reboot)

    @property
    def awaiting_migration_out(self) -> bool:
        """Whether a migration out is queued or being served."""
        return self._awaiting(MigrateAsSource)

    # The HTTP handlers' side

    def enqueue(self, request: Request) -> None:
        """Queue a request, or ignore it if its effect is already pending.

        A queued request may still be discarded, when the VM ends before it is served.

        :raises RequestDenied: when the request cannot be served. As propolis-server, a pending migration out is named
            rather than a stop behind it, and the end of the VM rather than anything else.
        """
        if not self._is_wanted(request):
            return
        if isinstance(request, ReplaceVolume):
            self._component_changes.append(request)
            return
        if isinstance(request, Run):
            self._state = QueueState.StartPending
        self._state_changes.append(request)

    def _is_wanted(self, request: Request) -> bool:
        if reason := self._state.deny_reason:
            _deny(reason, when=not isinstance(request, Stop))
            return False
        match request:
            case Run():
                return self._wants_run()
            case Stop():
                return not self.awaiting_stop
            case Reboot():
                return self._wants_reboot()
            case MigrateAsSource():
                return self._wants_migration_out()
            case ReplaceVolume():
                return True

    def _wants_run(self) -> bool:
        _deny(DenyReason.HaltPending, when=self.awaiting_stop)
        return self._state is QueueState.NotStarted

    def _wants_reboot(self) -> bool:
        # The guest may soon be on the target: a client that wants to reboot it must wait, and then ask the right
        # server.
        _deny(DenyReason.InvalidForMigrationSource, when=self.awaiting_migration_out)
        _deny(DenyReason.HaltPending, when=self.awaiting_stop)
        _deny(DenyReason.InstanceNotActive, when=self._state is QueueState.NotStarted)
        _deny(DenyReason.StartInProgress, when=self._state is QueueState.StartPending)
        return not self.awaiting_reboot

    def _wants_migration_out(self) -> bool:
        _deny(DenyReason.AlreadyMigrationSource, when=self.awaiting_migration_out)
        _deny(DenyReason.HaltPending, when=self.awaiting_stop)
        _deny(DenyReason.InstanceNotActive, when=self._state is QueueState.NotStarted)
        return True

    def _awaiting(self, kind: type[Stop | Reboot | MigrateAsSource]) -> bool:
        return any(isinstance(request, kind) for request in (self._served, *self._state_changes))

    # The state driver's side

    def pop(self) -> Request | None:
        """Take the next request to serve: the state changes in their order, then the component changes in theirs.

        :return: None when there is nothing to serve now. That does not make the queue empty: while the VM starts, a
            migration out stays queued, and a stop overtakes it.
        :raises RuntimeError: while the last reboot, migration or stop that was popped is still being served.
        """
        return self.pop_state_change() or self.pop_component_change()

    def pop_state_change(self) -> StateChange | None:
        """As `pop`, leaving the component changes where they are."""
        self._require_idle()
        starting = self._state is QueueState.StartPending
        for index, request in enumerate(self._state_changes):
            if not (starting and isinstance(request, MigrateAsSource)):
                del self._state_changes[index]
                # A start is served concurrently with stops and component changes, and is visible in the queue's state.
                self._served = None if isinstance(request, Run) else request
                return request
        return None

    def pop_component_change(self) -> ReplaceVolume | None:
        """As `pop`, leaving the state changes where they are."""
        self._require_idle()
        return self._component_changes.popleft() if self._component_changes else None

    def started(self) -> None:
        """Record that the VM runs. A migration that was held can be popped from here on.

        :raises RuntimeError: when no start was pending.
        """
        self._require(QueueState.StartPending)
        self._state = QueueState.Running

    @contextmanager
    def rebooting(self) -> Iterator[None]:
        """Serve the reboot that was popped, or the guest's own reset.

        :raises RuntimeError: when the VM does not run, or something else is being served.
        """
        self._require(QueueState.Running)
        self._serve(Reboot())
        try:
            yield
        finally:
            self._served = None

    @contextmanager
    def migrating_out(self) -> Iterator[MigrationOut]:
        """Serve the migration that was popped, from its negotiation on.

        Unless ``handed_over`` is set inside, the migration has failed, however the block is left, and the VM runs on: a
        stop that was queued meanwhile is popped next. If it is set, the VM has migrated out, and the stop is discarded.

        :raises RuntimeError: when no migration was popped.
        """
        if not isinstance(self._served, MigrateAsSource):
            raise RuntimeError(f"no migration out was popped; being served: {self._served}")
        outcome = MigrationOut()
        try:
            yield outcome
        finally:
            self._served = None
            if outcome.handed_over:
                self._end(QueueState.MigratedOut)

    def halting(self) -> None:
        """Record the guest's own shutdown: from here on, requests are treated as after a stop. `stopped` must follow.

        No effect on a VM that has ended.

        :raises RuntimeError: when a reboot or a migration is being served.
        """
        if not self._state.is_terminal:
            self._serve(Stop())

    def stopped(self) -> None:
        """Record that the VM has stopped, for any reason, running or not. No effect on a VM that has ended."""
        self._end(QueueState.Stopped)

    def failed(self) -> None:
        """Record that the VM did not start, or failed. No effect on a VM that has ended."""
        self._end(QueueState.Failed)

    def _end(self, state: QueueState) -> None:
        if self._state.is_terminal:
            return
        self._state = state
        self._served = None
        waiting = (*self._state_changes, *self._component_changes)
        self._state_changes.clear()
        self._component_changes.clear()
        with ExitStack() as answers:
            for request in reversed(waiting):
                answers.callback(self._discard, request)

    def _serve(self, operation: Stop | Reboot) -> None:
        if not isinstance(self._served, type(operation)):
            self._require_idle()
            self._served = operation

    def _require(self, state: QueueState) -> None:
        if self._state is not state:
            raise RuntimeError(f"the VM must be {state.value}, but is {self._state.value}")

    def _require_idle(self) -> None:
        if self._served is not None:
            raise RuntimeError(f"still being served: {self._served}")


def _deny(reason: DenyReason, *, when: bool) -> None:
    if when:
        raise RequestDenied(reason)
