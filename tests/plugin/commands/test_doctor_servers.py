"""`propolis doctor` reports on servers: it starts or queries each."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_program import server_program

from pytest_propolis.operating_system.python_processes import write_python_script
from pytest_propolis.propolis_api import API_VERSION

PROPOLIS = (sys.executable, "-c", "from pytest_propolis.cli import main; main()")
PROGRAM = "propolis-server-qemu"
PROGRAM_PATH = Path(sys.executable).with_name(PROGRAM)

Doctor = Callable[..., subprocess.CompletedProcess[str]]

HTTP = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = {body!r}.encode()
        self.send_response({status})
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

host, _, port = sys.argv[-1].rpartition(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def doctor(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """`propolis doctor` in an empty project."""
    runtime = pytester.mkdir("runtime")
    runtime.chmod(0o700)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PROPOLIS_")}
        done = subprocess.run(
            [*PROPOLIS, "doctor", *arguments],
            env={**environment, "XDG_RUNTIME_DIR": str(runtime)},
            cwd=pytester.path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert [path for path in runtime.rglob("*") if not path.is_dir()] == [], "nothing is left behind"
        return done

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a server program of Python code; its help is that of `propolis-server run`."""

    def write(code: str) -> Path:
        path = tmp_path / "propolis-server"
        usage = "if '--help' in sys.argv: sys.exit(print('<BOOTROM_PATH> <PROPOLIS_ADDR>'))"
        write_python_script(path, f"import os, sys\n{usage}\n{code}")
        return path

    return write


def servers(told: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {server["server"]: server for server in json.loads(told.stdout)["servers"]}


def test_the_engine_serves_vms_by_default(doctor: Doctor) -> None:
    told = doctor("--json")
    (engine,) = servers(told).values()
    assert (engine["server"], engine["ok"], engine["serves"]) == ("engine", True, True)
    assert engine["api_version"] == API_VERSION
    assert engine["detail"].startswith("QEMU ")
    table = doctor().stdout
    assert f"servers:\n  yes  engine  {engine['detail']}; speaks API version {API_VERSION}; serves the VMs" in table


def test_an_engine_without_qemu_says_what_is_missing(doctor: Doctor) -> None:
    told = doctor("--json", "--propolis-qemu=/nonexistent/qemu")
    engine = servers(told)["engine"]
    assert not engine["ok"]
    assert "QEMU: no usable QEMU: /nonexistent/qemu is not a program" in engine["detail"]
    assert "propolis setup" in engine["remedy"]


def test_a_program_is_started_and_asked(doctor: Doctor) -> None:
    told = doctor("--json", "--propolis-server", PROGRAM)
    assert told.returncode == 0, told.stdout + told.stderr
    found = servers(told)
    assert not found["engine"]["serves"]
    assert found[PROGRAM] == {
        "server": PROGRAM,
        "serves": True,
        "ok": True,
        "detail": "answers, and has no VM",
        "api_version": API_VERSION,
        "remedy": None,
    }
    needed = [capability["name"] for capability in json.loads(told.stdout)["capabilities"] if capability["needed"]]
    assert needed == ["server"]


def test_a_program_that_boots_from_a_boot_rom_alone_is_started_with_one(
    doctor: Doctor, script: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = tmp_path / "arguments"
    program = script(
        f"open({str(arguments)!r}, 'w').write(sys.argv[2])\n"
        f"os.execv({str(PROGRAM_PATH)!r}, [{PROGRAM!r}, 'run', '--accelerator', 'tcg', 'bios', sys.argv[-1]])"
    )
    found = servers(doctor("--json", "--propolis-server", str(program)))
    assert found[str(program)]["detail"] == "answers, and has no VM"
    assert arguments.read_text().endswith(".fd")


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("sys.exit('no /dev/vmm')", "ended with status 1 before it answered\n  | no /dev/vmm"),
        (HTTP.format(body="hello", status=200), "does not speak the Propolis API"),
        (
            HTTP.format(
                body='{"request_id": "1", "message": "server does not support this API version: 5.0.0"}',
                status=400,
            ),
            "server does not support this API version: 5.0.0",
        ),
    ],
    ids=["ends", "another API", "another version"],
)
def test_a_program_that_does_not_serve_the_api_is_not_ok_and_its_words_are_shown(
    doctor: Doctor, script: Callable[[str], Path], code: str, detail: str
) -> None:
    program = str(script(code))
    told = doctor("--json", "--propolis-server", program)
    assert told.returncode == 1
    found = servers(told)[program]
    assert (found["ok"], found["api_version"]) == (False, None)
    assert detail in found["detail"]


async def test_a_server_that_runs_already_is_asked_and_goes_on(doctor: Doctor) -> None:
    async with server_program("bios", "127.0.0.1:0", "--accelerator", "tcg") as server:
        url = f"http://{server.address}"
        told = doctor("--json", "--propolis-server", url)
        assert (told.returncode, servers(told)[url]["detail"]) == (0, "answers, and has no VM")
        assert server.process.returncode is None
    told = doctor("--propolis-server", url)
    assert told.returncode == 1
    assert f"  no   {url}  " in told.stdout
    assert told.stdout.splitlines()[-1] == "VMs cannot run here: see server"


@pytest.mark.parametrize("server", ["propolis-serve-qemu", "ftp://127.0.0.1:1"])
def test_what_is_no_server_is_shown_with_what_would_be_one(doctor: Doctor, server: str) -> None:
    told = doctor("--propolis-server", server)
    assert told.returncode == 1
    assert "-> give engine, the path of a program, the name of an artifact, or http://IP:PORT" in told.stdout


def test_the_server_of_the_configuration_file_is_asked(doctor: Doctor, pytester: pytest.Pytester) -> None:
    pytester.makeini(f"[pytest]\npropolis_server = {PROGRAM}\n")
    assert servers(doctor("--json"))[PROGRAM]["serves"]
    assert servers(doctor("--json", "--propolis-server", "engine")).keys() == {"engine"}


def test_an_artifact_is_started_once_it_is_there(doctor: Doctor, pytester: pytest.Pytester, tmp_path: Path) -> None:
    content = f'#!/bin/sh\nexec "{PROGRAM_PATH}" "$@"\n'
    (pytester.path / "artifacts.toml").write_text(
        "[artifacts.my-server]\nfilename = 'server'\nkind = 'propolis_server'\n"
        f"[artifacts.my-server.source.local_path]\npath = '{tmp_path}'\n"
        f"sha256 = '{hashlib.sha256(content.encode()).hexdigest()}'\n"
    )
    options = ("--propolis-artifacts", "artifacts.toml", "--propolis-server", "my-server")
    told = doctor(*options)
    assert told.returncode == 1
    assert "not fetched yet" in told.stdout
    assert "-> run `propolis artifacts fetch my-server`" in told.stdout
    (tmp_path / "server").write_text(content)
    assert servers(doctor("--json", *options))["my-server"]["ok"]
