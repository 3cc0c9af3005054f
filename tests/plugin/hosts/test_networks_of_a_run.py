"""Networks between VMs in a run: on several hosts, and what of them stays after a failed test."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import propolis

ECHO = 8
"""The type of an ICMP message: a ping."""


def frames(path: Path) -> list[bytes]:
    """The frames in a pcap file."""
    data, at, found = path.read_bytes(), 24, []
    assert struct.unpack_from("<IHH", data) == (0xA1B2C3D4, 2, 4)
    while at < len(data):
        size = struct.unpack_from("<I", data, at + 8)[0]
        found.append(data[at + 16 : at + 16 + size])
        at += 16 + size
    return found


@pytest.mark.slow
def test_a_network_of_two_hosts_is_captured_and_stays_with_kept_vms(inner: InnerRun) -> None:
    inner.write(
        test_it="""
        from pytest_propolis import Nic

        async def test_it(vm_factory, remote_hosts):
            lan = vm_factory.network("lan")
            here, there = remote_hosts
            a = await vm_factory.start("a", memory_mib=128, host=here, nics=(Nic(network=lan),))
            b = await vm_factory.start("b", memory_mib=128, host=here, nics=(Nic(network=lan),))
            await a.run(f"ping -c 1 -W 20 {b.address(lan)}")
            moved = await vm_factory.successor(b, host=there)
            await moved.migrate_from(b)
            await moved.wait_for_state("Running")
            assert 0 < (await moved.get_migration_report()).migration_in.pause_s < 60
            await a.run(f"ping -c 1 -W 20 {b.address(lan)}")
            await lan.cut(a, moved)
            assert (await a.run_result(f"ping -c 1 -W 1 {b.address(lan)}")).status != 0
            await lan.heal()
            await a.run(f"ping -c 3 -W 20 {b.address(lan)}")
            assert False
        """
    )
    result = inner.run("--propolis-hosts", "local:2", "--propolis-keep=failed")
    try:
        result.assert_outcomes(failed=1)
        (kept,) = re.findall(r"^  propolis console (\w+) +# VM 'a'", result.stdout.str(), re.MULTILINE)
        assert "1 packets received" in propolis("console", kept, typed="ping -c 1 -W 20 10.100.0.2\n")
    finally:
        propolis("gc", "--kept")
    assert inner.leavings() == []
    result.stdout.fnmatch_lines(["network: lan, 10.100.0.1, frames in *lan.local-1.pcap"])
    result.stdout.fnmatch_lines(["network: lan, 10.100.0.2, frames in *lan.local-2.pcap"])
    result.stdout.fnmatch_lines(["moved:   from local-1, *, stood still for *; phases at RamPush *"])
    captures = sorted(inner.pytester.path.rglob("lan.*.pcap"))
    assert [path.name for path in captures] == ["lan.local-1.pcap", "lan.local-2.pcap"]
    pings = [frame for frame in frames(captures[0]) if frame[12:14] == b"\x08\x00" and frame[34] == ECHO]
    assert len(pings) >= 4
