"""Workers that are named with ``--tx``, some of them behind proxies, and the hosts of their tests."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, inventory_of, require_rigs, ssh_rig

from pytest_propolis.storage.alpine import ALPINE_INITRD, ALPINE_KERNEL
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

TESTS = """
import json, os
import pytest

@pytest.mark.parametrize("number", range(8))
async def test_it(test_vm, propolis, number):
    assert await test_vm.run("echo up") == "up"
    with open("placed.jsonl", "a") as file:
        file.write(json.dumps([os.environ["PYTEST_XDIST_WORKER"], propolis.placed[0].name]) + "\\n")

@pytest.mark.multi_node(2)
async def test_on_two_hosts(vm_factory, remote_hosts):
    for host in remote_hosts:
        await vm_factory.start(host.name, host=host)
"""

INVENTORY = """
[hosts.left]
kind = "local"
slots = 2

[hosts.right]
kind = "local"
slots = 2
"""

THROUGH_PROXIES = (
    "--px=id=left//popen",
    "--px=id=right//popen",
    "--tx=popen//via=left//id=left-0",
    "--tx=popen//via=right//id=right-0",
)


@pytest.fixture
def placed(inner: InnerRun) -> InnerRun:
    inner.write(test_it=TESTS)
    (inner.pytester.path / "hosts.toml").write_text(INVENTORY)
    return inner


def test_workers_behind_proxies_run_tests_and_leave_nothing(placed: InnerRun) -> None:
    result = placed.run("--propolis-hosts", "hosts.toml", *THROUGH_PROXIES, "-v")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["*HostScheduling*"])
    rows = [json.loads(line) for line in (placed.pytester.path / "placed.jsonl").read_text().splitlines()]
    assert {worker for worker, _ in rows} == {"left-0", "right-0"}
    assert placed.leavings() == []


@pytest.mark.parametrize(
    ("arguments", "scheduling"),
    [
        pytest.param(("--tx=2*popen",), "HostScheduling", id="no mode is chosen"),
        pytest.param(("--tx=2*popen", "--dist=load"), "LoadScheduling", id="a mode is chosen", marks=pytest.mark.slow),
    ],
)
def test_workers_that_are_named_are_started(placed: InnerRun, arguments: Sequence[str], scheduling: str) -> None:
    result = placed.run("--propolis-hosts", "hosts.toml", *arguments, "-v")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines([f"*{scheduling}*"])


def test_no_worker_is_started_where_none_is_wanted(placed: InnerRun) -> None:
    result = placed.run("--propolis-hosts", "hosts.toml", "--tx=2*popen", "-n0", "--collect-only", "-q")
    assert "HostScheduling" not in result.stdout.str()
    assert result.ret == pytest.ExitCode.OK


REMOTE_TESTS = """
import json, os, socket
import pytest

@pytest.mark.parametrize("number", range(4))
async def test_it(test_vm, number):
    row = [os.environ["PYTEST_XDIST_WORKER"], socket.gethostname(), await test_vm.host.run("hostname")]
    assert await test_vm.run("echo up") == "up"
    with open("placed.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
"""


@pytest.fixture
def machines(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshRig]:
    """Two machines, which have the same directory of tests as this one, and with it the inventory of both."""
    require_rigs()
    if shutil.which("ssh") is None:
        pytest.skip("execnet needs ssh")
    with ssh_rig("h1", "h2") as rig:
        tests = rig.directory / "tests"
        tests.mkdir()
        (tests / "pytest.ini").write_text("[pytest]\n")
        (tests / "hosts.toml").write_text(inventory_of(rig))
        monkeypatch.chdir(tests)
        yield rig


def workers_of(rig: SshRig) -> tuple[str, ...]:
    """Return options for a worker on the first machine, and two behind a proxy on the second one."""
    ssh = f"ssh={{}}//ssh_config={rig.config}//python={shlex.quote(sys.executable)}"
    here = f"chdir={Path.cwd()}//env:PYTEST_DISABLE_PLUGIN_AUTOLOAD=1//env:PYTHONDONTWRITEBYTECODE=1"
    return (
        f"--tx={ssh.format('h1')}//{here}//id=h1",
        f"--px={ssh.format('h2')}//id=h2//execmodel=thread",
        f"--tx=popen//via=h2//{here}//id=h2-0",
        f"--tx=popen//via=h2//{here}//id=h2-1",
    )


def test_workers_on_other_machines_have_temporary_directories(inner: InnerRun, machines: SshRig) -> None:
    Path("test_it.py").write_text(
        """if True:
        import os, pytest

        @pytest.mark.parametrize("number", range(30))
        def test_it(number, tmp_path):
            (tmp_path / "file").touch()
            open("ran", "a").write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
        """
    )
    result = inner.run("--propolis-hosts=hosts.toml", *workers_of(machines))
    result.assert_outcomes(passed=30)
    assert set(Path("ran").read_text().split()) == {"h1", "h2-0", "h2-1"}


@pytest.mark.slow
def test_workers_on_other_machines_run_vms_on_their_own_host(inner: InnerRun, machines: SshRig) -> None:
    here = ArtifactStore(Path(os.environ.get("PROPOLIS_ARTIFACT_DIR") or default_artifact_dir()))
    for host in machines.hosts.values():  # they have no network to get the guest from
        for artifact in (ALPINE_KERNEL, ALPINE_INITRD):
            path = asyncio.run(here.get(artifact, print))
            store = host.home / ".cache/propolis/artifacts" / str(artifact.sha256)
            store.mkdir(parents=True)
            shutil.copy(path, store)
    Path("test_it.py").write_text(REMOTE_TESTS)
    # A worker takes a test for another host rather than wait for a template on its own: here there are none.
    options = ("--propolis-hosts=hosts.toml", "--propolis-guest=micro", "--propolis-boot=cold")
    result = inner.run(*options, *workers_of(machines))
    result.assert_outcomes(passed=4)
    rows = [json.loads(line) for line in Path("placed.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(worker.startswith(machine) and machine == host for worker, machine, host in rows), rows
    assert {name: host.processes() for name, host in machines.hosts.items()} == {"h1": {}, "h2": {}}
    assert all(host.run("ls", "/run/propolis") == "" for host in machines.hosts.values())
