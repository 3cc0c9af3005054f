#!/usr/bin/env -S python3 -IS
"""A stand-in for QEMU: a process that speaks QMP, with a guest that does what is typed at its serial port.

A line typed at COM1 is echoed, and may be ``reset``, ``shutdown``, ``panic`` (what a guest does of its own accord) or
``exit`` (QEMU ends by itself). ``clock back`` sets the clock that events are stamped with back by an hour. A ``late
reset`` and a ``late shutdown`` are what a guest does in the moment when it is stopped the next time: QEMU tells of them
when it has answered. As under ``-action reboot=shutdown,shutdown=pause``, a guest that resets stands still.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import sys
import time
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}


class Channel:
    """A socket that QEMU inherits, with a buffer for incomplete messages."""

    def __init__(self, name: str) -> None:
        (fd,) = [match[1] for word in sys.argv if (match := re.fullmatch(rf"socket,id={name},fd=(\d+)", word))]
        self.socket = socket.socket(fileno=int(fd))
        self._rest = ""

    def read_lines(self) -> list[str]:
        *lines, self._rest = self._received().split("\n")
        return lines

    def read_json(self) -> list[Any]:
        """Read one JSON message. QMP clients need not separate messages."""
        messages, text = [], self._received().lstrip()
        with contextlib.suppress(json.JSONDecodeError):
            while text:
                message, end = json.JSONDecoder().raw_decode(text)
                messages.append(message)
                text = text[end:].lstrip()
        self._rest = text
        return messages

    def write(self, line: str) -> None:
        self.socket.sendall(line.encode() + b"\n")

    def _received(self) -> str:
        data = self.socket.recv(1 << 16)
        if not data:
            sys.exit(0)
        return self._rest + data.decode()


class FakeQemu:
    """The machine: stopped until ``cont``."""

    def __init__(self) -> None:
        self._status = "prelaunch"
        self._late = ""
        self._clock_error_s = 0
        self._monitor = Channel("monitor")
        self._com1 = Channel("com1")
        self._tell(GREETING)

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._monitor.socket, selectors.EVENT_READ, self._read_monitor)
            selector.register(self._com1.socket, selectors.EVENT_READ, self._read_com1)
            while True:
                for key, _ in selector.select():
                    key.data()

    def _read_monitor(self) -> None:
        for request in self._monitor.read_json():
            self._command(request)

    def _read_com1(self) -> None:
        for line in self._com1.read_lines():
            self._typed(line)

    def _command(self, request: dict[str, Any]) -> None:
        result: dict[str, Any] = {}
        match request["execute"]:
            case "cont":
                self._status = "running"
            case "stop" if self._status == "running":
                self._status = "paused"
            case "query-status":
                result = {"status": self._status}
            case "system_reset":
                self._status = "prelaunch"
                self._event("RESET", guest=False, reason="host-qmp-system-reset")
        answer = {"return": result, "id": request["id"]} if "id" in request else {"return": result}
        self._tell(answer)
        if self._late and request["execute"] == "stop":
            self._event("SHUTDOWN", guest=True, reason=f"guest-{self._late}")
            self._late = ""

    def _typed(self, line: str) -> None:
        self._com1.write(line)
        match line:
            case "reset" | "shutdown" as what:
                self._status = "shutdown"
                self._event("SHUTDOWN", guest=True, reason=f"guest-{what}")
            case "late reset" | "late shutdown":
                self._late = line.removeprefix("late ")
            case "clock back":
                self._clock_error_s = -3600
            case "panic":
                self._event("GUEST_PANICKED", action="run")
            case "exit":
                sys.exit(1)

    def _event(self, name: str, **data: Any) -> None:
        self._tell({"event": name, "data": data, "timestamp": self._now()})

    def _now(self) -> dict[str, int]:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        return {"seconds": seconds + self._clock_error_s, "microseconds": nanoseconds // 1000}

    def _tell(self, message: dict[str, Any]) -> None:
        self._monitor.write(json.dumps(message))


if __name__ == "__main__":
    FakeQemu().run()
