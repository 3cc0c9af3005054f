"""Children on illumos: the calls to libcontract, with a library that only records them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from psinfo_layout import psinfo

from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.operating_system.illumos import contracts as contracts_module
from pytest_propolis.operating_system.illumos.children import IllumosChildren
from pytest_propolis.operating_system.illumos.contracts import Contracts
from pytest_propolis.operating_system.illumos.processes import IllumosProcesses, privileged_kill

FUNCTIONS = {
    "ct_pr_tmpl_set_param": True,
    "ct_tmpl_set_critical": True,
    "ct_tmpl_set_informative": True,
    "ct_tmpl_activate": False,
    "ct_tmpl_clear": False,
    "ct_ctl_abandon": False,
}
"""The functions, and whether they take a number beside the descriptor."""

SOURCE = """
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int note(const char *name, int fd, long value) {
    FILE *calls = fopen(getenv("CALLS"), "a");
    fprintf(calls, "%s %d %ld\\n", name, fd >= 0, value);
    fclose(calls);
    const char *refused = getenv("REFUSED");
    return refused && !strcmp(refused, name) ? EPERM : 0;
}
"""

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Install a libcontract; return a function that reads the recorded calls."""
    lines = [SOURCE]
    for name, has_value in FUNCTIONS.items():
        parameters, value = ("int fd, unsigned value", "value") if has_value else ("int fd", "-1")
        lines.append(f'int {name}({parameters}) {{ return note("{name}", fd, {value}); }}')
    (tmp_path / "contract.c").write_text("\n".join(lines))
    library = tmp_path / "libcontract.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "contract.c"], check=True, timeout=60)
    monkeypatch.setattr(contracts_module, "LIBRARY", str(library))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "calls").touch()
    return lambda: (tmp_path / "calls").read_text().splitlines()


@pytest.fixture
def children(tmp_path: Path) -> IllumosChildren:
    (tmp_path / "contracts" / "77").mkdir(parents=True)
    (tmp_path / "contracts" / "template").touch()
    (tmp_path / "contracts" / "77" / "ctl").touch()
    (tmp_path / "proc" / "4711").mkdir(parents=True)
    (tmp_path / "proc" / "4711" / "psinfo").write_bytes(psinfo(pr_pid=4711, pr_nlwp=1, pr_contract=77))
    processes = IllumosProcesses(tmp_path / "proc", kill=privileged_kill)
    return IllumosChildren(processes, Contracts(tmp_path / "contracts"), kill=privileged_kill)


@needs_compiler
def test_a_child_is_started_under_a_contract_whose_members_die_with_its_holder(
    children: IllumosChildren, calls: Callable[[], list[str]]
) -> None:
    with children.ending_with_parent() as prefix:
        assert prefix == ()
        during = calls()
    assert during == [
        "ct_pr_tmpl_set_param 1 2",
        "ct_tmpl_set_critical 1 0",
        "ct_tmpl_set_informative 1 0",
        "ct_tmpl_activate 1 -1",
    ]
    assert calls()[4:] == ["ct_tmpl_clear 1 -1"]


@needs_compiler
def test_what_has_left_the_process_group_is_killed_with_the_contract(
    children: IllumosChildren, calls: Callable[[], list[str]]
) -> None:
    members = children.descendants(4711, pipe=-1)
    members.kill()
    members.close()
    assert calls() == ["ct_ctl_abandon 1 -1"]


@needs_compiler
def test_a_contract_that_is_gone_is_not_abandoned(
    children: IllumosChildren, calls: Callable[[], list[str]], tmp_path: Path
) -> None:
    members = children.descendants(4711, pipe=-1)
    shutil.rmtree(tmp_path / "contracts" / "77")
    members.close()
    children.descendants(4712, pipe=-1).kill()
    assert calls() == []


@needs_compiler
def test_a_refused_contract_is_an_error_that_says_why(
    children: IllumosChildren, calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "ct_tmpl_activate")
    with pytest.raises(CapabilityMissing, match="process contracts do not work here") as caught:
        children.ending_with_parent().__enter__()
    assert os.strerror(1) in str(caught.value)


def test_without_the_library_or_the_file_system_the_error_says_what_is_missing(
    children: IllumosChildren, tmp_path: Path
) -> None:
    with pytest.raises(CapabilityMissing, match=r"libcontract\.so\.1"), children.ending_with_parent():
        pass
    (tmp_path / "contracts" / "template").unlink()
    with pytest.raises(CapabilityMissing, match="contracts/template: No such file"), children.ending_with_parent():
        pass


@pytest.fixture
def pfexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a `pfexec` that records and runs its command; return the file of records."""
    program = tmp_path / "pfexec"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\nexec "$@"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_a_process_with_more_privileges_is_signalled_by_pfexec(pfexec: Path) -> None:
    with subprocess.Popen(["sleep", "1000"], process_group=0) as process:
        privileged_kill(-process.pid, signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    assert pfexec.read_text() == f"kill -TERM -- -{process.pid}\n"


def test_a_refusal_of_pfexec_is_an_error_with_its_words(pfexec: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait(60)
        with pytest.raises(PermissionError, match=rf"{process.pid} may not be signalled: .*kill"):
            privileged_kill(process.pid, signal.SIGTERM)


def test_without_pfexec_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PermissionError, match="no pfexec on PATH"):
        privileged_kill(1, signal.SIGTERM)
