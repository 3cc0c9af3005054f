"""``python -m pytest_propolis.agent CONFIG READY_FD``: run an agent until its last client leaves."""

from __future__ import annotations

import sys

import msgspec

from .process import run_agent
from .protocol import AgentConfig

if __name__ == "__main__":
    run_agent(msgspec.json.decode(sys.argv[1], type=AgentConfig), ready_fd=int(sys.argv[2]))
