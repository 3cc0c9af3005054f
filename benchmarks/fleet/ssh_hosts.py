"""SSH hosts in namespaces of this machine: connecting, calls, files; each beside what OpenSSH and rsync do."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.ssh_host import SshHost, open_host
from pytest_propolis.settings import Settings

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.samples import milliseconds, ratio_of_medians, spread
from ..common.timing import run_program, timed

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support" / "hosts"))

from ssh_rig import SshRig, can_make_rigs, ssh_rig

__all__ = [
    "SshRig",
    "can_make_rigs",
    "connected_hosts",
    "has_rsync",
    "make_sparse_file",
    "measure",
    "ssh_rig",
]

REPEATS: Final = 5
CALLS: Final = 400
FILE_BYTES: Final = 512 << 20
DATA_BYTES: Final = 139 << 20
FIRST_BOUND_S: Final = 2.0
CALL_BOUND_S: Final = 0.8e-3
FILE_BOUND: Final = 0.6


def measure(options: Options) -> list[Figure]:
    if not can_make_rigs():
        say("ssh_hosts: no hosts can be made here; it takes root, and sshd")
        return []
    with ssh_rig("h1") as rig:
        return asyncio.run(_measure(rig, options.repeated(REPEATS)))


async def _measure(rig: SshRig, repeats: int) -> list[Figure]:
    say(f"ssh_hosts: {repeats} times")
    bundles = rig.hosts["h1"].home / ".cache/propolis/bundles"

    async def first_time() -> None:
        # The agent before may still write there as it ends: renamed first, the bundle cannot be there in part.
        unused = bundles.rename(bundles.with_name(f"unused-{secrets.token_hex(4)}"))
        shutil.rmtree(unused, ignore_errors=True)
        await _connect(rig)

    await _connect(rig)  # packs the bundle, which happens once per version
    first = [await timed(first_time) for _ in range(repeats)]
    prepared, floor = [], []
    for _ in range(repeats):
        floor.append(await timed(lambda: run_program("ssh", "-F", str(rig.config), "h1", "true")))
        prepared.append(await timed(lambda: _connect(rig)))
    bound_s = 1.5 * median(floor) + 0.5
    return [
        Figure(
            name="connect to a prepared host until its agent answers",
            measured=spread(prepared),
            floor=f"ssh host true {spread(floor)}",
            ratio=f"{ratio_of_medians(prepared, floor):.2f}",
            bound=f"<= 1.5 x + 0.5 s = {bound_s:.2f} s",
            met=median(prepared) <= bound_s,
        ),
        Figure(
            name="connect to a bare host",
            measured=spread(first),
            bound=f"<= {FIRST_BOUND_S} s",
            met=median(first) <= FIRST_BOUND_S,
        ),
        await _calls(rig),
        *([await _file(rig, repeats)] if has_rsync() else []),
    ]


async def _calls(rig: SshRig) -> Figure:
    """Measure the extra cost of a call over SSH against a call to a local agent."""
    near, far = LocalHost(Settings(), run_id=secrets.token_hex(8)), _host(rig)
    try:
        async with await near.client() as local, await far.client() as remote:
            local_s, remote_s = [], []
            for _ in range(CALLS):
                local_s.append(await timed(local.list_vms))
                remote_s.append(await timed(remote.list_vms))
    finally:
        for host in (near, far):
            await asyncio.to_thread(host.close)
    added_s = median(remote_s) - median(local_s)
    return Figure(
        name="added to a call of one round trip",
        measured=milliseconds(added_s),
        floor=f"local {milliseconds(median(local_s))}",
        bound=f"<= {milliseconds(CALL_BOUND_S)}",
        met=added_s <= CALL_BOUND_S,
    )


async def _file(rig: SshRig, repeats: int) -> Figure:
    host = _host(rig)
    there = rig.hosts["h1"].home
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "memory")
        make_sparse_file(source)
        ours, rsync = [], []
        try:
            await host.run("true")
            for _ in range(repeats):
                ours.append(await timed(lambda: host.put(source, there / "ours")))
                remote = f"h1:{there}/rsync"
                words = ("rsync", "-S", "-e", f"ssh -F {rig.config}", str(source), remote)
                rsync.append(await timed(partial(run_program, *words)))
                (there / "rsync").unlink()
        finally:
            await asyncio.to_thread(host.close)
    ratio = ratio_of_medians(ours, rsync)
    return Figure(
        name="a file of 512 MiB with 139 MB of data",
        measured=spread(ours),
        floor=f"rsync -S {spread(rsync)}",
        ratio=f"{ratio:.2f}",
        bound=f"<= {FILE_BOUND}",
        met=ratio <= FILE_BOUND,
    )


def _host(rig: SshRig) -> SshHost:
    spec = HostSpec(name="h1", kind="ssh", address="h1", options={"config": str(rig.config)})
    return open_host(spec, Settings(), secrets.token_hex(8))


async def _connect(rig: SshRig) -> None:
    host = _host(rig)
    try:
        async with await host.client() as agent:
            await agent.list_vms()
    finally:
        asyncio.get_running_loop().run_in_executor(None, host.close)


def make_sparse_file(path: Path) -> None:
    """Make a file like a template's memory: data with holes."""
    with path.open("wb") as file:
        for part in range(8):
            file.seek(part * (FILE_BYTES // 8))
            file.write(os.urandom(DATA_BYTES // 8))
        file.truncate(FILE_BYTES)


@contextmanager
def connected_hosts(rig: SshRig, names: Sequence[str], **options: Any) -> Iterator[list[SshHost]]:
    """Open hosts of one run.

    :param options: of each host, beside its configuration.
    """
    given = {"config": str(rig.config), **options}
    specs = [HostSpec(name=name, kind="ssh", address=name, options=given) for name in names]
    hosts = [open_host(spec, Settings(standby=0), secrets.token_hex(8)) for spec in specs]
    for host in hosts:
        host.others = tuple(hosts)
    try:
        yield hosts
    finally:
        for host in hosts:
            host.close()


def has_rsync() -> bool:
    if shutil.which("rsync"):
        return True
    say("ssh_hosts: files are not measured without rsync, to which they are compared")
    return False
