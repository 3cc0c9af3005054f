"""Bad input: each ends in one clear error with the culprit and the remedy, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from mounts import as_root, mounted, tmpfs

from pytest_propolis.hosts.run_directory import run_token
from pytest_propolis.ledger.rendezvous import Rendezvous

BOOTS = "async def test_it(test_vm): ..."

STARTS = """
from pytest_propolis.vm.config import DataDisk

async def test_it(vm_factory):
    await vm_factory.start("one", {options})
"""

GUESTS = """
from dataclasses import replace

from pytest_propolis.guests.micro import Micro

class Mute(Micro):
    '''Its kernel finds no first process.'''
    name = "mute"
    image = replace(Micro.image, command_line="console=ttyS0,115200 rdinit=/nonexistent")

class Patient(Micro):
    '''Waits for what never comes.'''
    name = "patient"

    async def log_in(self, console):
        await console.transcript.wait_for("a login that never comes")

def pytest_propolis_guests():
    return [Mute(), Patient()]
"""


def test_unknown_guest(inner: InnerRun) -> None:
    inner.write(test_it=BOOTS)
    inner.fails_with(
        "UnknownGuest: there is no guest named 'alpin'",
        "hint: did you mean 'alpine'? there are: alpine, debian, micro",
        arguments=("--propolis-guest=alpin",),
    )


def test_missing_qemu(inner: InnerRun) -> None:
    inner.write(test_it=BOOTS)
    inner.fails_with(
        "CapabilityMissing: */nonexistent*", "hint: *--propolis-qemu*", arguments=("--propolis-qemu=/nonexistent",)
    )


def test_a_qemu_that_is_none(inner: InnerRun) -> None:
    inner.write(test_it=BOOTS)
    inner.fails_with("CapabilityMissing: */bin/true*", "hint: *", arguments=("--propolis-qemu=/bin/true",))


def test_an_image_of_garbage(inner: InnerRun) -> None:
    image = inner.pytester.path / "garbage.qcow2"
    image.write_bytes(b"garbage " * 8192)
    inner.write(test_it=with_disk(image))
    inner.fails_with(f"ArtifactCorrupt: disk image {image} is not a qcow2 image*", "hint: *qemu-img convert -f raw*")


def test_an_image_cut_short(inner: InnerRun) -> None:
    image = inner.pytester.path / "cut.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", image], check=True, stdout=subprocess.DEVNULL)
    os.truncate(image, image.stat().st_size // 2)
    inner.write(test_it=with_disk(image))
    inner.fails_with(f"ArtifactCorrupt: disk image {image} is broken: *", "hint: *")


def test_a_missing_image(inner: InnerRun) -> None:
    inner.write(test_it=with_disk(inner.pytester.path / "missing.qcow2"))
    inner.fails_with("ArtifactMissing: *missing.qcow2*", "hint: *")


def with_disk(image: Path) -> str:
    disk = f"DataDisk(name='data', image=__import__('pathlib').Path({str(image)!r}), image_format='qcow2')"
    return STARTS.format(options=f"disks=({disk},)")


@pytest.mark.slow
def test_a_guest_that_never_prints_a_login(inner: InnerRun) -> None:
    inner.write(conftest=GUESTS, test_it=BOOTS)
    inner.fails_with(
        "BootError: VM 'test-vm': the guest patient did not come up to a login",
        "during: boot of its template",
        "waited: 20.0 s",
        "| *~ #*",
        "log: *template.serial.log",
        "hint: see the console above; a slow machine may need a longer --propolis-boot-timeout",
        arguments=("--propolis-guest=patient", "--propolis-boot-timeout=20"),
    )


def test_a_guest_that_panics(inner: InnerRun) -> None:
    inner.write(conftest=GUESTS, test_it=BOOTS)
    inner.fails_with(
        "BootError: VM 'test-vm': the guest mute panicked while it booted: Kernel panic - not syncing: VFS: *",
        "during: boot",
        "| *Kernel panic - not syncing: *",
        "log: *test-vm.serial.log",
        "hint: see the console above",
        arguments=("--propolis-guest=mute",),
    )


@pytest.mark.parametrize(
    ("memory_mib", "complaint"),
    [
        (0, "VM 'one': memory_mib is 0"),
        (-512, "VM 'one': memory_mib is -512"),
        (2 << 20, "VM 'one': memory_mib is 2097152"),
        (64, "VM 'one': 64 MiB of memory are too few for micro"),
    ],
)
def test_a_bad_memory_size(inner: InnerRun, memory_mib: int, complaint: str) -> None:
    inner.write(test_it=STARTS.format(options=f"memory_mib={memory_mib}"))
    inner.fails_with(f"ConfigError: {complaint}", "hint: *must be from*" if "few" not in complaint else "hint: *128*")


def test_more_memory_than_the_machine_has(inner: InnerRun) -> None:
    inner.write(test_it=STARTS.format(options="memory_mib=1 << 20"))
    inner.fails_with("*: VM 'one': *memory*")


def test_two_vms_with_one_name(inner: InnerRun) -> None:
    inner.write(
        test_it="async def test_it(vm_factory):\n    await vm_factory.create('one')\n    await vm_factory.create('one')"
    )
    inner.fails_with(
        "ConfigError: there is a VM named 'one' in this test already", "hint: give each VM of a test its own name"
    )


def test_two_guests_with_one_name(inner: InnerRun) -> None:
    again = "from pytest_propolis.guests.micro import Micro\ndef pytest_propolis_guests():\n    return [Micro()]"
    inner.write(conftest=again, test_it=BOOTS)
    inner.fails_with("ConfigError: two guest adapters are named 'micro': *", "hint: rename the one of your own")


def test_a_name_that_can_be_none(inner: InnerRun) -> None:
    inner.write(test_it="async def test_it(vm_factory):\n    await vm_factory.create('../one')")
    inner.fails_with("ConfigError: '../one' cannot be the name of a VM", "hint: letters, digits,*")


def test_an_unknown_field_of_a_vm(inner: InnerRun) -> None:
    inner.write(test_it=STARTS.format(options="memory=512"))
    inner.fails_with("*memory*")


def test_a_run_directory_of_somebody_else(inner: InnerRun) -> None:
    base = inner.runtime / "propolis"
    base.mkdir()
    base.chmod(0o777)
    inner.write(test_it=BOOTS)
    inner.fails_with(
        f"HostError: {base} is not a directory of this user alone", "hint: remove it, or set XDG_RUNTIME_DIR*"
    )


def test_a_file_where_the_run_directory_should_be(inner: InnerRun) -> None:
    (inner.runtime / "propolis").write_text("taken")
    inner.write(test_it=BOOTS)
    inner.fails_with(f"HostError: the directory {inner.runtime}/propolis cannot be made: *", "hint: *XDG_RUNTIME_DIR*")


def test_a_run_directory_too_deep_for_sockets(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = inner.runtime.joinpath(*["directory"] * 10)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    inner.write(test_it=BOOTS)
    inner.fails_with("HostError: * is too long a path for a socket*", "hint: *XDG_RUNTIME_DIR*")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_run_directory_of_another_user(inner: InnerRun) -> None:
    base = inner.runtime / "propolis"
    base.mkdir(mode=0o700)
    os.chown(base, 65534, 65534)
    inner.write(test_it=BOOTS)
    inner.fails_with(f"HostError: {base} is not a directory of this user alone", "hint: *XDG_RUNTIME_DIR*")


def test_a_socket_where_somebody_else_listens(inner: InnerRun) -> None:
    with listening(rendezvous(inner, "chosen")):
        inner.write(test_it=BOOTS)
        result = inner.run("-n1", "--testrunuid=chosen")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*AgentError: the agent at */taken.sock does not answer", "E*hint: *"])
    shutil.rmtree(inner.runtime / "propolis")  # the test's own


def test_a_socket_that_nobody_serves_any_more_is_passed_over(inner: InnerRun) -> None:
    with listening(rendezvous(inner, "chosen")):
        pass
    inner.write(test_it=BOOTS)
    inner.run("-n1", "--testrunuid=chosen").assert_outcomes(passed=1)


def rendezvous(inner: InnerRun, run: str) -> Path:
    """Return the path of the agent's socket that the run's rendezvous file names."""
    base = inner.runtime / "propolis"
    base.mkdir(mode=0o700)
    taken = inner.runtime / "taken.sock"
    Rendezvous(base, run_token(run)).name(taken)
    return taken


@contextlib.contextmanager
def listening(path: Path) -> Iterator[None]:
    """Accept connections, and never send anything."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


@as_root
def test_no_space_for_images(inner: InnerRun) -> None:
    place = inner.pytester.mkdir("images")
    inner.write(test_it=BOOTS)
    with mounted(place, *tmpfs("nr_inodes=2")):
        inner.fails_with(
            f"ResourceExhausted: no space left in {place}: *",
            "hint: *--propolis-artifact-dir*",
            arguments=(f"--propolis-artifact-dir={place}",),
        )


@as_root
@pytest.mark.parametrize("size", ["size=4k", "nr_inodes=2"])
def test_no_space_for_the_agent(inner: InnerRun, size: str) -> None:
    inner.write(test_it=BOOTS)
    with mounted(inner.runtime, *tmpfs(size)):
        inner.fails_with("ResourceExhausted: */propolis cannot be used: No space left on device", "hint: *")


@as_root
def test_no_space_for_a_disk(inner: InnerRun) -> None:
    place = inner.pytester.mkdir("disks")
    inner.write(test_it=STARTS.format(options="disks=(DataDisk(name='data', size_mib=1 << 20),)"))
    with mounted(place, *tmpfs("size=128k")):
        inner.fails_with(
            f"ResourceExhausted: VM 'one': no space left for a disk in {place}: *",
            "hint: *--propolis-disk-dir*",
            arguments=(f"--propolis-disk-dir={place}",),
        )


COMPLAINTS_OF_LOGS = {
    "cold": "*Error: *{place}/*: No space left on device; *choose another directory with --propolis-log-dir*",
    "warm": "ResourceExhausted: *{place}/* No space left on device\nhint: *--propolis-log-dir*",
}


@as_root
@pytest.mark.parametrize("boot", COMPLAINTS_OF_LOGS)
def test_no_space_for_logs(inner: InnerRun, boot: str) -> None:
    place = inner.pytester.mkdir("logs")
    inner.write(test_it=BOOTS)
    with mounted(place, *tmpfs("nr_inodes=2")):
        inner.fails_with(
            *COMPLAINTS_OF_LOGS[boot].format(place=place).splitlines(),
            arguments=(f"--propolis-log-dir={place}", f"--propolis-boot={boot}"),
        )
