"""Doubles of HTTP, sockets, clocks and processes in the test's process: those of the libraries that people use.

``PROPOLIS_ALL_PLUGINS=1`` tries them all; without it, one of each kind.
"""

from __future__ import annotations

import hashlib
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from environments import kept_environment
from file_server import serving
from inner_run import InnerRun

ROOT: Final = Path(__file__).parents[3]
TIMEOUT_S: Final = 120
CONTENT: Final = b"of a server"


@dataclass(frozen=True, kw_only=True, slots=True)
class Double:
    """A library that puts doubles into the process of a test.

    :param fixture: the lines of a fixture of pytest that does it.
    :param asks: a fixture of the library that this one uses.
    :param stops_asyncio: no event loop can be made under it, so that asynchronous tests have their VM first.
    """

    requirement: str
    fixture: str
    asks: str = ""
    essential: bool = False
    stops_asyncio: bool = False


MOCKED: Final = """
for name in {names!r}:
    mocker.patch(name, side_effect=AssertionError("mocked"))
"""
HTTPX: Final = ("httpx.AsyncClient", "httpx.Client", "httpx.AsyncHTTPTransport", "httpcore.AsyncConnectionPool")
PROCESSES: Final = ("subprocess.Popen", "subprocess.run", "asyncio.create_subprocess_exec", "os.fork")
CLOCKS: Final = ("time.time", "time.time_ns")

DOUBLES: Final = {
    "respx": Double(
        requirement="respx",
        fixture="import respx\nwith respx.mock(assert_all_called=False):\n    yield",
        essential=True,
    ),
    "pytest-httpx": Double(requirement="pytest-httpx", asks="httpx_mock", fixture="yield"),
    "vcrpy": Double(
        requirement="vcrpy",
        asks="tmp_path",
        fixture="import vcr\n"
        "with vcr.use_cassette(str(tmp_path / 'cassette.yaml'), record_mode='none') as cassette:\n    yield\n"
        "assert not cassette.requests",
        essential=True,
    ),
    "responses": Double(requirement="responses", fixture="import responses\nwith responses.mock:\n    yield"),
    "mocked clients": Double(requirement="pytest-mock", asks="mocker", fixture=MOCKED.format(names=HTTPX)),
    "mocked processes": Double(
        requirement="pytest-mock", asks="mocker", fixture=MOCKED.format(names=PROCESSES), essential=True
    ),
    "mocked clocks": Double(
        requirement="pytest-mock",
        asks="mocker",
        fixture=f"for name in {CLOCKS!r}:\n    mocker.patch(name, return_value=0)",
    ),
    "freezegun": Double(
        requirement="freezegun", fixture="import freezegun\nwith freezegun.freeze_time('2001-01-01'):\n    yield"
    ),
    "time-machine": Double(
        requirement="time-machine",
        fixture="import time_machine\nwith time_machine.travel('2001-01-01T00:00:00Z', tick=False):\n    yield",
        essential=True,
    ),
    "pytest-socket": Double(
        requirement="pytest-socket",
        fixture="import pytest_socket\npytest_socket.disable_socket()\nyield\npytest_socket.enable_socket()",
        essential=True,
        stops_asyncio=True,
    ),
    "pytest-socket with UNIX sockets": Double(
        requirement="pytest-socket",
        fixture="import pytest_socket\npytest_socket.disable_socket(allow_unix_socket=True)\nyield\n"
        "pytest_socket.enable_socket()",
    ),
    "pytest-socket with hosts": Double(
        requirement="pytest-socket",
        fixture="import pytest_socket\npytest_socket.socket_allow_hosts(['192.0.2.1'], allow_unix_socket=True)\nyield\n"
        "pytest_socket._remove_restrictions()",
    ),
    "pytest-subprocess": Double(requirement="pytest-subprocess", asks="fp", fixture="yield"),
}

CONFTEST: Final = """
import pytest

@pytest.fixture
def double({asks}):
{fixture}
"""

DOUBLE_FIRST: Final = """
async def test_the_double_comes_first(double, test_vm):
    assert await test_vm.run("echo hello") == "hello"
"""

TESTS: Final = """
import hashlib
from pathlib import Path

from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.catalogs.remote_file import RemoteFile
from pytest_propolis.storage.store import ArtifactStore

async def test_the_vm_comes_first(test_vm, double, vm_factory):
    await test_vm.put(Path(__file__), "/tmp/file")
    assert await test_vm.run("wc -c < /tmp/file") == str(Path(__file__).stat().st_size)
    other = await vm_factory.start("other")
    assert await other.run("echo hello") == "hello"
    assert 2020 < int(await other.run("date +%Y"))

async def test_a_download(test_vm, double, tmp_path):
    artifact = Artifact("disk", "disk.raw", "{sha256}", RemoteFile(("{url}/disk.raw",)))
    path = await ArtifactStore(tmp_path / "store").get(artifact, print)
    assert path.read_bytes() == {content!r}

def test_without_await(double, test_vm_sync):
    assert test_vm_sync.run("echo hello") == "hello"
"""


def chosen() -> list[str]:
    return [name for name, double in DOUBLES.items() if double.essential or os.environ.get("PROPOLIS_ALL_PLUGINS")]


@pytest.fixture(scope="session")
def python(pytestconfig: pytest.Config) -> Path:
    """The Python of an environment with this project and the libraries that are tried."""
    requirements = sorted({DOUBLES[name].requirement for name in chosen()})
    return kept_environment(pytestconfig, "doubles-environment", ["--editable", str(ROOT), *requirements])


def write(inner: InnerRun, double: Double, url: str = "") -> None:
    tests = TESTS.format(url=url, sha256=hashlib.sha256(CONTENT).hexdigest(), content=CONTENT)
    inner.write(
        conftest=CONFTEST.format(asks=double.asks, fixture=textwrap.indent(double.fixture.strip(), "    ")),
        test_it=tests if double.stops_asyncio else DOUBLE_FIRST + tests,
    )
    (inner.pytester.path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")


@pytest.mark.parametrize("name", chosen())
def test_vms_and_downloads_work_under_it_in_any_order(name: str, python: Path, inner: InnerRun, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(CONTENT)
    double = DOUBLES[name]
    with serving(tmp_path) as url:
        write(inner, double, url)
        result = inner.pytester.run(str(python), "-m", "pytest", "-p", "propolis", timeout=TIMEOUT_S)
    result.assert_outcomes(passed=3 if double.stops_asyncio else 4)


def test_the_first_vm_of_a_run_is_synchronous_while_sockets_are_blocked(python: Path, inner: InnerRun) -> None:
    write(inner, DOUBLES["pytest-socket"])
    test = "test_it.py::test_without_await"
    result = inner.pytester.run(str(python), "-m", "pytest", "-p", "propolis", test, timeout=TIMEOUT_S)
    result.assert_outcomes(passed=1)
