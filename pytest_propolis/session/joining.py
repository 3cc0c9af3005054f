"""The part of a run at which machines join it: from the start of the session to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from ..errors import PropolisError, SettingsError
from ..hosts.inventory.inventory import read_inventory
from ..hosts.kinds import HOST_KINDS
from ..option_values import host_and_port
from ..settings import Settings
from .internals import terminal_reporter

__all__ = ["JoinedHosts"]

KINDS: Final = " or ".join(name for name, kind in HOST_KINDS.items() if kind.joins)


class JoinedHosts:
    """A plugin of the process that has the terminal: has a listener while the session lasts.

    :param timeouts: by host that joins, for how long the run waits for it, in seconds.
    """

    def __init__(self, config: pytest.Config, listen: str, timeouts: dict[str, float]) -> None:
        self._config = config
        self._listen = listen
        self._timeouts = timeouts

    @classmethod
    def register(cls, config: pytest.Config, settings: Settings) -> None:
        """Have the run listen, if hosts of it join.

        :raises pytest.UsageError: when only one of both is so, or an option of such a host is wrong.
        """
        try:
            timeouts = _timeouts(settings.hosts)
        except SettingsError as error:
            raise pytest.UsageError(str(error)) from None
        if settings.listen is None:
            if timeouts:
                raise pytest.UsageError(
                    f"{', '.join(timeouts)}: a host of the kind {KINDS} joins a run that listens, and this one does "
                    "not: give --propolis-listen HOST:PORT, an address of this machine"
                )
            return
        if not timeouts:
            raise pytest.UsageError(
                f"--propolis-listen {settings.listen}: no host joins this run: an inventory (--propolis-hosts FILE) "
                f'names it: [hosts.NAME] kind = "{KINDS}"'
            )
        config.pluginmanager.register(cls(config, settings.listen, timeouts), "propolis-joining")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Run before xdist's controller starts its workers, which find the listener by the environment."""
        from ..hosts.joined.listening import RunListener

        address, port = host_and_port(self._listen)
        try:
            listener = RunListener.start(address, port, hosts=self._timeouts)
        except PropolisError as error:
            raise pytest.UsageError(str(error)) from None
        self._config.add_cleanup(listener.close)  # after the hosts have been released
        if reporter := terminal_reporter(self._config):
            for name, command in listener.commands.items():
                reporter.write_line(f"propolis: to be the host {name}, run there: {command}")
            reporter.flush()


def _timeouts(hosts: str | Path | None) -> dict[str, float]:
    """
    :raises SettingsError: when the inventory is wrong.
    """
    specs = [spec for spec in read_inventory(hosts) if HOST_KINDS[spec.kind].joins] if isinstance(hosts, Path) else []
    if not specs:
        return {}
    from ..hosts.joined.host import join_timeout_s

    return {spec.name: join_timeout_s(spec) for spec in specs}
