"""The machines that have joined a run, in its listener."""

from __future__ import annotations

import asyncio
import contextlib
import time
from importlib.metadata import version
from typing import Final

from ...agent_api.messages import Fault
from ...errors import HostError
from ...propolis_api.connection.sockets import abort
from .messages import Accepted, Hello, JoinerMessage, OpenStream, Ping, Refused, RunEnded
from .streams import Ends, receive, send
from .tokens import JoinToken

__all__ = ["Machine", "Machines"]

HEARTBEAT_S: Final = 1.0
HOST_SILENCE_MARGIN_S: Final = 3.0
"""The machine waits longer than the run, so that no test uses a VM that is about to be removed."""


class Machine:
    """A machine that has joined.

    :ivar lost: why it is no longer there, when it is not.
    """

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._quiet_s = 0.0
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def send(self, message: OpenStream | RunEnded) -> None:
        """Send the machine a message."""
        send(self._ends[1], message)

    async def keep(self, silence_s: float) -> None:
        """Exchange heartbeats until the machine is lost."""
        heartbeats = asyncio.create_task(self._send_heartbeats(silence_s))
        try:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    await receive(self._ends[0], JoinerMessage)
                    self._quiet_s = 0.0
            self._lose("its `propolis join` ended")
        finally:
            heartbeats.cancel()
            self._lose("the run ended")

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    async def _send_heartbeats(self, silence_s: float) -> None:
        while True:
            send(self._ends[1], Ping())
            await asyncio.sleep(HEARTBEAT_S)  # ticks, not a clock: a process that did not run does not judge
            self._quiet_s += HEARTBEAT_S
            if self._quiet_s > silence_s:
                self._lose(f"nothing was heard from it for {silence_s:g} s")
                abort(self._ends[1].transport)
                return


class Machines:
    """Those that are to join, and those that have.

    :param hosts: their names, and for how long the run waits for each, in seconds.
    """

    def __init__(self, hosts: dict[str, float], token: JoinToken, *, silence_s: float) -> None:
        self._hosts = hosts
        self._token = token
        self._silence_s = silence_s
        self._started = time.monotonic()
        self._joined: dict[str, Machine] = {}
        self._arrival = asyncio.Condition()

    def joined(self, host: str) -> Machine | None:
        """Return the machine that is a host, if it has joined."""
        return self._joined.get(host)

    async def get(self, host: str) -> Machine:
        """Return the machine that is a host; wait until it has joined, but not longer than its time since the start.

        :raises HostError: when it has not joined by then.
        """
        patience_s = self._hosts.get(host, 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._started + patience_s - time.monotonic())), self._arrival:
                await self._arrival.wait_for(lambda: host in self._joined)
        if machine := self._joined.get(host):
            return machine
        raise HostError(
            f"host {host}: no machine has joined this run as {host!r}, and the run waits for {patience_s:g} s",
            hint="run on that machine the command that the run showed when it began (propolis join …); "
            "join_timeout_s, an option of the host in the inventory, has the run wait longer",
        )

    async def serve(self, hello: Hello, ends: Ends) -> None:
        """Let a machine join, and keep it until it is lost; or refuse it."""
        if refusal := self._refusal(hello):
            send(ends[1], Refused(fault=Fault.of(refusal)))
            await ends[1].drain()
            return
        machine = self._joined[hello.name] = Machine(ends)
        send(ends[1], Accepted(silence_s=self._silence_s + HOST_SILENCE_MARGIN_S))
        async with self._arrival:
            self._arrival.notify_all()
        try:
            await machine.keep(self._silence_s)
        finally:
            del self._joined[hello.name]

    def _refusal(self, hello: Hello) -> HostError | None:
        if not self._token.admits(hello.secret):
            return HostError("the run refuses this token", hint="each run has its own: copy the command that it showed")
        if hello.version != (own := version("pytest-propolis")):
            return HostError(
                f"this machine has pytest-propolis {hello.version}, and the run has {own}",
                hint=f"pip install pytest-propolis=={own}",
            )
        if hello.name not in self._hosts:
            return HostError(
                f"the run has no host {hello.name!r} that joins", hint=f"give --name: {', '.join(sorted(self._hosts))}"
            )
        if hello.name in self._joined:
            return HostError(f"a machine has joined the run as {hello.name!r} already", hint="end that one first")
        return None

    async def dismiss(self) -> None:
        """Tell all machines that the run has ended."""
        for machine in self._joined.values():
            with contextlib.suppress(OSError):
                machine.send(RunEnded())
        await asyncio.gather(*(self._left(machine) for machine in list(self._joined.values())))

    async def _left(self, machine: Machine) -> None:
        await asyncio.wait([machine.lost], timeout=HEARTBEAT_S + HOST_SILENCE_MARGIN_S)
