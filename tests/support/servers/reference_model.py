"""A small model of propolis-server's table of conditions and requests, for comparison with the real ones."""

from __future__ import annotations

from typing import Final

KINDS: Final = ("Run", "Stop", "Reboot", "MigrateAsSource", "ReplaceVolume")

ROWS: Final = {
    # phase or pending change: what becomes of each of KINDS
    "NotStarted": ("queue", "queue", "InstanceNotActive", "InstanceNotActive", "queue"),
    "Starting": ("ignore", "queue", "StartInProgress", "queue", "queue"),
    "Running": ("ignore", "queue", "queue", "queue", "queue"),
    "Reboot": ("ignore", "queue", "ignore", "queue", "queue"),
    "MigrateAsSource": ("ignore", "queue", "InvalidForMigrationSource", "AlreadyMigrationSource", "queue"),
    "Stop": ("HaltPending", "ignore", "HaltPending", "HaltPending", "queue"),
    "Stopped": ("Halted", "ignore", "Halted", "Halted", "Halted"),
    "MigratedOut": ("MigratedOut", "ignore", "MigratedOut", "MigratedOut", "MigratedOut"),
    "Failed": ("InstanceFailed", "ignore", "InstanceFailed", "InstanceFailed", "InstanceFailed"),
}
ENDS: Final = ("Stopped", "MigratedOut", "Failed")


class Model:
    """The table's answers, from the phase of the VM, the queued requests, and the request being served."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.waiting: list[tuple[str, object]] = []
        self.doing: str | None = None

    def outcome(self, kind: str) -> str:
        return dict(zip(KINDS, ROWS[self._row(kind)], strict=True))[kind]

    def _row(self, kind: str) -> str:
        if self.phase in ENDS:
            return self.phase
        # A migration is named first to who asks for something that the target would have to do.
        order = ["MigrateAsSource", "Stop"] if kind in ("Reboot", "MigrateAsSource") else ["Stop", "MigrateAsSource"]
        return next(filter(self.is_pending, [*order, "Reboot"]), self.phase)

    def is_pending(self, kind: str) -> bool:
        return self.doing == kind or any(waiting == kind for waiting, _ in self.waiting)

    def next(self) -> tuple[str, object] | None:
        held = {"MigrateAsSource"} if self.phase == "Starting" else set()
        ready = [entry for entry in self.waiting if entry[0] not in held]
        return min(ready, key=lambda entry: entry[0] == "ReplaceVolume", default=None)

    def accept(self, kind: str, request: object) -> None:
        self.waiting.append((kind, request))
        if kind == "Run":
            self.phase = "Starting"

    def end(self, phase: str) -> list[object]:
        if self.phase in ENDS:
            return []
        # Those who ask for a state change are told before those who ask for a component change.
        discarded = [request for _, request in sorted(self.waiting, key=lambda entry: entry[0] == "ReplaceVolume")]
        self.phase, self.doing, self.waiting = phase, None, []
        return discarded
