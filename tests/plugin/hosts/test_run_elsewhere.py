"""Tests that run again on other hosts, in a run that has much else to do there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, require_rigs, ssh_rig


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2", "h3", "h4") as made:
        yield made


@pytest.mark.slow
def test_a_test_on_three_hosts_runs_again_before_all_others_have_run(
    inner: InnerRun, rig: SshRig, hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIG_SWITCH", str(rig.switch.pid))
    hosts.write_text(hosts.read_text().replace("slots = 2", "slots = 1"))
    inner.write(
        test_it="""
        import asyncio, os, pytest, subprocess
        from pathlib import Path

        NOTES, STARTED, LOST = Path("notes"), Path("started"), Path("lost")

        def note(word):
            with NOTES.open("a") as file:
                file.write(word + "\\n")

        @pytest.mark.retry_elsewhere
        @pytest.mark.multi_node(3)
        async def test_wide(remote_hosts, vm_factory):
            note("wide")
            STARTED.touch()
            vms = [await vm_factory.start(host.name, host=host) for host in remote_hosts]
            if not LOST.exists():
                entered = ["nsenter", "-t", os.environ["RIG_SWITCH"], "-n"]
                subprocess.run([*entered, "ip", "link", "set", vms[0].host.name, "down"], check=True)
                try:
                    await vms[0].run("sleep 500", timeout_s=400)
                finally:
                    LOST.touch()

        @pytest.mark.parametrize("number", range(30))
        async def test_one(test_vm, number):
            while STARTED.exists() and not LOST.exists():  # enough of these tests are left then
                await asyncio.sleep(0.05)
            assert await test_vm.run(f"echo {number}") == str(number)
            note("one")
        """
    )
    result = inner.run("--propolis-hosts", str(hosts), "-n", "6")
    assert result.parseoutcomes() == {"passed": 31, "rerun": 1}
    notes = (inner.pytester.path / "notes").read_text().split()
    assert notes.count("wide") == 2
    last = len(notes) - notes[::-1].index("wide")
    assert notes[last:].count("one") >= 10, notes
