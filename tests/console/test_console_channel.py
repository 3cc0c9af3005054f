"""Streams over the serial console in and out, with each kind of shell at the other end."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from local_pty import SHELLS
from local_shell import local_shell

from pytest_propolis.console.channels.over_console import ConsoleChannel

SIZES = (0, 5, 40_000)
LEFT_BEHIND = {
    "nothing": "true",
    "functions": "read() { echo mine; }; printf() { echo mine; }; head() { echo mine; }",
    "IFS": "IFS=0123456789r-",
    "set -u and -a": "set -u; set -a",
    "set -f": "set -f",
}


@pytest.mark.parametrize("left", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
@pytest.mark.parametrize("shell", SHELLS)
async def test_streams_go_in_and_out_with_every_shell(shell: str, left: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with local_shell(shell, tmp_path) as local:
        await local.run(left)
        channel = ConsoleChannel(local.shell)
        for size in SIZES:
            content = random.Random(size).randbytes(size)

            async def source(content: bytes = content) -> AsyncIterator[bytes]:
                yield content

            assert (await channel.upload(f"cat >{path}", source(), note="in")).status == 0
            assert path.read_bytes() == content
            received = bytearray()
            assert (await channel.download(f"cat {path}", received.extend, note="out")).status == 0
            assert bytes(received) == content
