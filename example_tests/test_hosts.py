"""Several hosts: a guest that migrates from one to another. Needs an inventory: ``--propolis-hosts local:3``."""

from __future__ import annotations

import itertools
import statistics

import pytest

from pytest_propolis import DataDisk, Host, InstanceState, Nic, NotSameAs, TestVm, VmFactory

CODE = bytes.fromhex(
    "4883ec30"  # sub $48, %rsp
    "0f31 48c1e220 4809d0"  # rdtsc; rax = rdx:eax
    "488d7c2410 c6070a b910000000"  # buffer, a newline at its end, 16 digits
    "89c2 83e20f 83c230 83fa3a 7203 83c227"  # the lowest digit as a letter
    "48ffcf 8817 48c1e804 e2e5"  # into the buffer, next digit
    "4889fe 6a11 5a 6a01 5f 89f8 0f05"  # write(1, buffer, 17)
    "48c744241801000000 48c744242000000000"  # one second
    "488d7c2418 31f6 6a23 58 0f05"  # nanosleep
    "eba2"  # again
)
"""A program that prints the processor's time-stamp counter once a second, in hexadecimal."""


def program() -> bytes:
    """A static ELF program of one segment, for x86-64."""
    address, headers = 0x400000, 120
    size = (headers + len(CODE)).to_bytes(8, "little")
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    entry = (address + headers).to_bytes(8, "little")
    header = ident + bytes.fromhex("02003e0001000000") + entry + (64).to_bytes(8, "little") + bytes(12)
    header += bytes.fromhex("400038000100000000000000")
    place = address.to_bytes(8, "little")
    segment = bytes.fromhex("0100000005000000") + bytes(8) + place + place + size + size + (4096).to_bytes(8, "little")
    return header + segment + CODE


async def ticks(vm: TestVm, count: int) -> list[int]:
    """Wait until the program has printed so many lines, and return them."""
    waiting = f"until [ $(wc -l < /tmp/ticks) -ge {count} ]; do sleep 0.2; done; cat /tmp/ticks"
    return [int(line, 16) for line in (await vm.run(waiting, timeout_s=60)).split()]


@pytest.mark.multi_node(2)
async def test_the_time_stamp_counter_goes_on_at_its_rate_on_another_host(
    vm_factory: VmFactory, remote_hosts: tuple[Host, ...]
) -> None:
    here, there = remote_hosts
    source = await vm_factory.start("source", guest="micro", host=here)
    octal = "".join(f"\\{byte:03o}" for byte in program())
    await source.run(f"printf '{octal}' > /tmp/tsc && chmod +x /tmp/tsc")
    await source.run("/tmp/tsc > /tmp/ticks 2>&1 &")
    before = await ticks(source, 4)

    target = await vm_factory.successor(source, host=there)
    await target.migrate_from(source)
    await source.wait_for_state(InstanceState.DESTROYED)

    after = await ticks(target, len(before) + 5)
    assert after[: len(before)] == before
    steps = [late - early for early, late in itertools.pairwise(after)]
    assert min(steps) > 0
    rate, later_rate = statistics.median(steps[: len(before) - 1]), statistics.median(steps[-4:])
    assert 0.5 < later_rate / rate < 2


async def test_what_a_guest_wrote_on_its_disk_is_there_after_it_has_moved(
    vm_factory: VmFactory, remote_host: Host
) -> None:
    disk = DataDisk(name="data", size_mib=16)
    source = await vm_factory.start("source", guest="micro", disks=(disk,))
    await source.run("echo kept | dd of=/dev/vda bs=512 conv=sync && sync")

    target = await vm_factory.successor(source, host=NotSameAs(source))
    await target.migrate_from(source)

    assert target.host is remote_host
    assert await target.run("head -n 1 /dev/vda") == "kept"


@pytest.mark.multi_node(2)
async def test_guests_on_two_hosts_reach_each_other_also_after_one_has_moved(
    vm_factory: VmFactory, remote_hosts: tuple[Host, ...]
) -> None:
    here, there = remote_hosts
    lan = vm_factory.network("lan")
    left = await vm_factory.start("left", guest="micro", host=here, nics=(Nic(network=lan),))
    right = await vm_factory.start("right", guest="micro", host=there, nics=(Nic(network=lan),))
    await left.run(f"ping -c 1 -W 20 {right.address(lan)}", timeout_s=60)

    moved = await vm_factory.successor(right, host=here)
    await moved.migrate_from(right)

    await left.run(f"ping -c 1 -W 20 {moved.address(lan)}", timeout_s=60)
    await moved.run(f"ping -c 1 -W 20 {left.address(lan)}", timeout_s=60)
