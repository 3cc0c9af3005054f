"""The end of a run: what was kept is shown, and what leaked fails the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

from ..errors import AgentError, PropolisError
from .signals import INTERRUPTION

if TYPE_CHECKING:
    from ..agent_api.messages import KeptListed
    from ..hosts.local import LocalHost
    from ..ledger.audit import Leak

__all__ = ["HOST", "EndOfRun", "WorkersEnd"]

HOST: Final[pytest.StashKey[LocalHost]] = pytest.StashKey()
"""Where a config keeps its process's host, once a test has asked for VMs."""

SETTLE_TIMEOUT_S: Final = 15.0
"""How long agents may take to leave after their last client, before what they own counts as leaked."""

WORKER_KEY: Final = "propolis_used"


class WorkersEnd:
    """A plugin of an xdist worker's: lets go of its host, and tells the controller whether there were VMs."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """After the last finalizer, and before xdist sends what is told."""
        yield
        host = session.config.stash.get(HOST, None)
        session.config.workeroutput[WORKER_KEY] = host is not None and host.was_up  # type: ignore[attr-defined]
        _let_go(session.config)


class EndOfRun:
    """A plugin of the process that has the terminal: compares the account of the run's agents with the machine."""

    def __init__(self) -> None:
        self._shared_id: str | None = None
        self._used = False
        self._leaks: list[Leak] = []
        self._kept: list[KeptListed] = []
        self._not_looked = ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        self._shared_id = node.workerinput["testrunuid"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that has crashed tells nothing.
        self._used |= getattr(node, "workeroutput", {}).get(WORKER_KEY, True)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """After the last finalizer and the last worker, before the summary."""
        yield
        _let_go(session.config)
        run = self._run(session.config)
        if run and not session.config.stash[INTERRUPTION].has_let_go:
            try:
                self._look(run)
            except (OSError, PropolisError) as error:  # the tests' own results are worth more
                self._not_looked = str(error)
            if self._leaks and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._kept:
            terminalreporter.section("VMs kept")
            for line in describe_kept(self._kept):
                terminalreporter.write_line(line)
        if self._not_looked:
            terminalreporter.write_line(f"propolis: nobody looked whether anything was left behind: {self._not_looked}")
        if self._leaks:
            terminalreporter.section("propolis: this run has left something behind", red=True)
            for leak in self._leaks:
                terminalreporter.write_line(str(leak), red=True)
            terminalreporter.write_line("`propolis gc` removes what a ledger lists; end the rest by hand")

    def _run(self, config: pytest.Config) -> str | None:
        """The run's word, if it had VMs."""
        if self._shared_id is not None:
            from ..hosts.run_directory import run_token

            return run_token(self._shared_id) if self._used else None
        host = config.stash.get(HOST, None)
        return host.run if host is not None and host.was_up else None

    def _look(self, run: str) -> None:
        from ..hosts.living_agent import running_agents
        from ..hosts.run_directory import base_directory
        from ..ledger.audit import audit, wait_settled

        base = base_directory()
        wait_settled(base, run, timeout_s=SETTLE_TIMEOUT_S)
        self._kept = [kept for agent in running_agents(base, run=run) for kept in agent.kept()]
        self._leaks = audit(base, run)


def _let_go(config: pytest.Config) -> None:
    """Let go of this process's host: what it still owns there is released."""
    if host := config.stash.get(HOST, None):
        with contextlib.suppress(AgentError):  # what is left is found by the audit
            host.close()


def describe_kept(kept: list[KeptListed]) -> Iterator[str]:
    """What was kept, in lines from which a person may copy."""
    for item in kept:
        until = f", until {time.strftime('%a %H:%M', time.localtime(item.kept.until))}" if item.kept.until else ""
        yield f"{item.kept.reason}{until}"
        for vm in item.vms:
            if vm.state:
                yield f"  propolis console {vm.id}    # VM {vm.name!r}: {vm.state}"
            else:
                yield f"  VM {vm.name!r} was not created"
        for disk in item.disks:
            yield f"  disk {disk.path}"
        for volume in item.volumes:
            yield from (f"  disk {part.path}    # replica of {volume.name!r}" for part in volume.downstairs)
    yield "`propolis gc --kept` removes them"
