"""The pause of an idle guest that migrates between two SSH hosts, against two QEMUs with TLS-PSK, driven by hand.

Those by hand are on one host, connected by TCP over loopback, and stopped first: QEMU before 10 may corrupt the memory
of a guest that runs under TCG.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

from pytest_propolis.engine.qemu.accelerator.acceleration import acceleration_arguments
from pytest_propolis.hosts.ssh_host import SshHost
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.settings import BootKind
from pytest_propolis.vm.factory import VmFactory

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import milliseconds, ratio_of_medians
from ..floors.bare_guest import MEMORY_MIB, GuestFiles
from ..vms.migration import MigratingQemu, read_until
from .ssh_guests import factory_on
from .ssh_hosts import SshRig, can_make_rigs, connected_hosts, ssh_rig

__all__ = ["measure"]

REPEATS: Final = 5
BOUND: Final = 0.6
BANDWIDTH: Final = 8 << 30
NAMES: Final = ("h1", "h2")


def measure(options: Options) -> list[Figure]:
    if not can_make_rigs():
        say("ssh_migration: no hosts can be made here; it takes root, and sshd")
        return []
    with ssh_rig(*NAMES) as rig:
        pauses = asyncio.run(_measure(rig, options))
    direct, tunnel, fork, by_hand = pauses
    ratio = ratio_of_medians(direct, by_hand)
    return [
        Figure(
            name=f"migration of {MEMORY_MIB} MiB between SSH hosts, pause, median of {len(direct)}",
            measured=milliseconds(median(direct)),
            floor=f"QEMU's TLS-PSK {milliseconds(median(by_hand))}",
            ratio=f"{ratio:.2f}",
            bound=f"<= {BOUND} x",
            met=ratio <= BOUND,
        ),
        Figure(
            name="the same through the test's machine",
            measured=milliseconds(median(tunnel)),
            ratio=f"{ratio_of_medians(tunnel, by_hand):.2f}",
        ),
        Figure(
            name="the same of a fork, whose memory is in no file, over the direct connection",
            measured=milliseconds(median(fork)),
            ratio=f"{ratio_of_medians(fork, by_hand):.2f}",
            bound=f"<= {BOUND} x",
            met=ratio_of_medians(fork, by_hand) <= BOUND,
        ),
    ]


async def _measure(rig: SshRig, options: Options) -> tuple[list[float], list[float], list[float], list[float]]:
    """Measure the pauses of all four in turns."""
    direct: list[float] = []
    tunnel: list[float] = []
    fork: list[float] = []
    by_hand: list[float] = []
    async with Harness.open(options, boot="cold") as harness:
        files, accelerator = await harness.files("micro")
        floor = _ByHand(files, acceleration_arguments(accelerator), harness.directory)
        with connected_hosts(rig, NAMES, direct=True) as near, connected_hosts(rig, NAMES, direct=False) as far:
            async with factory_on(near, harness) as one, factory_on(far, harness) as other:
                for _ in range(options.repeated(REPEATS)):
                    by_hand.append(await asyncio.to_thread(floor.hop))
                    direct.append(await _hop(one, near))
                    tunnel.append(await _hop(other, far))
                    fork.append(await _hop(one, near, boot="warm"))
                    shown = [f"{pauses[-1] * 1000:.0f}" for pauses in (by_hand, direct, tunnel, fork)]
                    say(f"ssh_migration: TLS-PSK, direct, tunnel, fork: {shown} ms, load {os.getloadavg()[0]:.1f}")
    return direct, tunnel, fork, by_hand


async def _hop(factory: VmFactory, hosts: list[SshHost], *, boot: BootKind = "cold") -> float:
    """Start a guest on the first host, and migrate it to the second one; return the pause in seconds."""
    number = len(factory.vms)
    source = await factory.start(f"vm{number}", guest="micro", host=hosts[0], boot=boot)
    target = await factory.successor(source, f"target{number}", host=hosts[1])
    await target.migrate_from(source)
    await target.wait_for_state(InstanceState.RUNNING)
    await target.run("true")
    report = (await target.get_migration_report()).migration_in
    assert report is not None
    await source.aclose()
    await target.aclose()
    return report.pause_s


class _ByHand:
    """A guest that goes from QEMU to QEMU over TLS with a pre-shared key."""

    def __init__(self, files: GuestFiles, acceleration: tuple[str, ...], directory: Path) -> None:
        self._made = (files, acceleration, None)
        self._keys = directory / "psk"
        self._keys.mkdir(mode=0o700)
        (self._keys / "keys.psk").write_text(f"qemu:{secrets.token_hex(32)}\n")

    def hop(self) -> float:
        """Boot a guest and migrate it, and check that it still answers; return the pause in seconds."""
        with (
            closing(MigratingQemu(*self._made, incoming=False)) as source,
            closing(MigratingQemu(*self._made, incoming=True)) as target,
        ):
            source.do("cont")
            read_until(source.serial, b"~ # ")
            for qemu, endpoint in ((source, "client"), (target, "server")):
                qemu.do(
                    "object-add",
                    **{"qom-type": "tls-creds-psk", "id": "tls0", "dir": str(self._keys)},
                    endpoint=endpoint,
                )
                qemu.do("migrate-set-parameters", **{"tls-creds": "tls0", "max-bandwidth": BANDWIDTH})
            with socket.create_server(("127.0.0.1", 0)) as free:
                uri = f"tcp:127.0.0.1:{free.getsockname()[1]}"
            target.do("migrate-incoming", uri=uri)
            source.do("stop")
            source.do("migrate", uri=uri)
            source.until_migrated()
            target.until_migrated()
            target.do("cont")
            pause_s = target.time_of("RESUME") - source.time_of("STOP")
            target.serial.sendall(b"echo ali''ve\n")
            read_until(target.serial, b"alive")
            return pause_s
