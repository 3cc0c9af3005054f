"""A client of a debugger, as IDEs are: it speaks the Debug Adapter Protocol with debugpy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["DebugAdapter"]

Message = dict[str, Any]


class DebugAdapter:
    """A debugger that starts one program and controls it.

    :param python: a Python with debugpy.
    """

    def __init__(self, python: Path, *, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [str(python), "-m", "debugpy.adapter"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def launch(self, module: str, arguments: Sequence[str], *, directory: Path, breakpoint_at: tuple[Path, int]) -> int:
        """Run a module until a breakpoint; return the id of the thread that stopped there."""
        self._request("initialize", adapterID="python", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
        self._send(
            "launch",
            module=module,
            args=list(arguments),
            cwd=str(directory),
            console="internalConsole",
            justMyCode=True,
        )
        self._receive(event="initialized")
        path, line = breakpoint_at
        self._request("setBreakpoints", source={"path": str(path)}, breakpoints=[{"line": line}])
        self._send("configurationDone")
        thread = self._receive(event="stopped")["body"]["threadId"]
        assert isinstance(thread, int)
        return thread

    def evaluate(self, expression: str, *, thread: int) -> str:
        """Return what the debug console shows for an expression where the thread stopped."""
        frames = self._request("stackTrace", threadId=thread)["body"]["stackFrames"]
        answer = self._request("evaluate", expression=expression, frameId=frames[0]["id"], context="repl")
        return str(answer.get("message") or answer["body"]["result"])

    def finish(self, *, thread: int) -> int:
        """Let the program run to its end, and return its status."""
        self._request("continue", threadId=thread)
        status = self._receive(event="exited")["body"]["exitCode"]
        assert isinstance(status, int)
        return status

    def terminate(self) -> None:
        """End the program where it is, as the Stop button does."""
        self._request("disconnect", terminateDebuggee=True)

    def _request(self, command: str, **arguments: Any) -> Message:
        """Send a request, and return the response to it."""
        self._send(command, **arguments)
        return self._receive(type="response", request_seq=self._sent)

    def _send(self, command: str, **arguments: Any) -> None:
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command, "arguments": arguments}
        content = json.dumps(message).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
        self._process.stdin.flush()

    def _receive(self, **wanted: object) -> Message:
        """Return the next message with these values; others are skipped."""
        assert self._process.stdout is not None
        while header := self._process.stdout.readline():
            length = int(header.split(b":")[1])
            assert self._process.stdout.readline() == b"\r\n"
            message: Message = json.loads(self._process.stdout.read(length))
            if all(message.get(name) == value for name, value in wanted.items()):
                return message
        raise EOFError(f"the debugger has ended without {wanted}")
