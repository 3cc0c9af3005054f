"""A group that is served to other programs: token, TLS, and only the loopback interface without it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from propolis_command import COMMAND, propolis
from tls_files import make_certificate

from pytest_propolis import CoordinationLost
from pytest_propolis.agent_api.key_value import COORDINATION_PATH
from pytest_propolis.cli.nodes.attached import attached

CLOSE_FRAME = b"\x88\x80\0\0\0\0"
"""Of a client: masked with zeros."""

pytestmark = pytest.mark.asyncio


@dataclass
class Served:
    process: asyncio.subprocess.Process
    group: str
    _is_told: bool = False

    def end(self) -> None:
        """Tell it to end, once: a second SIGTERM ends a Python that is about to exit."""
        if not self._is_told and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        self._is_told = True

    @property
    def port(self) -> int:
        return int(self.group.partition("#")[0].partition("?")[0].rpartition(":")[2])


@contextlib.asynccontextmanager
async def served(*options: str) -> AsyncIterator[Served]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "node", "serve", "--json", *options, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    served = Served(process, "")
    try:
        async with asyncio.timeout(60):
            served.group = json.loads(await process.stdout.readline())["group"]
            yield served
    finally:
        served.end()
        assert await process.wait() == 0


async def command(*words: str, group: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *words, "--group", group, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_programs_meet_at_a_served_group() -> None:
    async with served("--group", "lab") as store:
        assert store.group.startswith("embedded://")
        assert store.group.endswith(f"@127.0.0.1:{store.port}#lab")
        first = asyncio.create_task(command("barrier", "ready", "2", group=store.group))
        async with attached(store.group) as group, await group.join("test") as node:
            assert await node.barrier("ready", 2) == 1
        assert await first == (0, "1\n")


async def test_no_program_takes_part_without_the_token(tmp_path: Path) -> None:
    token = "0123456789abcdef%/"
    (tmp_path / "token").write_text(f"{token}\n")
    async with served("--token-file", str(tmp_path / "token")) as store:
        assert await command("kv", "put", "a", "b", group=store.group) == (0, "")
        for secret in ("", "0123456789abcdef@"):
            status, output = await command("kv", "get", "a", group=f"embedded://{secret}127.0.0.1:{store.port}#nodes")
            assert status == 5
            assert "refuses the token" in output
            assert token not in output
        status, output = await command("kv", "list", group=f"embedded://%FF@127.0.0.1:{store.port}#nodes")
        assert (status, "not of printable ASCII" in output) == (2, True)


async def test_a_group_served_with_tls(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    async with served("--certificate", str(chain), "--key", str(key), "--ca", str(chain)) as store:
        assert store.group.startswith("embeddeds://")
        assert await command("kv", "add", "a", "b", group=store.group) == (0, "")
        status, output = await command("kv", "get", "a", group=store.group.replace(f"?ca={chain}", ""))
        assert (status, "certificate verify failed" in output) == (5, True)
        plain = store.group.replace("embeddeds", "embedded")
        status, output = await command("kv", "get", "a", group=plain)
        assert (status, "ca is for embeddeds://" in output) == (2, True), output
        status, output = await command("kv", "get", "a", group=plain.replace(f"?ca={chain}", ""))
        assert (status, "cannot be reached" in output) == (5, True), output


async def test_waits_end_with_the_server() -> None:
    async with served() as store, attached(store.group) as group:
        node = await group.join("waiting")
        waiting = asyncio.create_task(node.barrier("never", 2))
        await group.mirror.until(lambda: group.mirror.below("barriers/never/at/1/") or None, on=("",))
        store.end()
        with pytest.raises(CoordinationLost, match=r"has ended|is lost"):
            await waiting


async def test_the_server_ends_while_a_connection_is_being_closed(tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    async with served("--certificate", str(chain), "--key", str(key)) as store:
        token = store.group.partition("://")[2].partition("@")[0]
        lines = (
            *(f"GET {COORDINATION_PATH} HTTP/1.1", "Host: store", "Upgrade: websocket", "Connection: Upgrade"),
            *("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"),
            *(f"Authorization: Bearer {token}", "", ""),
        )
        connection = socket.create_connection(("127.0.0.1", store.port))
        tls = ssl.create_default_context(cafile=chain)
        with connection, tls.wrap_socket(connection, server_hostname="127.0.0.1") as client:
            client.sendall("\r\n".join(lines).encode())
            assert b" 101 " in client.recv(4096)
            client.sendall(CLOSE_FRAME)
            assert client.recv(1) == CLOSE_FRAME[:1]  # what ends TLS is neither read nor answered
            store.end()
            assert await store.process.wait() == 0


async def test_bad_options_are_named(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("secret")
    none = str(tmp_path / "none")
    for options, status, reason in (
        (["--listen", "0.0.0.0:0"], 2, "without TLS only this machine may be served"),
        (["--listen", "localhost"], 2, "'localhost' is not IP:PORT"),
        (["--listen", "127.0.0.1:99999"], 2, "'127.0.0.1:99999' is not IP:PORT"),
        (["--listen", "192.0.2.1:0"], 2, "without TLS only this machine may be served"),
        (["--certificate", none], 2, "--certificate and --key belong together"),
        (["--certificate", none, "--key", none], 1, "cannot be used: .*No such file"),
        (["--token-file", none], 1, "the token cannot be read"),
        (["--token-file", str(tmp_path / "short")], 1, "has 16 or more"),
        (["--group", "a/b"], 1, "not a name of a group"),
    ):
        output = await asyncio.to_thread(propolis, "node", "serve", *options, status=status)
        assert re.search(reason, output), output
