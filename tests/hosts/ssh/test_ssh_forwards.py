"""Forwarded sockets and ports of a host's connection, by asyncssh and by OpenSSH."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from ssh_rig import MakeHost, SshRig

from pytest_propolis.hosts.local import THIS_MACHINE, LocalHost
from pytest_propolis.hosts.ssh_host import SshHost
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.settings import Settings

MakeThisHost = Callable[[], SshHost]

ASK = """python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print(s.recv(100).decode())
' """


@pytest.fixture(params=["asyncssh", "openssh"])
def host(request: pytest.FixtureRequest, make_host: MakeHost, rig: SshRig) -> SshHost:
    if request.param == "asyncssh":
        return make_host()
    config = rig.config.read_text().replace("UserKnownHostsFile", "KnownHostsCommand /bin/cat")
    path = rig.write_config(config.replace("GlobalKnownHostsFile /dev/null", ""), name="of_openssh")
    return make_host(config=str(path))


async def test_the_hosts_agent_reaches_a_socket_of_this_machine(host: SshHost, runtime: Path) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello from here")
        writer.close()

    local = LocalHost(Settings(), run_id="c" * 16)
    socket = runtime / "greeter.sock"
    async with await asyncio.start_unix_server(greet, socket):
        endpoint = Endpoint(base_url="http://agent/vms/1", uds=socket)
        addresses = [await host.address_for_agent(endpoint, on=local) for _ in range(2)]
        assert addresses[0] == addresses[1]
        there = Endpoint.at(addresses[0])
        assert there.base_url == endpoint.base_url
        assert await host.run(ASK + str(there.uds)) == "hello from here"
    assert local.name == THIS_MACHINE.name


async def test_the_hosts_agent_reaches_its_own_servers_by_its_own_socket(host: SshHost) -> None:
    async with await host.client() as agent:
        address = await host.address_for_agent(agent.endpoint("/vms/1"), on=host)
    assert await host.run(f"test -S {Endpoint.at(address).uds} && echo there") == "there"


async def test_this_machine_reaches_a_port_of_the_host(host: SshHost) -> None:
    port = await host.forward_port(22)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert (await reader.readline()).startswith(b"SSH-2.0-")
    writer.close()
    endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}")
    assert await host.address_for_agent(endpoint, on=host) == "127.0.0.1:22", "its own port needs no way through here"


async def test_a_program_on_the_host_reaches_a_server_on_a_port_of_this_machine(host: SshHost) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello from here")
        writer.close()

    local = LocalHost(Settings(), run_id="c" * 16)
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        endpoint = Endpoint(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        there = Endpoint.at(await host.address_for_agent(endpoint, on=local))
        ask = "import socket, sys; print(socket.create_connection(sys.argv[1:]).recv(99).decode())"
        asked = await host.run(shlex.join(["python3", "-c", ask, *map(str, there.host_and_port)]))
    assert asked == "hello from here"
