"""The bundle: its contents, and the Python that it is for."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest
from packaging.markers import Marker

from pytest_propolis.errors import HostError
from pytest_propolis.hosts.ssh import bundle
from pytest_propolis.hosts.ssh.bundle import make_bundle
from pytest_propolis.hosts.ssh.distributions import (
    HostPython,
    download,
    needed_distributions,
    platform_tags,
    this_python,
)

DEBIAN = HostPython(
    version=(3, 11, 2), implementation="cpython", system="linux", machine="x86_64", libc=("glibc", "2.36")
)
ALPINE = msgspec.structs.replace(DEBIAN, libc=("", ""), version=(3, 12, 1))


async def test_the_same_content_makes_the_same_bundle(tmp_path: Path) -> None:
    one = await make_bundle(this_python(), cache=tmp_path / "one")
    assert await make_bundle(this_python(), cache=tmp_path / "two") == one


async def test_one_process_may_make_the_same_bundle_several_times_at_once(tmp_path: Path) -> None:
    made = await asyncio.gather(*(make_bundle(this_python(), cache=tmp_path) for _ in range(4)))
    assert len({bundle.sha256 for bundle in made}) == 1
    assert [path.suffix for path in (tmp_path / "bundles").iterdir()] == [".zip"]


async def test_an_agent_can_be_imported_from_a_bundle_and_from_nothing_else(tmp_path: Path) -> None:
    made = await make_bundle(this_python(), cache=tmp_path / "cache")
    zipfile.ZipFile(io.BytesIO(made.data)).extractall(tmp_path / "unpacked")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'unpacked')!r}); import pytest_propolis.agent.process; "
        "from importlib.metadata import version; print(version('pytest-propolis'))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_bundle_of_a_zip_application(tmp_path: Path) -> None:
    archive = tmp_path / "app.pyz"
    package = Path(bundle.__file__).parents[2]
    with zipfile.ZipFile(archive, "w") as packed:
        for path in package.rglob("*.py"):
            packed.write(path, path.relative_to(package.parent))
    program = (
        f"import asyncio, io, sys, zipfile; sys.path.insert(0, {str(archive)!r}); from pathlib import Path; "
        "from pytest_propolis.hosts.ssh import bundle, distributions; assert 'app.pyz' in bundle.__file__; "
        f"made = asyncio.run(bundle.make_bundle(distributions.this_python(), cache=Path({str(tmp_path)!r}))); "
        f"zipfile.ZipFile(io.BytesIO(made.data)).extractall({str(tmp_path / 'unpacked')!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'unpacked')!r}); import pytest_propolis.agent.process"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_only_pytest_needs_is_not_in_a_bundle() -> None:
    needed = needed_distributions(this_python())
    assert {"msgspec", "uvicorn", "starlette", "qemu-qmp"} <= needed.keys()
    assert not {"pytest", "pytest-xdist", "pytest-asyncio", "asyncssh"} & needed.keys()


def test_markers_are_those_of_the_host() -> None:
    there = msgspec.structs.replace(DEBIAN, version=(3, 13, 0), machine="aarch64")
    holds = {
        "python_version >= '3.13'": True,
        "python_full_version < '3.13.1'": True,
        "platform_machine == 'x86_64'": False,
        "sys_platform == 'linux' and platform_system == 'Linux' and os_name == 'posix'": True,
        "platform_python_implementation == 'CPython' and implementation_name == 'cpython'": True,
    }
    assert {text: Marker(text).evaluate(there.markers()) for text in holds} == holds


@pytest.mark.parametrize(
    ("other", "runs"),
    [
        ({}, True),
        ({"version": (3, 11, 9)}, True),
        ({"version": (3, 12, 0)}, False),
        ({"machine": "aarch64"}, False),
        ({"libc": ("glibc", "2.35")}, True),
        ({"libc": ("glibc", "2.38")}, False),
        ({"libc": ("", "")}, False),
        ({"implementation": "pypy"}, False),
    ],
)
def test_installed_files_are_taken_for_a_python_that_can_import_them(other: dict[str, object], runs: bool) -> None:
    assert DEBIAN.runs_files_of(msgspec.structs.replace(DEBIAN, **other)) is runs


def test_wheels_of_older_platforms_fit_too() -> None:
    tags = platform_tags(DEBIAN)
    assert tags[0] == "manylinux_2_36_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(tags)
    assert "manylinux1_aarch64" not in platform_tags(msgspec.structs.replace(DEBIAN, machine="aarch64"))
    assert platform_tags(ALPINE) == ["musllinux_1_2_x86_64", "musllinux_1_1_x86_64"]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip finds wheels in, and nowhere else."""
    place = tmp_path / "wheels"
    place.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return place


def _put_wheel(place: Path, name: str) -> None:
    with zipfile.ZipFile(place / name, "w") as wheel:
        distribution, version = name.split("-")[:2]
        wheel.writestr(f"{distribution}/__init__.py", "")
        wheel.writestr(f"{distribution}-{version}.dist-info/METADATA", f"Name: {distribution}\nVersion: {version}\n")
        wheel.writestr(f"{distribution}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr(f"{distribution}-{version}.dist-info/RECORD", "")


async def test_wheels_for_another_python_come_from_pip(wheels: Path, tmp_path: Path) -> None:
    _put_wheel(wheels, "fast-1.2-cp312-cp312-musllinux_1_2_x86_64.whl")
    _put_wheel(wheels, "fast-1.2-cp311-cp311-manylinux_2_17_x86_64.whl")
    _put_wheel(wheels, "plain-3.0-py3-none-any.whl")
    found = await download({"fast": "1.2", "plain": "3.0"}, ALPINE, tmp_path / "download")
    assert [path.name for path in found] == [
        "fast-1.2-cp312-cp312-musllinux_1_2_x86_64.whl",
        "plain-3.0-py3-none-any.whl",
    ]


async def test_wheels_that_were_downloaded_are_used_again(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_wheel(wheels, "plain-3.0-py3-none-any.whl")
    first = await download({"plain": "3.0"}, ALPINE, tmp_path / "download")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert await download({"plain": "3.0"}, ALPINE, tmp_path / "download") == first


async def test_a_wheel_that_is_not_to_be_had_is_named(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"pip finds no wheels for Python 3\.12 on x86_64: .*\n?.*plain"):
        await download({"plain": "3.0"}, ALPINE, tmp_path / "download")
