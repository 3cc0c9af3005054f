"""Commands for hosts that only a run reaches: those that join it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from inner_run import InnerRun
from propolis_command import propolis

FAILS = "async def test_it(test_vm):\n    await test_vm.run('echo a line of before >/dev/ttyS0; false')\n"
FAR = '[hosts.far]\nkind = "joined"\n'
REFUSAL = """host far: it is reached only by a run that it has joined
  hint: on that machine, run the command without --hosts; a run listens with --propolis-listen ADDRESS
"""


@pytest.fixture
def hosts(inner: InnerRun) -> str:
    path = inner.pytester.path / "hosts.toml"
    path.write_text(FAR + '[hosts.near]\nkind = "local"\n')
    return str(path)


@pytest.fixture
def far(inner: InnerRun) -> str:
    """An inventory with the host that joins only."""
    path = inner.pytester.path / "far.toml"
    path.write_text(FAR)
    return str(path)


@pytest.fixture
def vm(inner: InnerRun) -> Iterator[str]:
    """The id of a VM that is kept on this machine."""
    inner.write(test_it=FAILS)
    inner.run("--propolis-keep=failed", "--propolis-memory-mib=192").assert_outcomes(failed=1)
    (line,) = propolis("ps", "--kept").splitlines()[1:2]
    yield line.split("kept until")[1].split(" vm ")[1].split()[0]
    propolis("gc", "--kept")


@pytest.mark.parametrize("command", ["ps", "ps --kept", "gc", "gc --kept --dry-run", "doctor"])
def test_the_remedy_is_named_in_the_place_of_the_hosts_output(far: str, command: str) -> None:
    assert propolis(*command.split(), "--hosts", far, status=1) == f"far:\n{REFUSAL}"


def test_the_other_hosts_answer(hosts: str) -> None:
    shown = propolis("ps", "--hosts", hosts, status=1)
    assert "near (this machine):\nnothing is there\n" in shown
    assert REFUSAL in shown


def test_doctor_has_it_as_json(far: str) -> None:
    found = json.loads(propolis("doctor", "--json", "--hosts", far, status=1))
    assert found == {"hosts": {"far": {"can_run_vms": False, "error": REFUSAL.strip()}}}


@pytest.mark.parametrize("command", ["console", "exec"])
def test_a_vm_that_is_not_found_may_be_there(hosts: str, command: str) -> None:
    status = {"console": 1, "exec": 125}[command]
    words = {"console": [], "exec": ["--", "true"]}[command]
    shown = propolis(command, "--hosts", hosts, "0123", *words, status=status)
    assert shown == f"propolis: {REFUSAL}"


def test_a_vm_of_another_host_is_reached(hosts: str, vm: str) -> None:
    shown = propolis("console", vm, "--hosts", hosts, typed="echo $((6 * 7))\r")
    assert "\n42\n" in shown.replace("\r", "")
    assert "host far: it is reached only by a run that it has joined" in shown
    assert propolis("exec", "--hosts", hosts, vm, "--", "echo there").endswith("there\n")
