"""Two SSH hosts that are connected directly: a file that one has from the other, and frames of a network."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from pytest_propolis.agent_api.networks import AddPort
from pytest_propolis.hosts.peers.identity import new_identity
from pytest_propolis.hosts.ssh_host import SshHost

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.samples import ratio_of_medians, spread
from ..common.timing import run_program, timed
from ..floors import tls_relay
from .ssh_hosts import SshRig, can_make_rigs, connected_hosts, has_rsync, make_sparse_file, ssh_rig

__all__ = ["measure"]

REPEATS: Final = 5
NAMES: Final = ("h1", "h2")
FILE_BOUND: Final = 0.3
FRAMES_BOUND: Final = 0.8 * 52_000
FRAME_BYTES: Final = 1500
BATCH: Final = 64
FRAMES_S: Final = 3.0
SETTLE_S: Final = 1.0


def measure(options: Options) -> list[Figure]:
    if not can_make_rigs():
        say("ssh_peers: no hosts can be made here; it takes root, and sshd")
        return []
    with ssh_rig(*NAMES) as rig, connected_hosts(rig, NAMES) as hosts:
        return asyncio.run(_measure(rig, hosts, options.repeated(REPEATS)))


async def _measure(rig: SshRig, hosts: list[SshHost], repeats: int) -> list[Figure]:
    for host in hosts:
        await host.run("true")
    figures = [await _file(rig, hosts, repeats)] if has_rsync() else []
    return [*figures, await _frames(rig, hosts, repeats)]


async def _file(rig: SshRig, hosts: list[SshHost], repeats: int) -> Figure:
    """Measure a file that the second host needs and the first one has: new contents each time."""
    ours, rsync = [], []
    there = rig.hosts["h2"].home
    with tempfile.TemporaryDirectory() as name:
        for number in range(repeats):
            source = Path(name, f"memory-{number}")
            make_sparse_file(source)
            content = secrets.token_hex(32)
            await hosts[0].provide(source, say, content=content)
            ours.append(await timed(partial(hosts[1].provide, source, say, content=content)))
            words = ("rsync", "-S", "-e", f"ssh -F {rig.config}", str(source), f"h2:{there}/rsync")
            rsync.append(await timed(partial(run_program, *words)))
            (there / "rsync").unlink()
            source.unlink()
            say(f"ssh_peers: file {ours[-1]:.2f}, rsync {rsync[-1]:.2f} s, load {os.getloadavg()[0]:.1f}")
    ratio = ratio_of_medians(ours, rsync)
    return Figure(
        name="a file of 512 MiB with 139 MB of data, from host to host",
        measured=spread(ours),
        floor=f"rsync -S {spread(rsync)}",
        ratio=f"{ratio:.2f}",
        bound=f"<= {FILE_BOUND}",
        met=ratio <= FILE_BOUND,
    )


async def _frames(rig: SshRig, hosts: list[SshHost], repeats: int) -> Figure:
    """Measure frames from a card's socket on one host to one on the other, against relays by hand, in turns."""
    first, second = hosts
    async with await first.client() as near, await second.client() as far:
        parts = await near.create_network("net"), await far.create_network("net")
        endpoint = far.endpoint(f"/networks/{parts[1]}")
        await near.connect_network(parts[0], await first.address_for_agent(endpoint, on=second), parts[1])
        sockets = []
        for agent, host, part, number in ((near, first, parts[0], 1), (far, second, parts[1], 2)):
            path = await agent.add_port(part, AddPort(number=number))
            sockets.append(f"/proc/{rig.hosts[host.name].init}/root{path}")
        ours, by_hand = [], []
        with _relays() as relays:
            for _ in range(repeats):
                ours.append(await asyncio.to_thread(_frames_per_s, *sockets))
                by_hand.append(await asyncio.to_thread(_frames_per_s, *relays))
                say(f"ssh_peers: {ours[-1]:.0f} frames/s, by hand {by_hand[-1]:.0f}, load {os.getloadavg()[0]:.1f}")
        for agent, part in ((near, parts[0]), (far, parts[1])):
            await agent.remove_network(part)
    ratio = median(ours) / median(by_hand)
    return Figure(
        name=f"frames of {FRAME_BYTES} bytes from host to host, per s",
        measured=f"{median(ours):.0f} ({min(ours):.0f}-{max(ours):.0f})",
        floor=f"two relays with TLS {median(by_hand):.0f} ({min(by_hand):.0f}-{max(by_hand):.0f})",
        ratio=f"{ratio:.2f}",
        bound=f">= {FRAMES_BOUND:.0f}",
        met=median(ours) >= FRAMES_BOUND,
    )


def _frames_per_s(source: str, target: str) -> float:
    """Send as fast as the source's socket takes frames; return how many arrive per second."""
    # The addresses: to the second card, from the first one; and the type of experiments.
    frame = bytes.fromhex("02000000000202000000000188b5").ljust(FRAME_BYTES, b"\0")
    batch = (len(frame).to_bytes(4, "big") + frame) * BATCH
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.connect(source)
        other.connect(target)
        other.settimeout(SETTLE_S)
        received = threading.Thread(target=lambda: counts.append(_count(other)))
        counts: list[tuple[int, float]] = []
        received.start()
        ends_s = time.monotonic() + FRAMES_S
        while time.monotonic() < ends_s:
            one.sendall(batch)
        received.join()
    (arrived, took_s), size = counts[0], len(frame) + 4
    return arrived / size / took_s


def _count(connection: socket.socket) -> tuple[int, float]:
    """Return how many bytes arrive, and how long after the first ones the last ones do."""
    buffer, total = bytearray(1 << 20), 0
    began_s = last_s = 0.0
    while True:
        try:
            size = connection.recv_into(buffer)
        except TimeoutError:
            if total:
                return total, last_s - began_s
            continue
        last_s = time.monotonic()
        began_s = began_s or last_s
        total += size


@contextmanager
def _relays() -> Iterator[tuple[str, str]]:
    """Run two relays by hand, and yield their sockets."""
    with tempfile.TemporaryDirectory() as name:
        identity = Path(name, "identity.pem")
        identity.write_text(new_identity())
        paths = [str(Path(name, part)) for part in ("one", "other")]
        words = (sys.executable, tls_relay.__file__)
        with subprocess.Popen([*words, "listen", paths[0], identity], stdout=subprocess.PIPE, text=True) as one:
            assert one.stdout
            port = one.stdout.readline().strip()
            connect = [*words, "connect", paths[1], str(identity), port]
            with subprocess.Popen(connect, stdout=subprocess.PIPE, text=True) as other:
                assert other.stdout
                other.stdout.readline()
                yield paths[0], paths[1]
                other.kill()
            one.kill()
