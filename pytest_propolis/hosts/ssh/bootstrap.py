"""Copy an agent to a host and start it, over one SSH session."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from ...errors import CapabilityMissing, HostError, PropolisError, ResourceExhausted
from .bundle import Bundle
from .distributions import HostPython
from .loader import LINE_PREFIX
from .transport.transport import Channel, Transport

__all__ = ["HostFacts", "RemoteAgent", "start_agent", "start_command", "start_program"]

ANSWER_TIMEOUT_S: Final = 90.0
STDERR_BYTES: Final = 2000
LOADER: Final = Path(__file__).with_name("loader.py")

RECEIVE: Final = "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
COMMAND: Final = "exec {python} -I -S -c 'import sys;{receive}'"
"""What the login shell runs: every shell passes it on unchanged."""

CHECK_VERSION: Final = f"""
import sys
if sys.version_info < (3, 11):
    sys.stdout.write('{LINE_PREFIX}{{"python": "%d.%d.%d"}}\\n' % sys.version_info[:3])
    sys.stdout.flush()
    sys.exit(1)
{RECEIVE}
"""
"""Runs under every Python 3: only one that is new enough compiles the rest."""

BundleMaker = Callable[[HostPython], Awaitable[Bundle]]


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The loader's report about its host.

    :param clock_s: the host's clock at the time of the report, in seconds since the epoch.
    :param bundle_directory: the directory for bundles there; None if no directory is usable.
    :param tried: why other directories cannot.
    """

    python: HostPython
    cpus: int
    memory_mib: int
    uid: int
    clock_s: float
    boot_id: str
    bundle_directory: str | None
    tried: dict[str, str]


class AgentStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The watchdog's report about the agent."""

    pid: int
    socket: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAgent:
    """A running agent, with the session of its watchdog."""

    facts: HostFacts
    started: AgentStarted
    channel: Channel


async def start_agent(
    transport: Transport, host: str, order: dict[str, Any], make_bundle: BundleMaker, *, python: str = "python3"
) -> RemoteAgent:
    """Start an agent on a host; copy it there first if necessary.

    :param order: the watchdog's instructions.
    :param python: the command of the host's Python.
    :raises CapabilityMissing: when the host has no Python that is new enough, or does not run Linux.
    :raises ResourceExhausted: when it has no space.
    :raises HostError: when the agent does not start; the text says why.
    """
    async with _session(transport, host, python, what="its agent") as session:
        return await session.start_agent(order, make_bundle)


async def start_command(
    transport: Transport, host: str, order: dict[str, Any], make_bundle: BundleMaker, *, python: str = "python3"
) -> Channel:
    """Start a function of this project on a host; copy the project there first if necessary.

    :param order: the loader's instructions: ``program``, ``arguments``, ``environment``.
    :raises HostError: as `start_agent`.
    """
    async with _session(transport, host, python, what=order["program"]) as session:
        await session.upload(order, make_bundle)
        await session.receive("started")
        return session.channel


@contextlib.asynccontextmanager
async def _session(transport: Transport, host: str, python: str, *, what: str) -> AsyncIterator[_Session]:
    """Start a loader on a host, and limit the time that a conversation with it takes.

    :param what: the name of the program to start, for errors.
    """
    channel = await start_program(transport, CHECK_VERSION, python=python)
    session = _Session(channel, transport.errors, host, python)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            yield session
    except TimeoutError:
        raise HostError(f"host {host}: {what} did not start", waited_s=ANSWER_TIMEOUT_S) from None
    except transport.errors:
        raise await session.ended() from None


async def start_program(transport: Transport, program: str, *, python: str) -> Channel:
    """Start a Python program on a host, whose text is sent over its standard input."""
    channel = await transport.start(COMMAND.format(python=shlex.quote(python), receive=RECEIVE))
    _send_program(channel, program)
    return channel


def _send_program(channel: Channel, program: str) -> None:
    text = program.encode()
    channel.stdin.write(b"%d\n%b" % (len(text), text))


class _Session:
    """The conversation with the loader and the watchdog."""

    def __init__(self, channel: Channel, errors: tuple[type[Exception], ...], host: str, python: str) -> None:
        self.channel = channel
        self._errors = errors
        self._host = host
        self._python = python

    async def start_agent(self, order: dict[str, Any], make_bundle: BundleMaker) -> RemoteAgent:
        facts = await self.upload(order, make_bundle)
        started = msgspec.convert(await self.receive("ready"), AgentStarted)
        return RemoteAgent(facts=facts, started=started, channel=self.channel)

    async def upload(self, order: dict[str, Any], make_bundle: BundleMaker) -> HostFacts:
        """Upload the project if it is missing, and send the loader its order; return facts about the host."""
        _send_program(self.channel, LOADER.read_text())
        facts = msgspec.convert(await self.receive("facts"), HostFacts)
        if facts.python.system != "linux":
            raise CapabilityMissing(
                f"host {self._host}: its platform is {facts.python.system}, and hosts over SSH run Linux",
                hint="run pytest on that machine itself, with --propolis-server",
            )
        if facts.bundle_directory is None:
            self._raise_no_place(facts)
        bundle = await make_bundle(facts.python)
        request = {**order, "sha256": bundle.sha256, "size": len(bundle.data)}
        self.channel.stdin.write(msgspec.json.encode(request) + b"\n")
        if await self.receive("need"):
            self.channel.stdin.write(bundle.data)
            await self.channel.stdin.drain()
        return facts

    async def receive(self, key: str) -> Any:
        """Return the next message, and ignore other output.

        :raises HostError: when the message is an error, or does not arrive.
        """
        while line := await self.channel.stdout.readline():
            if line.startswith(LINE_PREFIX.encode()):
                message: dict[str, Any] = msgspec.json.decode(line.removeprefix(LINE_PREFIX.encode()))
                self._raise_error(message)
                return message[key]
        raise await self.ended()

    def _raise_error(self, message: dict[str, Any]) -> None:
        if "python" in message:
            raise CapabilityMissing(
                f"host {self._host}: {self._python} there is Python {message['python']}, and 3.11 or later is needed",
                hint='install one there, and name it in the inventory: python = "python3.11"',
            )
        if "error" in message:
            log = [f"  | {line}" for line in message.get("log", ())]
            kind = ResourceExhausted if message.get("full") else HostError
            raise kind("\n".join([f"host {self._host}: {message['error']}", *log]), hint=message.get("hint"))

    def _raise_no_place(self, facts: HostFacts) -> NoReturn:
        full = all("free there" in reason or "space" in reason for reason in facts.tried.values())
        kind: type[PropolisError] = ResourceExhausted if full else HostError
        reasons = [f"  {directory}: {reason}" for directory, reason in facts.tried.items()]
        raise kind(
            "\n".join([f"host {self._host}: no directory there can take the agent's program:", *reasons]),
            hint="free 25 MiB in one of them, or set XDG_CACHE_HOME there to a directory of that user",
        )

    async def ended(self) -> HostError:
        """Return why the session ended before the agent was there."""
        status, stderr = None, b""
        with contextlib.suppress(*self._errors):
            async with asyncio.timeout(5):
                stderr = await self.channel.stderr.read(STDERR_BYTES)
                status = await self.channel.status()
        text = stderr.decode(errors="replace").strip() or "it printed nothing"
        if status in (126, 127):
            return CapabilityMissing(
                f"host {self._host}: {self._python} cannot be run there: {text}",
                hint='install Python 3.11 or later there, or name another one in the inventory: python = "python3.11"',
            )
        how = "the SSH session ended" if status is None else f"the SSH session ended with status {status}"
        return HostError(f"host {self._host}: {how}: {text}", hint=f"try it by hand: ssh HOST {self._python} --version")
