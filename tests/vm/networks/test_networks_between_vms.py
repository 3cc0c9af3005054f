"""Networks between VMs of one host: addresses, faults, captures, and a guest that moves."""

from __future__ import annotations

import re

import pytest

from pytest_propolis import ConfigError, Nic, TestVm, VmFactory


async def start(factory: VmFactory, name: str, *networks: str) -> TestVm:
    nics = tuple(Nic(name=f"nic-{network}", network=factory.network(network)) for network in networks)
    return await factory.start(name, guest="micro", cpus=1, memory_mib=128, nics=nics)


async def reaches(source: TestVm, address: str, *, wait_s: int = 20) -> bool:
    return (await source.run_result(f"ping -c 1 -W {wait_s} {address}", timeout_s=60)).status == 0


async def test_vms_of_a_network_reach_each_other_and_no_others(vm_factory: VmFactory) -> None:
    lan, other = vm_factory.network("lan"), vm_factory.network("other")
    a, b = await start(vm_factory, "a", "lan", "other"), await start(vm_factory, "b", "lan")
    c = await start(vm_factory, "c", "other")
    assert (a.address(lan), b.address(lan), a.address(other)) == ("10.100.0.1", "10.100.0.2", "10.101.0.1")
    assert await reaches(a, b.address(lan))
    assert await reaches(a, c.address(other))
    await c.run("ip addr add 10.100.0.3/24 dev $(ls /sys/class/net | grep -v lo)")
    assert not await reaches(c, b.address(lan), wait_s=1)
    with pytest.raises(ConfigError, match="no card in network 'lan'"):
        c.address(lan)


async def test_faults_are_there_until_they_are_healed(vm_factory: VmFactory) -> None:
    lan = vm_factory.network("lan")
    a, b, c = [await start(vm_factory, name, "lan") for name in "abc"]
    assert await reaches(a, b.address(lan))
    await lan.cut(a, b)
    assert not await reaches(a, b.address(lan), wait_s=1)
    assert await reaches(a, c.address(lan))
    await lan.heal()
    assert await reaches(a, b.address(lan))
    await lan.delay(delay_ms=400)
    times = await a.run(f"ping -c 2 -W 20 {b.address(lan)}", timeout_s=60)
    assert min(map(float, re.findall(r"time=([\d.]+)", times))) >= 800, times
    await lan.heal()
    await lan.lose(loss_percent=100)
    assert not await reaches(a, c.address(lan), wait_s=1)
    await lan.heal()
    assert await reaches(a, c.address(lan))


async def test_a_guest_keeps_its_address_and_its_place_when_it_moves(vm_factory: VmFactory) -> None:
    lan = vm_factory.network("lan")
    a, b = await start(vm_factory, "a", "lan"), await start(vm_factory, "b", "lan")
    assert await reaches(a, b.address(lan))
    moved = await vm_factory.successor(b)
    await moved.migrate_from(b)
    assert moved.address(lan) == "10.100.0.2"
    assert await reaches(a, moved.address(lan))
    assert await reaches(moved, a.address(lan))
    await lan.cut(a, moved)
    assert not await reaches(a, moved.address(lan), wait_s=1)


@pytest.mark.slow
async def test_a_guest_has_its_address_after_a_reboot_and_when_it_was_not_forked(vm_factory: VmFactory) -> None:
    lan = vm_factory.network("lan")
    a = await start(vm_factory, "a", "lan")
    nics = (Nic(network=lan),)
    b = await vm_factory.start("b", guest="micro", cpus=1, memory_mib=128, nics=nics, boot="cold")
    assert await reaches(a, b.address(lan))
    await b.graceful_reboot()
    assert await reaches(a, b.address(lan))


async def test_what_no_network_can_do_is_refused_by_name(vm_factory: VmFactory) -> None:
    lan = vm_factory.network("lan")
    assert vm_factory.network("lan") is lan
    with pytest.raises(ConfigError, match="'a b' cannot be its name"):
        vm_factory.network("a b")
    with pytest.raises(ConfigError, match="delay_ms is -1"):
        await lan.delay(delay_ms=-1)
    with pytest.raises(ConfigError, match="loss_percent is 101"):
        await lan.lose(loss_percent=101)
    with pytest.raises(ConfigError, match="two of its cards are in network 'lan'"):
        await vm_factory.create(nics=(Nic(network=lan), Nic(name="other", network=lan)))
