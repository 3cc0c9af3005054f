"""``python -m pytest_propolis.agent CONFIG READY_FD [PARENT_DEATH_FD]``: run an agent until its last client leaves."""

from __future__ import annotations

import logging
import os
import sys

import msgspec

from ..agent_api.agent_process import AgentConfig
from .process import run_agent

if __name__ == "__main__":
    run_agent(
        msgspec.json.decode(sys.argv[1], type=AgentConfig),
        ready_fd=int(sys.argv[2]),
        parent_death_fd=int(sys.argv[3]) if sys.argv[3:] else None,
    )
    # All is removed by now, and the end of a run waits for this process: taking its modules apart would take longer.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)
