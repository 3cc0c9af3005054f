"""Messages of a run's listener: with machines that join, and with link processes. One JSON object per line."""

from __future__ import annotations

from typing import Final

import msgspec

from ...agent_api.messages import Fault

__all__ = [
    "LINE_BYTES",
    "LISTENER_VARIABLE",
    "Accepted",
    "CommandOrder",
    "Connected",
    "ForwardOrder",
    "ForwardTarget",
    "Hello",
    "JoinDestination",
    "JoinerMessage",
    "ListenConfig",
    "ListenStarted",
    "OpenOutcome",
    "OpenStream",
    "Order",
    "Ping",
    "PortOrder",
    "Refused",
    "RunEnded",
    "RunMessage",
    "SocketOrder",
    "StreamOpened",
    "StreamRequest",
    "WatchRequest",
    "Watched",
]

LISTENER_VARIABLE: Final = "PROPOLIS_LISTENER"
"""The environment variable by which a run's processes find the socket of its listener."""

LINE_BYTES: Final = 1 << 16


class JoinDestination(msgspec.Struct, frozen=True, kw_only=True, tag="joined"):
    """A host that joins the run.

    :param socket: of the run's listener; empty where the process belongs to no run that listens.
    """

    name: str
    socket: str


class ListenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of a listener.

    :param address: where it listens; port 0 for a free one.
    :param hosts: by name, for how long the run waits for each host, in seconds.
    :param directory: the listener's own.
    :param silence_s: how long a joined machine may be silent before it counts as lost.
    """

    address: str
    port: int
    hosts: dict[str, float]
    directory: str
    silence_s: float = 4.0


class ListenStarted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The listener's report to the process that started it: its port and token, or why it does not listen."""

    port: int = 0
    token: str = ""
    fault: Fault | None = None


class CommandOrder(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run a shell command; the stream carries frames of its input and output."""

    command: str


class SocketOrder(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Connect the stream with a UNIX socket of the machine."""

    path: str


class PortOrder(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Connect the stream with a port of the machine's loopback interface."""

    port: int


class ForwardOrder(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Listen on the machine until the stream ends, and connect each client with the run.

    :param id: identifies the target in the run.
    :param path: of a UNIX socket; None for a free port of the loopback interface.
    """

    id: str
    path: str | None = None


Order = CommandOrder | SocketOrder | PortOrder | ForwardOrder


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A machine asks to join. Answered by `Accepted` or `Refused`.

    :param version: of this project, there.
    """

    secret: str
    version: str
    name: str


class StreamOpened(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """This connection is a stream that the run asked for with `OpenStream`."""

    stream: str


class Connected(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """This connection is that of a client of a `ForwardOrder`."""

    forward: str


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A heartbeat, which the other side sends back."""


JoinerMessage = Hello | StreamOpened | Connected | Ping


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The machine is a host of the run until this connection ends.

    :param silence_s: how long the run may be silent before it counts as lost.
    """

    silence_s: float


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The machine may not join."""

    fault: Fault


class OpenStream(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Open a stream: connect once more, say `StreamOpened`, and do as ordered."""

    stream: str
    order: Order


class RunEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The run needs the machine no longer."""


RunMessage = Accepted | Refused | OpenStream | RunEnded | Ping


class ForwardTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients of a `ForwardOrder` are connected with: a UNIX socket or a loopback port of this machine."""

    path: str | None = None
    port: int = 0


class WatchRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Wait until a host has joined. Answered by `Watched` then, and again when the host is lost."""

    host: str


class StreamRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Open a stream to a host. Answered by `OpenOutcome`; then follows what the stream carries.

    :param target: of a `ForwardOrder`.
    """

    host: str
    order: Order
    target: ForwardTarget | None = None


class Watched(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host is there; or is not there in time; or it is lost, and why."""

    fault: Fault | None = None
    lost: str | None = None


class OpenOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an order to a machine begins.

    :param port: on which it listens.
    :param error: why it cannot be done.
    """

    port: int = 0
    error: str | None = None
