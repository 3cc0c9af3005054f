"""The settings by which all processes of a run find the same lingering agent."""

from __future__ import annotations

from typing import Any, Final

import pytest

from ..hosts.lingering import AgentEnvironment
from .internals import set_worker_input, worker_input

__all__ = ["PinnedEnvironment"]

DIGEST_KEY: Final = "propolis_environment"


class PinnedEnvironment:
    """A plugin of each process of a run with ``--propolis-linger``.

    The environment is captured when the session starts: conftest files have made their changes by then, and changes by
    single tests do not affect an agent that other runs use.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Run before xdist's controller starts its workers."""
        AgentEnvironment.current(digest=worker_input(session.config).get(DIGEST_KEY)).pin()
        session.config.add_cleanup(AgentEnvironment.unpin)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Workers have more variables than their controller, so the controller's decide which agent all of them use."""
        set_worker_input(node, DIGEST_KEY, AgentEnvironment.of_process().digest)
