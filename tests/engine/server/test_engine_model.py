"""Random histories of a whole engine, over HTTP, compared step by step with the reference model.

QEMU is a small stand-in, but a real process with real sockets: it can be frozen, so that what is being done lasts, and
the volume of the VM can be out of reach, so that it does not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from engine_rig import BACKEND, DEADLINE_S, EngineRig, engine_rig
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference_model import ENDS, Model

from pytest_propolis.engine.request_queue import DenyReason

T = TypeVar("T")
ADDRESSES: Final = ("here", "black hole", "elsewhere")


@dataclass(eq=False)
class Replacement:
    """A request for another volume, and its status in the reference model; None while it waits."""

    address: str
    generation: int
    backend: str
    task: asyncio.Task[httpx.Response]
    expected: tuple[int, str | None] | None = None


@dataclass
class ReferenceVm:
    """The reference model of one VM, advanced as far as a driver gets without events."""

    address: str | None
    generation: int = 1
    model: Model = field(default_factory=lambda: Model("NotStarted"))
    published: list[str] = field(default_factory=lambda: ["Creating"])
    starting: bool = False
    resuming: bool = False
    frozen: bool = False

    @property
    def active(self) -> bool:
        return self.model.phase not in ENDS

    @property
    def up(self) -> bool:
        return self.model.phase == "Running" and self.model.doing is None

    def settle(self) -> None:
        while self.active and self._advance():
            pass

    def _advance(self) -> bool:
        """Perform the driver's next step; return False if there is none, or it is blocked."""
        if self.resuming or self.model.doing == "Reboot":
            return self._give_up() or self._finish()
        if self.starting and self.address not in ("black hole", "elsewhere"):
            self.starting, self.resuming = False, self.address != "broken"
            if self.address == "broken":
                self.end("Failed", "Failed")
            return True
        entry = self.model.next()
        if entry is None:
            return False
        self.model.waiting.remove(entry)
        kind, request = entry
        match kind:
            case "Run":
                self.starting = True
                self.published.append("Starting")
            case "Stop":
                self.stop()
            case "Reboot":
                self.model.doing = "Reboot"
                self.published.append("Rebooting")
            case _:
                assert isinstance(request, Replacement)
                request.expected = self._replace(request)
        return True

    def _give_up(self) -> bool:
        """A stop does not wait for a QEMU that is frozen."""
        if not self.frozen or not self.model.is_pending("Stop"):
            return False
        self.starting = self.resuming
        self.stop()
        return True

    def _finish(self) -> bool:
        if self.frozen:
            return False
        self.resuming, self.model.doing, self.model.phase = False, None, "Running"
        self.published.append("Running")
        return True

    def _replace(self, request: Replacement) -> tuple[int, str | None]:
        if self.address is None or request.backend != BACKEND:
            return 404, None
        if request.generation <= self.generation:
            return 400, None
        moved, self.address, self.generation = request.address != self.address, request.address, request.generation
        return 200, "started" if moved else "vcr_matches"

    def stop(self) -> None:
        # A VM that is starting is Stopped at once.
        states = ["Stopped", "Destroyed"] if self.starting else ["Stopping", "Stopped", "Destroyed"]
        self.end("Stopped", *states)

    def end(self, phase: str, *states: str) -> None:
        self.published += states
        for request in self.model.end(phase):
            if isinstance(request, Replacement):
                request.expected = 410, None


class EngineMachine(RuleBasedStateMachine):
    """A client and a guest that act at random."""

    vm: ReferenceVm | None = None

    @initialize()
    def serve(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.replacements: list[Replacement] = []
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.rig: EngineRig = self._run(self.stack.enter_async_context(engine_rig(directory)))

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            pid = self.rig.server.pid
            self._run(self.stack.aclose())
            assert pid is None or not Path(f"/proc/{pid}").exists()
            assert all(backend.events[-1] == "closed" for backend in self.rig.backends)
            for request in self.replacements:
                assert request.task.done()
            self.runner.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def within_the_deadline() -> T:
            async with asyncio.timeout(DEADLINE_S):
                return await work

        return self.runner.run(within_the_deadline())

    @rule(address=st.sampled_from([None, "here", "here", "black hole", "broken"]))
    def ensure(self, address: str | None) -> None:
        answer = self._run(self.rig.ensure(address=address))
        if self.vm is not None and self.vm.active:
            assert answer.status_code == 409
            return
        assert answer.status_code == 201
        self.vm = ReferenceVm(address)

    # Stops are kept rare, or hardly a VM would live to see anything.
    @rule(kinds=st.lists(st.sampled_from(["Run", "Run", "Reboot"]), min_size=1, max_size=3))
    def put_states(self, kinds: list[str]) -> None:
        for kind in kinds:
            self._put_state(kind)

    @precondition(lambda self: self.vm is None or not self.vm.active or len(self.vm.published) > 1)
    @rule()
    def put_stop(self) -> None:
        self._put_state("Stop")

    def _put_state(self, kind: str) -> None:
        answer = self._run(self.rig.put(kind))
        if self.vm is None or not self.vm.active:
            assert (answer.status_code, answer.json()["error_code"]) == (424, "NoInstance")
            return
        outcome = self.vm.model.outcome(kind)
        if outcome in ("queue", "ignore"):
            assert answer.status_code == 204
        else:
            code = f"instance state change not allowed: {DenyReason[outcome].value}"
            assert (answer.status_code, answer.json()["error_code"]) == (403, code)
        if outcome == "queue":
            self.vm.model.accept(kind, None)
        self._settle()

    @rule(
        address=st.sampled_from(ADDRESSES),
        generation=st.integers(1, 6),
        backend=st.sampled_from([BACKEND, BACKEND, BACKEND, "other"]),
    )
    def replace_volume(self, address: str, generation: int, backend: str) -> None:
        task = self._run(self._ask_for(address, generation, backend))
        request = Replacement(address, generation, backend, task)
        if self.vm is None or not self.vm.active:
            request.expected = 424, None
        else:
            self.vm.model.accept("ReplaceVolume", request)
        self.replacements.append(request)
        self._settle()

    async def _ask_for(self, address: str, generation: int, backend: str) -> asyncio.Task[httpx.Response]:
        task = asyncio.create_task(self.rig.replace(address, generation, backend=backend))
        for _ in range(2):  # when these are answered, the first has been queued
            await self.rig.client.get("/instance")
        return task

    @precondition(lambda self: self.vm is not None and self.vm.up and not self.vm.frozen)
    @rule(doing=st.sampled_from(["reset", "reset", "panic", "shutdown", "exit"]))
    def guest_does(self, doing: str) -> None:
        assert self.vm is not None
        self._run(self.rig.type(doing))
        match doing:
            case "reset":
                self.vm.published += ["Rebooting", "Running"]
            case "shutdown":
                self.vm.stop()
            case "exit":
                self.vm.end("Failed", "Failed")
        self._settle()

    @precondition(lambda self: self.vm is not None and self.vm.active and not self.vm.frozen)
    @rule()
    def qemu_freezes(self) -> None:
        assert self.vm is not None
        self._signal(signal.SIGSTOP)
        self.vm.frozen = True

    @precondition(lambda self: self.vm is not None and self.vm.active and self.vm.frozen)
    @rule()
    def qemu_thaws(self) -> None:
        assert self.vm is not None
        self._signal(signal.SIGCONT)
        self.vm.frozen = False
        self._settle()

    def _signal(self, number: signal.Signals) -> None:
        assert self.rig.server.pid
        os.kill(self.rig.server.pid, number)

    def _settle(self) -> None:
        if self.vm is not None:
            self.vm.settle()
            last = self._run(self.rig.monitor(len(self.vm.published)))
            assert (last.json()["gen"], last.json()["state"]) == (len(self.vm.published), self.vm.published[-1])
        for request in [request for request in self.replacements if request.expected]:
            answer = self._run(_whole(request.task))
            assert request.expected is not None
            status, result = request.expected
            assert (answer.status_code, answer.json() if status == 200 else None) == (status, result)
            self.replacements.remove(request)

    @invariant()
    def shows_what_the_reference_says(self) -> None:
        if not hasattr(self, "rig"):
            return
        if self.vm is None:
            for path in ("/instance", "/instance/spec", "/instance/migration-status", "/instance/serial/history"):
                assert self._status(path) == 424
            return
        answer = self._run(self.rig.monitor(0)).json()
        assert (answer["gen"], answer["state"]) == (len(self.vm.published), self.vm.published[-1])
        assert self._status("/instance/spec") == 200
        assert self._status("/instance/serial/history") == (200 if self.vm.active else 424)
        assert not any(request.task.done() for request in self.replacements)

    def _status(self, path: str) -> int:
        return self._run(self.rig.client.get(path, params={"from_start": 0})).status_code


async def _whole(task: asyncio.Task[T]) -> T:
    return await task


# Bounded in time: to make a failing history smaller takes minutes. Put `Phase.shrink` there to have that done.
EngineMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
test_random_histories_of_an_engine: Any = EngineMachine.TestCase
