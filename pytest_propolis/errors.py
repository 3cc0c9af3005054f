"""Every error that this project raises.

The tree::

    PropolisError
    ├── SettingsError            an option, ini key, environment variable or settings file is wrong
    ├── ConfigError              a VmConfig is contradictory or impossible
    │   └── UnknownGuest
    ├── ArtifactError            an image, a kernel or a firmware
    │   ├── ArtifactMissing
    │   ├── ArtifactCorrupt
    │   └── TemplateError
    ├── HostError                the machine that VMs run on
    │   ├── CapabilityMissing
    │   ├── ResourceExhausted
    │   ├── HostBusy
    │   └── AgentError
    │       └── HostLost
    ├── ApiError                 a Propolis server refused a request
    ├── VmError                  a virtual machine did not do what was requested
    │   ├── VmStateError
    │   ├── StateTimeout
    │   ├── BootError
    │   ├── MigrationError
    │   ├── MetricsMissing
    │   └── MetricsTimeout
    ├── ConsoleError             the serial console
    │   ├── ConsoleTimeout
    │   ├── ConsoleClosed
    │   ├── GuestPanicked
    │   └── GuestWasReset
    ├── ShellError               commands run in the guest
    │   ├── CommandFailed
    │   ├── CommandTimeout
    │   ├── FileTransferError
    │   └── ShellLost
    └── CoordinationError        nodes that coordinate
        ├── CoordinationTimeout
        ├── CoordinationLost
        └── Poisoned

Errors survive pickling, because pytest-xdist sends them between processes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from .terminal_text import printable

__all__ = [
    "AgentError",
    "ApiError",
    "ArtifactCorrupt",
    "ArtifactError",
    "ArtifactMissing",
    "BootError",
    "CapabilityMissing",
    "CommandFailed",
    "CommandTimeout",
    "ConfigError",
    "ConsoleClosed",
    "ConsoleError",
    "ConsoleTimeout",
    "CoordinationError",
    "CoordinationLost",
    "CoordinationTimeout",
    "FileTransferError",
    "GuestPanicked",
    "GuestWasReset",
    "HostBusy",
    "HostError",
    "HostLost",
    "MetricsMissing",
    "MetricsTimeout",
    "MigrationError",
    "Poisoned",
    "PropolisError",
    "ResourceExhausted",
    "SettingsError",
    "ShellError",
    "ShellLost",
    "StateTimeout",
    "TemplateError",
    "UnknownGuest",
    "VmError",
    "VmStateError",
]


class PropolisError(Exception):
    """The root of the tree. Its text ends with the hint and the evidence that it carries.

    :param message: what went wrong, naming the culprit.
    :param hint: what the reader can do about it.
    :param vm: the name of the virtual machine concerned.
    :param operation: what was being done.
    :param waited_s: how long was waited, in seconds.
    :param console_tail: the last lines of the serial console.
    :param log_path: the file with the whole console log.
    """

    kinds: ClassVar[dict[str, type[PropolisError]]] = {}
    """Every class of the tree by its name: how an error finds its class again behind an HTTP response."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        vm: str | None = None,
        operation: str | None = None,
        waited_s: float | None = None,
        console_tail: tuple[str, ...] = (),
        log_path: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.vm = vm
        self.operation = operation
        self.waited_s = waited_s
        self.console_tail = console_tail
        self.log_path = log_path

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        PropolisError.kinds[cls.__name__] = cls

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        return "\n".join((self._headline(), *self._evidence()))

    def _headline(self) -> str:
        subject = f"VM {self.vm!r}: " if self.vm else ""
        return subject + self.message

    def _evidence(self) -> list[str]:
        lines = []
        if self.operation:
            lines.append(f"  during: {self.operation}")
        if self.waited_s is not None:
            lines.append(f"  waited: {self.waited_s:.1f} s")
        if self.console_tail:
            number = len(self.console_tail)
            lines.append(f"  last {number} lines of console:" if number > 1 else "  last line of console:")
            lines += [f"    | {printable(line)}" for line in self.console_tail]
        if self.log_path:
            lines.append(f"  log: {self.log_path}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return lines

    def with_context(self, **context: Any) -> Self:
        """Fill in those attributes that are still empty, and return the same error."""
        for name, value in context.items():
            if not getattr(self, name):
                setattr(self, name, value)
        return self


def _rebuild(cls: type[PropolisError], args: tuple[Any, ...], attributes: dict[str, Any]) -> PropolisError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class SettingsError(PropolisError):
    """Raised when an option, ini key, environment variable or settings file has a bad value."""


class ConfigError(PropolisError):
    """Raised when a VmConfig is contradictory or impossible."""


class UnknownGuest(ConfigError):
    """Raised when no guest adapter has the requested name."""


class ArtifactError(PropolisError):
    """Raised when an image, a kernel or a firmware cannot be used."""


class ArtifactMissing(ArtifactError):
    """Raised when an artifact is not where it should be and cannot be fetched."""


class ArtifactCorrupt(ArtifactError):
    """Raised when an artifact's content is not what its hash or its format says."""


class TemplateError(ArtifactError):
    """Raised when a template cannot be made or forked. A test sees it as a line of progress: its VM boots instead."""

    @classmethod
    def because_of(cls, error: PropolisError) -> Self:
        """Return an error that has the message and the evidence of the one that kept the template from being made."""
        return cls(error.message, hint=error.hint, console_tail=error.console_tail, log_path=error.log_path)


class HostError(PropolisError):
    """Raised when the machine that VMs run on cannot do what was requested."""


class CapabilityMissing(HostError):
    """Raised when a program or a kernel feature that is needed is not on the host."""


class ResourceExhausted(HostError):
    """Raised when the host has no space, memory or address left."""


class HostBusy(HostError):
    """Raised when the host has no memory left for a VM now; it may have some when another VM ends."""


class AgentError(HostError):
    """Raised when the host's agent does not start, has ended, or refuses a request."""


class HostLost(AgentError):
    """Raised when the connection to a host is lost, or its agent died. The run's resources there are removed.

    :param host: the name of the host.
    :param reason: what ended the connection.
    """

    def __init__(self, message: str, *, host: str = "", reason: str = "", **context: Any) -> None:
        super().__init__(message, **context)
        self.host = host
        self.reason = reason


class ApiError(PropolisError):
    """Raised when a Propolis server answers with an error.

    :param status: the HTTP status code.
    :param error_code: the server's own code, if it gave one.
    :param request_id: the id of the request in the server's log.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        error_code: str | None = None,
        request_id: str | None = None,
        **context: Any,
    ) -> None:
        super().__init__(message, **context)
        self.status = status
        self.error_code = error_code
        self.request_id = request_id

    def _headline(self) -> str:
        code = f" [{self.error_code}]" if self.error_code else ""
        return f"{super()._headline()} (HTTP {self.status}{code})"


class VmError(PropolisError):
    """Raised when a virtual machine did not do what was requested."""


class VmStateError(VmError):
    """Raised when a state is waited for that the VM can no longer reach."""


class StateTimeout(VmError):
    """Raised when a VM does not reach a state in time."""


class BootError(VmError):
    """Raised when a guest does not boot to a usable shell."""


class MigrationError(VmError):
    """Raised when a VM does not migrate, or not in time. The source continues to run, unless it has failed itself."""


class MetricsMissing(VmError):
    """Raised when a VM's server has not sent the requested samples."""


class MetricsTimeout(VmError):
    """Raised when a VM's metrics do not show in time what is waited for."""


class ConsoleError(PropolisError):
    """Raised when the serial console fails."""


class ConsoleTimeout(ConsoleError):
    """Raised when awaited output does not appear on the console in time."""


class ConsoleClosed(ConsoleError):
    """Raised when the console ends while something waits for it."""


class GuestPanicked(ConsoleError):
    """Raised when the guest's kernel panics while something waits for the guest."""


class GuestWasReset(ConsoleError):
    """Raised when the guest resets its machine, unrequested, while something waits for its console."""


class ShellError(PropolisError):
    """Raised when a command could not be run in the guest as asked."""


class CommandFailed(ShellError):
    """Raised when a command ends with a status other than 0.

    :param command: the command as given.
    :param status: its exit status.
    :param output: what it wrote, standard output and standard error together.
    """

    def __init__(
        self, message: str, *, command: str = "", status: int = 0, output: bytes = b"", **context: Any
    ) -> None:
        super().__init__(message, **context)
        self.command = command
        self.status = status
        self.output = output

    def _evidence(self) -> list[str]:
        text = self.output.decode(errors="replace").splitlines()
        shown = [f"    | {printable(line)}" for line in text[-30:]]
        count = f" ({len(text)} lines, the last {len(shown)})" if len(shown) < len(text) else ""
        header = f"  output{count}:" if shown else "  output: none"
        return [header, *shown, *super()._evidence()]


class CommandTimeout(ShellError):
    """Raised when a command does not end in time. It was interrupted, and the shell accepts further commands."""


class FileTransferError(ShellError):
    """Raised when a file cannot be copied into the guest or out of it. No part of it is left under its name.

    :param path: the file, on the side where it failed.
    """

    def __init__(self, message: str, *, path: str = "", **context: Any) -> None:
        super().__init__(message, **context)
        self.path = path


class ShellLost(ShellError):
    """Raised when the guest's shell no longer answers."""


class CoordinationError(PropolisError):
    """Raised when nodes cannot coordinate as asked: a name is taken, a baton is not held, a value is too large."""


class CoordinationTimeout(CoordinationError):
    """Raised when what a node waits for does not happen in time. The error names the nodes that are missing.

    :param missing: these nodes.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...] = (), **context: Any) -> None:
        super().__init__(message, **context)
        self.missing = missing


class CoordinationLost(CoordinationError):
    """Raised when the key-value store cannot be reached, the node's lease has expired, or the group has ended."""


class Poisoned(CoordinationError):
    """Raised on every node that waits when one has failed or vanished, or when the group was poisoned by hand.

    :param node: the node that is the reason; empty when there is none.
    :param reason: what happened to it.
    :param output: the last lines that it wrote.
    """

    def __init__(
        self, message: str, *, node: str = "", reason: str = "", output: tuple[str, ...] = (), **context: Any
    ) -> None:
        super().__init__(message, **context)
        self.node = node
        self.reason = reason
        self.output = output

    def _evidence(self) -> list[str]:
        shown = [f"    | {printable(line)}" for line in self.output]
        return [*([f"  last lines of {self.node}:", *shown] if shown else []), *super()._evidence()]
