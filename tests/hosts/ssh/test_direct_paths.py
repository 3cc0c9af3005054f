"""Direct connections between the agents of two SSH hosts, and the way through this machine where there is none."""

from __future__ import annotations

import asyncio
import json
import re
import select
import shlex
import ssl
import time
from pathlib import Path

import pytest
from ssh_rig import MakeHost, SshRig

from pytest_propolis import AgentError
from pytest_propolis.agent_api.messages import AcceptPeer
from pytest_propolis.hosts.ssh_host import SshHost
from pytest_propolis.propolis_api.connection.endpoint import Endpoint

ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"GET /agent HTTP/1.0\\r\\nhost: agent\\r\\n\\r\\n")
print(s.makefile().read().splitlines()[-1])
"""
CLOSED_TIMEOUT_S = 10

Pair = tuple[SshHost, SshHost]


@pytest.fixture
def hosts(make_host: MakeHost) -> Pair:
    return make_host(name="h1"), make_host(name="h2")


@pytest.fixture
def apart(rig: SshRig) -> None:
    """Have h1 drop what it sends to h2, silently."""
    nowhere = ("nud", "permanent", "lladdr", "02:00:00:00:00:01")
    rig.hosts["h1"].run("ip", "neigh", "replace", rig.hosts["h2"].address, "dev", "eth0", *nowhere)


async def path_to(other: SshHost, host: SshHost) -> str:
    """Return the socket on a host at which it reaches the agent of another one."""
    async with await other.client() as agent:
        address = await host.address_for_agent(agent.endpoint("/vms/1"), on=other)
    endpoint = Endpoint.at(address)
    assert endpoint.base_url.endswith("/vms/1")
    return str(endpoint.uds)


async def run_of_agent(host: SshHost, path: str) -> str:
    """Return the run of the agent that answers at a socket of a host."""
    answer: dict[str, str] = json.loads(await host.run(shlex.join(["python3", "-c", ASK, path])))
    return answer["run"]


def listening(rig: SshRig) -> set[str]:
    """Return the addresses, with ports, on which h2 listens beside its sshd."""
    return {line.split()[3] for line in rig.hosts["h2"].run("ss", "-Hltn").splitlines() if ":22 " not in line}


async def answer_without_certificate(address: str, port: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(address, int(port), ssl=context)
    writer.write(b"GET /agent HTTP/1.0\r\nhost: agent\r\n\r\n")
    try:
        return await reader.read()
    except OSError:  # ssl.SSLError among them
        return b""
    finally:
        writer.close()


async def test_an_agent_reaches_that_of_another_host_directly_until_the_client_leaves(
    hosts: Pair, make_host: MakeHost, rig: SshRig
) -> None:
    here, there = hosts
    barred = make_host(name="h2", run_id=there.run_id, direct=False)
    assert not Path(await path_to(barred, here)).name.startswith("direct-")
    assert listening(rig) == set()
    barred.close()
    path = await path_to(there, here)
    assert Path(path).name.startswith("direct-")
    assert await run_of_agent(here, path) == there.run_id
    assert await path_to(there, here) == path, "it is made once"
    (address,) = listening(rig)
    assert address.startswith(rig.hosts["h2"].address), "nothing listens at other addresses"
    assert await answer_without_certificate(*address.rsplit(":", 1)) == b""
    async with await there.client() as agent:
        with pytest.raises(AgentError, match="a peer's certificate is unusable"):
            await agent.accept_peer(AcceptPeer(identity="no certificate"))
    there.close()
    deadline = time.monotonic() + CLOSED_TIMEOUT_S
    while listening(rig):
        assert time.monotonic() < deadline
        select.select([], [], [], 0.02)


async def test_hosts_that_do_not_reach_each_other_are_connected_through_this_machine(
    hosts: Pair, apart: None, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = hosts
    path = await path_to(there, here)
    assert not Path(path).name.startswith("direct-")
    assert await run_of_agent(here, path) == there.run_id
    (record,) = caplog.records
    assert re.match(
        r"h1 does not reach h2, .* through this machine: https://[\d.:]+ does not answer: nothing within 3 s$",
        record.getMessage(),
    )
