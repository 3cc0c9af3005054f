"""Failures of migrations, and failures injected by tests."""

from __future__ import annotations

from dataclasses import dataclass

from ...propolis_api import InstanceSpec, MigrationFailureInjector

__all__ = ["FailureInjector", "MigrationFailed"]


class MigrationFailed(Exception):
    """Raised on either side when a migration cannot be completed; the text gives the reason.

    `reported` is whether the other side reported it.
    """

    def __init__(self, reason: str, *, reported: bool = False) -> None:
        super().__init__(reason)
        self.reported = reported


@dataclass(slots=True, kw_only=True)
class FailureInjector:
    """Fails this many exports and imports of a VM's state, and no more after that.

    :param fail_exports: how many exports still fail.
    :param fail_imports: how many imports still fail.
    """

    fail_exports: int = 0
    fail_imports: int = 0

    @classmethod
    def of(cls, spec: InstanceSpec) -> FailureInjector:
        """Return the injector that a spec requests; without a component for it, nothing fails."""
        for wrapper in spec.components.values():
            if isinstance(device := wrapper.component, MigrationFailureInjector):
                return cls(fail_exports=device.fail_exports, fail_imports=device.fail_imports)
        return cls()

    def exporting(self) -> None:
        """
        :raises MigrationFailed: as long as exports are to fail.
        """
        if self.fail_exports:
            self.fail_exports -= 1
            raise MigrationFailed("the failure injector failed the export, as requested")

    def importing(self) -> None:
        """
        :raises MigrationFailed: as long as imports are to fail.
        """
        if self.fail_imports:
            self.fail_imports -= 1
            raise MigrationFailed("the failure injector failed the import, as requested")
