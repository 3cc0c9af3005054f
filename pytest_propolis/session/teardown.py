"""The end of a run: show kept resources, and fail the run on leaks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

from .guard import guarded
from .internals import quick_imports, run_id_of, set_worker_input, set_worker_output, worker_output
from .stash import GUARD, HOSTS, INTERRUPTION, RETENTION_POLICY, SETTINGS

if TYPE_CHECKING:
    from ..agent_api.messages import KeptListed
    from ..ledger.audit import Leak
    from ..settings import Settings

__all__ = ["LOG_DIRECTORY_KEY", "RunTeardown", "WorkerTeardown"]

IDLE_TIMEOUT_S: Final = 15.0
"""How long agents may take to exit after their last client, before the resources that they own count as leaks."""

WORKER_KEY: Final = "propolis_used"

LOG_DIRECTORY_KEY: Final = "propolis_log_directory"
"""The key of a worker's log directory in its xdist input, if workers must not share one."""


class WorkerTeardown:
    """A plugin of an xdist worker: releases its hosts, and reports to the controller whether there were VMs."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Run after the last finalizer, and before xdist sends the worker's output."""
        yield
        hosts = session.config.stash.get(HOSTS, ())
        set_worker_output(session.config, WORKER_KEY, any(host.was_up for host in hosts))
        with guarded(session.config, "releasing the worker's VMs"):
            _release_resources(session.config)


class RunTeardown:
    """A plugin of the process that has the terminal: runs the leak check at the end of the run."""

    def __init__(self) -> None:
        self._shared_id: str | None = None
        self._used = False
        self._leaks: list[Leak] = []
        self._kept: list[KeptListed] = []
        self._unchecked_reason = ""
        self._lingering: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        self._shared_id = run_id_of(node)
        if node.config.getoption("dist") == "each":
            set_worker_input(node, LOG_DIRECTORY_KEY, node.gateway.id)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that has crashed sends no output.
        self._used |= worker_output(node).get(WORKER_KEY, True)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Run after the last finalizer and the last worker, before the summary."""
        yield
        with guarded(session.config, "releasing the run's VMs"):
            _release_resources(session.config)
        with guarded(session.config, "looking for what the run has left behind"):
            self._check_for_leaks(session.config)
        if self._leaks and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        with guarded(terminalreporter.config, "summing up the run"):
            self._summarize(terminalreporter)
        for line in terminalreporter.config.stash[GUARD].summary():
            terminalreporter.write_line(f"propolis: {line}")

    def _summarize(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._kept:
            terminalreporter.section("VMs kept")
            for line in describe_kept(self._kept):
                terminalreporter.write_line(line)
        if self._unchecked_reason:
            terminalreporter.write_line(f"propolis: the leak check did not run: {self._unchecked_reason}")
        if terminalreporter.verbosity > 0:
            for line in sorted(self._lingering):
                terminalreporter.write_line(line)
        if self._leaks:
            terminalreporter.section("propolis: this run has left something behind", red=True)
            for leak in self._leaks:
                terminalreporter.write_line(str(leak), red=True)
            terminalreporter.write_line("`propolis gc` removes what a ledger lists; end the rest by hand")

    def _check_for_leaks(self, config: pytest.Config) -> None:
        if config.stash[INTERRUPTION].has_abandoned or not self._had_vms(config):
            return
        from ..errors import PropolisError

        try:
            for agent_id, run in self._runs(config):
                self._check_agent(agent_id, run, config.stash[SETTINGS])
        except (OSError, PropolisError) as error:  # an error of the leak check must not cost the tests' results
            self._unchecked_reason = str(error)

    def _had_vms(self, config: pytest.Config) -> bool:
        if self._shared_id is not None:
            return self._used
        return any(host.was_up for host in config.stash.get(HOSTS, ()))

    def _runs(self, config: pytest.Config) -> Iterable[tuple[str, str]]:
        """Return the ids of the agents on this machine's hosts that had VMs of the run, and of the run there."""
        if self._shared_id is not None:
            from ..hosts.run_hosts import local_run_ids

            return local_run_ids(config.stash[SETTINGS], shared_id=self._shared_id)
        return [
            (host.agent_id, host.run_id) for host in config.stash.get(HOSTS, ()) if host.was_up and host.shares_files
        ]

    def _check_agent(self, agent_id: str, run: str, settings: Settings) -> None:
        with quick_imports():
            from ..hosts.agent_clients.synchronous import running_agents
            from ..hosts.run_directory import base_directory
            from ..ledger.audit import audit, wait_until_idle
            from ..storage.user_directories import disk_directory

        base = base_directory()
        wait_until_idle(base, agent_id, clients=f"{run}.", timeout_s=IDLE_TIMEOUT_S)
        for agent in running_agents(base, run=agent_id):
            self._kept += agent.kept()
            if agent.process and settings.linger:
                self._lingering.add(_describe_lingering(agent.process.pid, settings.linger))
        disks = settings.disk_dir or disk_directory(settings.artifact_dir)
        self._leaks += audit(base, agent_id, clients=f"{run}.", disks=disks)


def _release_resources(config: pytest.Config) -> None:
    """Close this process's hosts, which releases its remaining resources there except those to be kept."""
    if policy := config.stash.get(RETENTION_POLICY, None):
        policy.finish()
    if hosts := config.stash.get(HOSTS, ()):
        from ..errors import AgentError  # here, because a run without VMs does not pay for it

        for host in hosts:
            with contextlib.suppress(AgentError):  # the audit finds what is left
                host.close()


def _describe_lingering(pid: int, seconds: float) -> str:
    return f"propolis: the agent (pid {pid}) stays for {seconds:g} s: `propolis gc --agents` ends it"


def describe_kept(kept: list[KeptListed]) -> Iterator[str]:
    """Return lines about kept resources, with commands to copy."""
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
