"""The agent's HTTP API, called without a socket."""

from __future__ import annotations

import os

import httpx
import msgspec
import pytest
from agent_rig import AgentRig

from pytest_propolis.agent_api.agent_process import CLIENT_HEADER
from pytest_propolis.agent_api.messages import AgentInfo, VmCreated, VmListed

CLIENT = {CLIENT_HEADER: "client"}


async def created(rig: AgentRig, client: httpx.AsyncClient, name: str = "vm") -> VmCreated:
    answer = await client.post("/vms", content=msgspec.json.encode(rig.vm(name)), headers=CLIENT)
    assert answer.is_success, answer.text
    return msgspec.json.decode(answer.content, type=VmCreated)


async def test_it_describes_the_agent_and_its_qemu(rig: AgentRig) -> None:
    async with rig.client() as client:
        info = msgspec.json.decode((await client.get("/agent")).content, type=AgentInfo)
    assert (info.pid, info.run, info.accelerator) == (os.getpid(), "word", "tcg")
    assert info.qemu.endswith("/programs/qemu-system-x86_64")


async def test_a_vm_is_listed_and_serves_the_propolis_api_until_it_is_removed(rig: AgentRig) -> None:
    async with rig.client() as client:
        vm = await created(rig, client)
        (listed,) = msgspec.json.decode((await client.get("/vms")).content, type=list[VmListed])
        assert (listed.id, listed.name, listed.client) == (vm.id, "vm", "client")
        before = await client.get(f"{vm.path}/instance")
        assert before.status_code == 424  # as propolis-server before the instance is created
        assert (await client.delete(vm.path, headers=CLIENT)).is_success
        assert (await client.delete(vm.path, headers=CLIENT)).is_success
        assert (await client.get(f"{vm.path}/instance")).status_code == 404
        assert (await client.get("/vms")).json() == []


async def test_a_second_vm_of_a_name_is_refused(rig: AgentRig) -> None:
    async with rig.client() as client:
        await created(rig, client)
        answer = await client.post("/vms", content=msgspec.json.encode(rig.vm()), headers=CLIENT)
    assert answer.status_code == 422
    assert "there is a VM named 'vm' in test already" in answer.text


async def test_a_client_without_a_lifeline_is_refused(rig: AgentRig) -> None:
    requests = {"/vms": msgspec.json.encode(rig.vm()), "/disks": b'{"size_bytes": 1048576}'}
    async with rig.client() as client:
        for path, body in requests.items():
            answer = await client.post(path, content=body, headers={CLIENT_HEADER: "stranger"})
            assert answer.status_code == 422
            assert "client 'stranger' has no lifeline" in answer.json()["message"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"name": 3}'])
async def test_a_body_that_is_not_valid_is_refused(rig: AgentRig, body: bytes) -> None:
    async with rig.client() as client:
        answer = await client.post("/vms", content=body, headers=CLIENT)
    assert answer.status_code == 400
    assert "message" in answer.json()


async def test_an_unknown_path_is_refused_in_the_format_of_the_api(rig: AgentRig) -> None:
    async with rig.client() as client:
        answer = await client.get("/nothing")
    assert answer.status_code == 404
    assert set(answer.json()) >= {"message", "request_id"}
