"""Which lingering agent a run may use: one that was started with the same options, environment and programs."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec

from ..agent_api.agent_process import AgentConfig
from ..ledger.identity import ProcessIdentity
from ..operating_system.python_processes import TRACING_VARIABLES, installed_paths

__all__ = ["AgentEnvironment", "lingering_id"]

_OF_ONE_SHELL: Final = frozenset(
    (
        *("_", "COLORTERM", "COLUMNS", "GPG_TTY", "INVOCATION_ID", "JOURNAL_STREAM", "LINES", "OLDPWD", "PWD", "SHLVL"),
        *("STY", "TERM", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "TERM_SESSION_ID", "TMUX", "TMUX_PANE", "VTE_VERSION"),
        *("WINDOW", "WINDOWID", "XDG_SESSION_ID", "XDG_VTNR"),
    )
)
"""Variables that describe where a shell runs, and that no agent uses."""

_OF_ONE_RUN: Final = ("PYTEST_", "PROPOLIS_", "SSH_", "VSCODE_", "KITTY_", "WEZTERM_", "ITERM_", *TRACING_VARIABLES)
"""Prefixes of variables that belong to one run or one login. Options are in `AgentConfig`."""


@dataclass(frozen=True, slots=True)
class AgentEnvironment:
    """The environment of a lingering agent, without variables that differ from run to run.

    :param digest: the same in all processes of a run, and in every run with the same environment.
    """

    variables: Mapping[str, str] = field(repr=False)
    digest: str

    @classmethod
    def current(cls, *, digest: str | None = None) -> Self:
        """Return the current environment of this process.

        :param digest: that of the process that has started this one, if both belong to one run.
        """
        variables = {name: value for name, value in os.environ.items() if _is_for_agent(name)}
        return cls(variables, digest or _digest(sorted(variables.items())))

    @classmethod
    def of_process(cls) -> AgentEnvironment:
        """Return the pinned environment, or else the current one."""
        return _pinned or cls.current()

    def pin(self) -> None:
        """Make all hosts of this process use this environment, even if tests change variables."""
        global _pinned
        _pinned = self

    @staticmethod
    def unpin() -> None:
        """Undo `pin`."""
        global _pinned
        _pinned = None


_pinned: AgentEnvironment | None = None


def lingering_id(config: AgentConfig, environment: AgentEnvironment) -> str:
    """Return the id of the agent that lingers for runs of this user with these options on this machine.

    The same id as that of a run. Another one belongs to each base directory, and to each boot of the machine.

    :param config: its ``run`` and its own ``directory`` do not count.
    """
    options = msgspec.structs.replace(config, run="", directory="")
    facts = (
        str(Path(config.directory).parent),
        ProcessIdentity.current().boot_id,
        (os.geteuid(), os.getegid(), sorted(os.getgroups())),
        os.access("/dev/kvm", os.R_OK | os.W_OK),
        sys.executable,
        installed_paths(),
        msgspec.json.encode(options),
        environment.digest,
    )
    return _digest(facts)[:16]


def _is_for_agent(name: str) -> bool:
    return name not in _OF_ONE_SHELL and not name.startswith(_OF_ONE_RUN)


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
