"""pytest with an inventory of SSH hosts, as a user runs it, on real guests."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import serving
from inner_run import InnerRun
from ssh_rig import SshRig, require_rigs, ssh_rig

CLEAN_TIMEOUT_S = 60.0
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2") as made:
        yield made


@pytest.fixture
def cables(rig: SshRig, inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test of an inner run import ``cut``, which takes a host's cable out."""
    monkeypatch.setenv("RIG_SWITCH", str(rig.switch.pid))
    inner.write(
        cables="""
        import os, subprocess

        def cut(host):
            entered = ["nsenter", "-t", os.environ["RIG_SWITCH"], "-n"]
            subprocess.run([*entered, "ip", "link", "set", host, "down"], check=True)
        """
    )


def test_a_test_whose_host_is_cut_off_fails_with_the_host_and_the_reason(
    inner: InnerRun, rig: SshRig, hosts: Path, cables: None
) -> None:
    inner.write(
        test_it="""
        from cables import cut

        async def test_it(test_vm):
            await test_vm.run("true")
            cut("h1")
            await test_vm.run("sleep 500", timeout_s=400)
        """
    )
    result = inner.run("--propolis-hosts", str(hosts))
    result.stdout.fnmatch_lines(["E * VM *: host h1 is lost: nothing was heard from it for 4 s"])
    deadline = time.monotonic() + CLEAN_TIMEOUT_S
    while any(not line.startswith("sshd: ") for line in rig.hosts["h1"].processes().values()):
        assert time.monotonic() < deadline, rig.hosts["h1"].processes()
        select.select([], [], [], 0.05)


@pytest.mark.slow
def test_after_a_host_is_lost_the_other_one_runs_the_tests(inner: InnerRun, hosts: Path, cables: None) -> None:
    inner.write(
        test_it="""
        import pytest
        from cables import cut

        async def test_0(test_vm):
            cut(test_vm.host.name)
            await test_vm.run("sleep 500", timeout_s=400)

        @pytest.mark.parametrize("number", range(6))
        async def test_1(test_vm, number):
            assert await test_vm.run(f"echo {number}") == str(number)

        @pytest.mark.multi_node(2)
        async def test_2(remote_hosts, vm_factory):
            for host in remote_hosts:
                await vm_factory.start(host.name, host=host)
        """
    )
    result = inner.run("--propolis-hosts", str(hosts), "-n", "2")
    outcomes = result.parseoutcomes()
    # One test of the other worker may be on the host when its cable is cut.
    assert 5 <= outcomes["passed"] <= 7, outcomes
    # An error is a teardown on the lost host, or the setup of a test that was about to start there.
    assert sum(outcomes.get(kind, 0) for kind in ("passed", "failed", "errors")) >= 8


def test_a_disk_of_an_image_here_is_on_a_guest_there(inner: InnerRun, hosts: Path) -> None:
    inner.write(
        test_it="""
        from pytest_propolis import DataDisk

        async def test_it(vm_factory, tmp_path, remote_host):
            (tmp_path / "image.raw").write_bytes(b"from here".ljust(1 << 20, b"\\0"))

            vm = await vm_factory.start(host=remote_host, disks=(DataDisk(name="data", image=tmp_path / "image.raw"),))
            assert vm.host.name == "h2"
            (image,) = (await vm.host.run("ls ~/.cache/propolis/files/*/image.raw")).splitlines()
            assert await vm.host.run(f"head -c 9 {image}") == "from here"
            # The guest micro has no driver for disks. Its disk is an overlay, which names what lies below it.
            assert await vm.host.run(f"grep -rl {image} ~/.cache/propolis/artifacts/disks")
        """
    )
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=1)


@pytest.mark.slow
def test_an_artifact_is_downloaded_here_while_the_test_fakes_http(inner: InnerRun, hosts: Path, tmp_path: Path) -> None:
    # New content in each run, in the store that has the guests: there is no network for a store of its own.
    content = b"of a server" + os.urandom(16).ljust(1 << 20, b"\0")
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "image.raw").write_bytes(content)
    inner.write(
        test_it="""
        import httpcore, httpx, pytest
        from pytest_propolis import ImageDisk

        @pytest.fixture
        def fake(monkeypatch):
            def refuse(*args, **kwargs):
                raise AssertionError("not mocked")

            monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
            monkeypatch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", refuse)
            monkeypatch.setattr(httpx, "AsyncClient", None)

        async def test_it(fake, vm_factory):
            vm = await vm_factory.start(disks=(ImageDisk("image"),))
            assert vm.host.name == "h1"
            await vm.run("modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done")
            assert await vm.run("head -c 11 /dev/vda") == "of a server"
        """
    )
    with serving(tmp_path) as url:
        source = f'{{ url = {{ url = "{url}/image.raw", sha256 = "{sha256}" }} }}'
        (inner.pytester.path / "artifacts.toml").write_text(
            f'[artifacts.image]\nfilename = "image.raw"\nkind = "file"\nsource = {source}\n'
        )
        result = inner.run("--propolis-hosts", str(hosts), "--propolis-artifacts", "artifacts.toml")
    shutil.rmtree(Path(os.environ.get("PROPOLIS_ARTIFACT_DIR") or CACHE / "propolis/artifacts") / sha256)
    result.assert_outcomes(passed=1)


def test_a_guest_on_an_ssh_host_runs_commands_and_leaves_nothing(inner: InnerRun, rig: SshRig, hosts: Path) -> None:
    inner.write(
        test_it="""
        import asyncio
        from pytest_propolis import Nic

        async def test_it(test_vm):
            assert await test_vm.run("uname") == "Linux"
            assert await test_vm.host.run("hostname") == test_vm.host.name == "h1"

        async def test_port(vm_factory):
            vm = await vm_factory.start(nics=(Nic(),))
            await vm.run("while true; do echo hello | nc -l -p 80; done >/dev/null 2>&1 &")
            port, said = await vm.forward(80), b""
            while not said:  # nc may not listen yet
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                said = await reader.read()
                writer.close()
            assert said == b"hello\\n"
        """
    )
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=2)
    assert {name: host.processes() for name, host in rig.hosts.items()} == {"h1": {}, "h2": {}}
    assert rig.hosts["h1"].run("ls", "/run/propolis") == ""


RETRIED = """
import pytest
from pathlib import Path
from cables import cut

@pytest.fixture(scope="module")
def wide(): yield

@pytest.mark.retry_elsewhere
async def test_0(test_vm, wide):
    Path("ran").open("a").write(test_vm.host.name + "\\n")
    if not Path("cut").exists():
        Path("cut").touch()
        cut(test_vm.host.name)
        await test_vm.run("sleep 500", timeout_s=400)
    assert await test_vm.run("echo here") == "here"

@pytest.mark.parametrize("number", range(3))
async def test_1(test_vm, number, wide):
    assert await test_vm.run(f"echo {number}") == str(number)
"""


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)])
def test_a_test_whose_host_is_lost_runs_again_on_another_one(
    inner: InnerRun, hosts: Path, cables: None, workers: tuple[str, ...]
) -> None:
    inner.write(test_it=RETRIED)
    result = inner.run("--propolis-hosts", str(hosts), *workers)
    outcomes = result.parseoutcomes()
    assert outcomes == {"passed": 4, "rerun": 1}
    first, second = (inner.pytester.path / "ran").read_text().split()
    assert {first, second} == {"h1", "h2"}
    result.stdout.fnmatch_lines([f"propolis: test_it.py::test_0 has run again elsewhere: *host {first} is lost: *"])


@pytest.mark.slow
def test_a_lost_host_that_comes_back_is_used_again(inner: InnerRun, hosts: Path, cables: None) -> None:
    inner.write(
        test_it="""
        import subprocess, os, pytest
        from pathlib import Path
        from cables import cut

        async def test_0(test_vm):
            cut(test_vm.host.name)
            with pytest.raises(Exception):
                await test_vm.run("sleep 500", timeout_s=400)
            entered = ["nsenter", "-t", os.environ["RIG_SWITCH"], "-n"]
            subprocess.run([*entered, "ip", "link", "set", test_vm.host.name, "up"], check=True)
            assert False

        async def test_1(test_vm):
            for _ in range(60):
                states = [b'"state":"lost"' in line for line in Path("status.jsonl").read_bytes().splitlines()]
                if True in states and not states[-1]:
                    break
                await test_vm.run("sleep 1")
        """
    )
    path = inner.pytester.path / "hosts.toml"
    path.write_text(path.read_text().replace("slots = 2", "slots = 1"))
    result = inner.run("--propolis-hosts", str(hosts), "-n", "2", "--propolis-status", "status.jsonl")
    assert result.parseoutcomes()["passed"] == 1  # the lost VM's teardown may fail, too
    states = [
        line.count(b'"state":"lost"') for line in (inner.pytester.path / "status.jsonl").read_bytes().splitlines()
    ]
    assert 1 in states
    assert states[-1] == 0


@pytest.mark.slow
def test_each_host_has_the_engine_as_a_program(inner: InnerRun, hosts: Path) -> None:
    inner.write(
        test_it="""
        import pytest

        @pytest.mark.multi_node(2)
        async def test_it(remote_hosts, vm_factory):
            for host in remote_hosts:
                vm = await vm_factory.start(host.name, guest="micro", host=host, server="propolis-server-qemu")
                assert vm.boot_kind == "cold"
                assert await vm.run("echo here") == "here"
            successor = await vm_factory.successor(vm, host=remote_hosts[0])
            await successor.migrate_from(vm)
            assert await successor.run("echo there") == "there"
        """
    )
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=1)


@pytest.mark.slow
def test_servers_on_each_host_have_metrics_in_the_engine_and_as_programs(inner: InnerRun, hosts: Path) -> None:
    inner.write(
        test_it="""
        import pytest

        @pytest.mark.multi_node(2)
        @pytest.mark.parametrize("server", ["engine", "propolis-server-qemu"])
        async def test_it(remote_hosts, vm_factory, metrics, server):
            small = {"guest": "micro", "cpus": 1, "server": server}
            vms = [await vm_factory.start(host.name, host=host, **small) for host in remote_hosts]
            for vm in vms:
                before = await metrics.snapshot(vm)
                await vm.run("i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done")
                assert (await metrics.snapshot(vm)).vcpu_ns("run") > before.vcpu_ns("run")
            heir = await vm_factory.successor(vms[0], host=remote_hosts[1])
            await heir.migrate_from(vms[0])
            assert (await metrics.snapshot(heir)).resets == 0
        """
    )
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=2)
