"""Machines that join a run's listener, or are refused; without VMs."""

from __future__ import annotations

import asyncio
import shlex
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joined_machine import JoinedMachine, joined_machine

from pytest_propolis.errors import HostError, HostLost, SettingsError
from pytest_propolis.hosts.agent_clients.asynchronous import AsyncAgentClient
from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.joined.host import JoinedHost, open_host
from pytest_propolis.hosts.joined.listening import RunListener
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.settings import Settings

RUN = "a" * 16
OTHER_VERSION = (
    "import importlib.metadata as m; m.version = lambda name: '9.9.9'\n"
    "from pytest_propolis.cli.main import propolis; propolis()"
)


@pytest.fixture
def listener(runtime: Path) -> Iterator[RunListener]:
    listener = RunListener.start("127.0.0.1", 0, hosts={"far": 60.0, "late": 0.0})
    yield listener
    listener.close()


@pytest.fixture
def command(listener: RunListener) -> str:
    return listener.commands["far"]


@pytest.fixture
def machine(command: str) -> Iterator[JoinedMachine]:
    with joined_machine(command) as machine:
        machine.wait_until_joined()
        yield machine


@pytest.fixture
def host(machine: JoinedMachine) -> Iterator[JoinedHost]:
    host = joined_host("far")
    yield host
    host.close()


def joined_host(name: str, **options: Any) -> JoinedHost:
    return open_host(HostSpec(name=name, kind="joined", address=name, options=options), Settings(), RUN)


def test_a_machine_leaves_when_the_run_has_ended(machine: JoinedMachine, listener: RunListener) -> None:
    listener.close()
    assert machine.output() == (0, "the run has ended\n")


def test_a_machine_leaves_when_its_user_ends_the_command(machine: JoinedMachine) -> None:
    machine.process.send_signal(signal.SIGINT)
    assert machine.output() == (0, "left the run\n")


def refused(command: str, **arguments: Any) -> str:
    with joined_machine(command, **arguments) as machine:
        status, output = machine.output()
    assert status == 1, output
    return output


def test_a_machine_with_another_secret_is_refused(command: str) -> None:
    secret = command.split("--token ")[1][:32]
    assert "the run refuses this token" in refused(command.replace(secret, "0" * 32))


def test_a_machine_does_not_send_its_secret_to_another_run(command: str) -> None:
    certificate = command.split("--token ")[1][32:96]
    output = refused(command.replace(certificate, "0" * 64))
    assert "is not the run of this token" in output


def test_what_is_no_token_is_refused_at_once(command: str) -> None:
    token = command.split("--token ")[1].split()[0]
    assert "a token has 96 hexadecimal digits, and this one has 95 characters" in refused(
        command.replace(token, token[1:])
    )


def test_a_machine_with_another_version_of_this_project_is_refused_with_both_versions(command: str) -> None:
    output = refused(command, program=[sys.executable, "-c", OTHER_VERSION])
    assert "this machine has pytest-propolis 9.9.9, and the run has 0.1.0" in output
    assert "pip install pytest-propolis==0.1.0" in output


def test_a_machine_that_the_inventory_does_not_name_is_refused(command: str) -> None:
    output = refused(command.replace("--name far", "--name near"))
    assert "the run has no host 'near' that joins\n  hint: give --name: far, late" in output


def test_a_second_machine_of_the_same_name_is_refused(machine: JoinedMachine, command: str) -> None:
    assert "a machine has joined the run as 'far' already" in refused(command)


def test_a_machine_says_when_nothing_listens(command: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        words = command.split()
        words[2] = f"127.0.0.1:{port}"
        assert f"no run answers at 127.0.0.1:{port}: Connection refused" in refused(" ".join(words))


def test_a_port_that_is_taken_is_named(runtime: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=rf"127.0.0.1:{port}: no listening there: Address already in"):
            RunListener.start("127.0.0.1", port, hosts={"far": 1.0})
    assert not list(runtime.glob("propolis-links/*"))


def test_a_client_without_tls_1_3_is_refused(command: str) -> None:
    address, port = command.split()[2].split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((address, int(port))) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


async def test_a_host_that_has_not_joined_in_time_is_an_error_with_the_remedy(listener: RunListener) -> None:
    with pytest.raises(HostError, match=r"host late: no machine has joined this run as 'late'") as caught:
        await joined_host("late").client()
    assert caught.value.hint
    assert "propolis join" in caught.value.hint
    assert "join_timeout_s" in caught.value.hint


async def test_a_host_is_reached_only_by_a_run_that_listens(runtime: Path) -> None:
    with pytest.raises(HostError, match="host far: it is reached only by a run that it has joined"):
        await joined_host("far").client()


def test_an_option_that_only_ssh_hosts_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="host 'far' has no option 'config'"):
        joined_host("far", config="ssh_config")


async def test_an_agent_answers_commands_run_and_files_arrive(host: JoinedHost, tmp_path: Path) -> None:
    async with await host.client() as client:
        assert (await client.info()).version
    assert await host.run("echo it; echo an error >&2") == "it"
    with pytest.raises(HostError, match=r"'echo no >&2; exit 3' ended with status 3: no"):
        await host.run("echo no >&2; exit 3")
    content = bytes(1 << 20) + b"content" * 300_000
    (tmp_path / "sent").write_bytes(content)
    await host.put(tmp_path / "sent", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == content
    await host.get(tmp_path / "there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


async def test_output_that_is_read_slowly_arrives_whole(host: JoinedHost) -> None:
    assert len(await host.run("head -c 20000000 /dev/zero | tr '\\0' x")) == 20_000_000


async def test_ports_lead_both_ways(host: JoinedHost) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    await (await host.client()).aclose()
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", await host.forward_port(port))
        assert await reader.read() == b"hello"
        writer.close()
        near = LocalHost(Settings(), run_id="c" * 16)
        there = await host.address_for_agent(Endpoint(base_url=f"http://127.0.0.1:{port}"), on=near)
        assert there != f"127.0.0.1:{port}"
        ask = "import socket, sys; print(socket.create_connection(sys.argv[1:]).recv(99).decode())"
        assert await host.run(shlex.join([sys.executable, "-c", ask, *there.split(":")])) == "hello"


async def test_a_machine_whose_command_is_killed_is_lost_and_clean(machine: JoinedMachine, host: JoinedHost) -> None:
    async with await host.client() as client:
        machine.process.kill()
        with pytest.raises(HostLost, match="host far is lost: its connection to the run was lost: its `propolis join`"):
            await until_it_fails(client)
    machine.wait_until_clean(timeout_s=10.0)


async def until_it_fails(client: AsyncAgentClient) -> None:
    while True:
        await client.info()
