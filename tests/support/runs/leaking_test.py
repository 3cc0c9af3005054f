"""A test that leaves a process behind, for tests of the leak check."""

from __future__ import annotations

# Started in a session of its own, with the tag of a living process entry: as a child that was forgotten.
LEAKS_A_PROCESS = """
import os, subprocess, sys
from pytest_propolis.ledger.entry import TAG_VARIABLE
from pytest_propolis.ledger.ledger import LEDGER_NAME, read_ledger

async def test_it(vm_factory, propolis):
    await vm_factory.create()
    tag = read_ledger(propolis.host.directory / LEDGER_NAME).header.tag
    stray = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, TAG_VARIABLE: f"{tag}-forgotten"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with open(os.environ["STRAY"], "w") as file:
        file.write(str(stray.pid))
"""
