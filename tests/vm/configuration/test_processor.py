"""CPUID templates and Hyper-V, as a guest sees them or is refused them."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import Any

import pytest

from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.cpu.cpuid_bits import FEATURES
from pytest_propolis.errors import ApiError
from pytest_propolis.propolis_api import Cpuid, CpuidEntry, CpuidVendor
from pytest_propolis.vm.factory import VmFactory

BRAND = b"A processor, made for a test"

# What Linux needs, and a little more.
LEAF_1_EDX = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2"
LEAF_1_ECX = "pni ssse3 cx16 sse4.1 popcnt"
EXTENDED_EDX = "syscall nx lm"


def entry(leaf: int, **registers: int) -> CpuidEntry:
    return CpuidEntry(leaf=leaf, **({"eax": 0, "ebx": 0, "ecx": 0, "edx": 0} | registers))


def bits(leaf: int, register: str, names: str) -> int:
    numbers = {
        name: bit
        for place, known in FEATURES.items()
        if (place.leaf, place.name) == (leaf, register)
        for bit, name in known.items()
    }
    return sum(1 << numbers[name] for name in names.split())


def template(**leaf_1: int) -> Cpuid:
    padded = BRAND.ljust(48, b"\0")
    words = [int.from_bytes(padded[place : place + 4], "little") for place in range(0, 48, 4)]
    brand = (
        entry(0x80000002 + n, eax=words[4 * n], ebx=words[4 * n + 1], ecx=words[4 * n + 2], edx=words[4 * n + 3])
        for n in range(3)
    )
    registers = {"eax": 0x000106A3, "ecx": bits(1, "ecx", LEAF_1_ECX), "edx": bits(1, "edx", LEAF_1_EDX)} | leaf_1
    return Cpuid(
        entries=(
            entry(0, eax=1, ebx=0x756E6547, edx=0x49656E69, ecx=0x6C65746E),
            entry(1, **registers),
            entry(0x80000001, edx=bits(0x80000001, "edx", EXTENDED_EDX)),
            *brand,
        ),
        vendor=CpuidVendor.INTEL,
    )


async def test_a_guest_sees_the_processor_of_its_template(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, cpuid=template())
    lines = (await vm.run("cat /proc/cpuinfo")).splitlines()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
    assert told["model name"] == BRAND.decode()
    assert told["vendor_id"] == "GenuineIntel"
    assert (told["cpu family"], told["model"], told["stepping"], told["cpuid level"]) == ("6", "26", "3", "1")
    flags = set(told["flags"].split())
    assert {"sse4_1", "popcnt", "nx", "lm"} <= flags
    # What the usual model has and the template has not.
    assert not flags & {"sse4_2", "lahf_lm", "hypervisor"}
    assert (await vm.get_spec()).value == vm.spec


async def test_a_template_that_cannot_be_had_answers_400_and_names_the_leaf(vm_factory: VmFactory) -> None:
    for number, (cpuid, complaint) in enumerate(
        (
            (
                Cpuid(entries=(entry(4, eax=1),), vendor=CpuidVendor.AMD),
                "QEMU cannot be told what leaf 0x4 eax returns",
            ),
            # No emulator has process context ids.
            (template(ecx=bits(1, "ecx", "pcid")), "has no feature 'pcid'"),
        )
    ):
        vm = await vm_factory.create(f"vm-{number}", guest="micro", cpuid=cpuid)
        with pytest.raises(ApiError, match=complaint) as caught:
            await vm.ensure()
        assert caught.value.status == 400


async def test_hyper_v_under_emulation_answers_400_and_says_why(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro", hyper_v=())
    with pytest.raises(ApiError, match="Hyper-V needs KVM: emulation, which this host uses, would ignore it") as caught:
        await vm.ensure()
    assert caught.value.status == 400


async def test_each_feature_sits_in_the_bit_that_the_table_says() -> None:
    qemu = await find_qemu(None)
    for register, names in FEATURES.items():
        cpu = ",".join(["base", "level=13", f"xlevel={0x80000008}", *(f"{name}=on" for name in names.values())])
        told = ask_for_features([str(qemu.system), *qemu.arguments, "-cpu", cpu])
        found = 0
        for word in told:
            place = word["cpuid-input-eax"], word.get("cpuid-input-ecx", 0), word["cpuid-register"].lower()
            found |= word["features"] if place == tuple(register) else 0
        assert found == sum(1 << bit for bit in names), register


def ask_for_features(command: list[str]) -> list[dict[str, Any]]:
    """Return the features requested from QEMU: supported by its emulation, and unsupported."""
    ours, theirs = socket.socketpair()
    channel = ["-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control"]
    machine = ["-S", "-nodefaults", "-display", "none", "-accel", "tcg", *channel]
    process = subprocess.Popen([*command, *machine], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    theirs.close()
    ours.settimeout(30)
    try:
        with ours.makefile("rw") as stream:
            stream.readline()

            def ask(command: str, **arguments: str) -> Any:
                stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                stream.flush()
                return json.loads(stream.readline())["return"]

            ask("qmp_capabilities")
            cpu = "/machine/unattached/device[0]"
            words = [ask("qom-get", path=cpu, property=name) for name in ("feature-words", "filtered-features")]
            return [word for told in words for word in told]
    finally:
        ours.close()
        process.kill()
        process.wait()
