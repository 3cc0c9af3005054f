"""A debugger's prompt after a test has failed."""

from __future__ import annotations

import re
import sys

import pytest
from inner_run import InnerRun

pytestmark = pytest.mark.usefixtures("no_autoload")

FAILS = """
async def test_fails(vm_factory):
    vm = await vm_factory.start("alice", memory_mib=192)
    await vm.run("echo shown; export greeting=hello")
    assert vm is None
"""

AT_A_BREAKPOINT = """
async def test_stops(vm_factory):
    vm = await vm_factory.create("alice")
    breakpoint()
"""


def debugged(inner: InnerRun, typed: str) -> pytest.RunResult:
    """Run with ``--pdb``, and type this at the prompt."""
    command = (sys.executable, "-m", "pytest", "-p", "propolis", "--pdb", "--asyncio-mode=auto")
    return inner.pytester.run(*command, stdin=typed.encode(), timeout=240)


def test_before_the_prompt_it_is_said_how_to_reach_the_vms(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    output = debugged(inner, "q\n").stdout.str()
    said, _, _ = output.partition("entering PDB")
    assert re.search(r"propolis: VM 'alice' is up .*`debug`.*propolis console \w{8,} shows", said)


def test_commands_run_at_the_prompt_in_the_shell_of_the_test(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    result = debugged(inner, "p vm.debug('printenv greeting; false')\nq\n")
    result.stdout.fnmatch_lines(["*(Pdb) *'hello'*"])


def test_the_console_can_be_looked_at_from_the_prompt(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    result = debugged(inner, "p vm.console.tail()\nq\n")
    result.stdout.fnmatch_lines(["*(Pdb) *'shown'*"])


def test_at_a_breakpoint_the_prompt_is_told_what_works_instead(inner: InnerRun) -> None:
    inner.write(test_it=AT_A_BREAKPOINT)
    result = debugged(inner, "vm.debug('true')\nq\n")
    result.stdout.fnmatch_lines(["*ConfigError: VM 'alice': its event loop runs*"])
