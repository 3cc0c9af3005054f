"""A host that joins the run, for the length of one process; and connections of commands to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from ...errors import HostError
from ...settings import Settings
from ..host import HostSpec
from ..ssh.host_connection import SshConnection, connected
from ..ssh.host_options import check_options
from ..ssh.link_messages import LinkConfig
from ..ssh_host import SshHost
from .messages import LISTENER_VARIABLE, JoinDestination

__all__ = ["JoinedHost", "join_timeout_s", "open_connection", "open_host"]

OPTIONS: Final = ("python", "qemu", "artifact_dir", "silence_s", "join_timeout_s")
JOIN_TIMEOUT_S: Final = 300.0


def open_host(spec: HostSpec, settings: Settings, run_id: str) -> JoinedHost:
    """Make a host of an inventory.

    Its options are those of SSH hosts but ``config`` and ``direct``, and ``join_timeout_s``: for how long the run waits
    for a machine to join as this host.

    :raises SettingsError: when an option is not known, or has a bad value.
    """
    join_timeout_s(spec)
    return JoinedHost(spec, settings, run_id=run_id)


def join_timeout_s(spec: HostSpec) -> float:
    """Return for how long a run waits for a host.

    :raises SettingsError: when an option is not known, or has a bad value.
    """
    check_options(spec, known=OPTIONS)
    return float(spec.options.get("join_timeout_s", JOIN_TIMEOUT_S))


class JoinedHost(SshHost):
    """A host that connects to the run. All else is as with one that SSH reaches."""

    @property
    def listens_for_peers(self) -> bool:
        return False  # nothing connects to its machine

    @property
    def command_options(self) -> str:
        return f"    # on the machine {self.name}"

    def _link_config(self) -> LinkConfig:
        config = super()._link_config()
        return msgspec.structs.replace(config, start_timeout_s=config.start_timeout_s + join_timeout_s(self._spec))

    def _destination(self) -> JoinDestination:
        return _destination(self._spec)


def _destination(spec: HostSpec) -> JoinDestination:
    """
    :raises HostError: when this process belongs to no run that listens.
    """
    if not (socket := os.environ.get(LISTENER_VARIABLE)):
        raise HostError(
            f"host {spec.name}: it is reached only by a run that it has joined",
            hint="on that machine, run the command without --hosts; a run listens with --propolis-listen ADDRESS",
        )
    return JoinDestination(name=spec.name, socket=socket)


@contextlib.asynccontextmanager
async def open_connection(spec: HostSpec) -> AsyncIterator[SshConnection]:
    """Connect to a host that has joined the run of this process, for the length of the block.

    :raises SettingsError: when one of its options is wrong.
    :raises HostError: when this process belongs to no run that listens, or the host has not joined it in time.
    """
    check_options(spec, known=OPTIONS)
    async with connected(spec, _destination(spec)) as connection:
        yield connection
