"""Replicated volumes: write throughput against one plain NBD disk, activation, correction of a blocked start."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_propolis.engine.qemu.accelerator.acceleration import acceleration_arguments
from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.volumes.upstairs import Upstairs
from pytest_propolis.operating_system.child import NoJournal
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.vm.disks.crucible_disk_factory import CrucibleDiskFactory
from pytest_propolis.vm.vm import TestVm

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import milliseconds, percentile, ratio_of_medians, spread
from ..floors.bare_guest import MicroFloor

__all__ = ["measure"]

REPEATS = 7
SIZE_MIB = 64
WRITE_BOUND = 0.4
ACTIVATION_BOUND_S = 0.150
CORRECTION_BOUND_S = 0.300
WAIT = "modprobe virtio_blk; until [ -b /dev/vda ]; do usleep 20000; done"
WRITE = f"dd if=/dev/zero of=/dev/vda bs=1M count={SIZE_MIB} conv=fsync 2>/dev/null"


class NbdFloor(MicroFloor):
    """The micro guest with one disk, which a qemu-storage-daemon serves."""

    def __enter__(self) -> Self:
        self._image = self._directory / "nbd.raw"
        self._socket = self._directory / "nbd.sock"
        with self._image.open("xb") as file:
            file.truncate(SIZE_MIB << 20)
        node = {"driver": "raw", "node-name": "n", "file": {"driver": "file", "filename": str(self._image)}}
        node |= {"cache": {"no-flush": True}}
        self._server = subprocess.Popen(
            [
                *("qemu-storage-daemon", "--blockdev", json.dumps(node)),
                *("--nbd-server", f"addr.type=unix,addr.path={self._socket}"),
                *("--export", "type=nbd,id=e,node-name=n,name=disk,writable=on"),
            ]
        )
        while not self._socket.exists():
            time.sleep(0.01)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._server.kill()
        self._server.wait()

    def _disk(self) -> Sequence[str]:
        server = {"type": "unix", "path": str(self._socket)}
        node = {"driver": "nbd", "node-name": "d", "server": server, "export": "disk"}
        return ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=d")


def measure(options: Options) -> list[Figure]:
    if shutil.which("qemu-storage-daemon") is None:
        say("volumes: there is no qemu-storage-daemon")
        return []
    return asyncio.run(_measure(options.repeated(REPEATS), options))


async def _measure(repeats: int, options: Options) -> list[Figure]:
    async with (
        Harness.open(options) as harness,
        CrucibleDiskFactory.on(harness.host, group="benchmark", made=lambda disk: None) as disks,
    ):
        return [
            await _writes(harness, disks, repeats),
            await _activation(harness, disks, repeats),
            await _correction(harness, disks, repeats),
        ]


async def _writes(harness: Harness, disks: CrucibleDiskFactory, repeats: int) -> Figure:
    ours: list[float] = []
    floor: list[float] = []
    disk = await disks("written", size_mib=SIZE_MIB)
    vm = await harness.factory.start("writer", guest="micro", disks=(disk,))
    files, accelerator = await harness.files("micro")
    with NbdFloor(files, acceleration=acceleration_arguments(accelerator), directory=harness.directory) as by_hand:
        by_hand.start()
        by_hand.log_in()
        by_hand.start_loop()
        await vm.run(WAIT)
        await asyncio.to_thread(by_hand.run, WAIT.encode())
        for _ in range(repeats + 1):
            ours.append(await _timed_write(vm))
            began = time.perf_counter()
            await asyncio.to_thread(by_hand.run, WRITE.encode())
            floor.append(time.perf_counter() - began)
    await vm.stop()
    ratio = 1 / ratio_of_medians(ours[1:], floor[1:])
    return Figure(
        name=f"{SIZE_MIB} MiB written to a volume, against one NBD disk, n={repeats}",
        measured=spread(ours[1:]),
        floor=spread(floor[1:]),
        ratio=f"{ratio:.2f}",
        bound=f">= {WRITE_BOUND} x",
        met=ratio >= WRITE_BOUND,
    )


async def _timed_write(vm: TestVm) -> float:
    began = time.perf_counter()
    await vm.run(WRITE)
    return time.perf_counter() - began


async def _activation(harness: Harness, disks: CrucibleDiskFactory, repeats: int) -> Figure:
    """Measure the time from the first connection until QEMU has all three replicas."""
    disk = await disks("activated", size_mib=SIZE_MIB)
    took_s = []
    for _ in range(repeats):
        upstairs = Upstairs(key="disk", component=disk.disk().backend.component, node_name="volume0")
        arguments = ["-nodefaults", "-display", "none", "-S", "-M", "pc", "-m", "16"]
        machine = Machine(
            program=Path(shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"),
            arguments=[*arguments, "-blockdev", json.dumps(upstairs.node)],
            log_path=harness.directory / "activation.log",
            journal=NoJournal(),
            on_event=lambda event: None,
        )
        try:
            await machine.start()
            began = time.perf_counter()
            await upstairs.start(machine)
            took_s.append(time.perf_counter() - began)
            await upstairs.quiesce(machine)
        finally:
            await machine.close()
            await upstairs.close()
    return _bounded(f"activation of a healthy volume, p50, n={repeats}", took_s, ACTIVATION_BOUND_S)


async def _correction(harness: Harness, disks: CrucibleDiskFactory, repeats: int) -> Figure:
    """Measure the time from a corrected request until a VM whose start was blocked is Running."""
    took_s = []
    disk = await disks("corrected", size_mib=SIZE_MIB)
    for number in range(repeats):
        disk.enable_vcr_black_hole()
        vm = await harness.factory.create(f"blocked{number}", guest="micro", disks=(disk,))
        await vm.launch()
        await vm.wait_for_state(InstanceState.STARTING)
        disk.disable_vcr_black_hole()
        disk.set_generation(disk.generation + 1)
        began = time.perf_counter()
        await disk.replace_vcr()
        await vm.wait_for_state(InstanceState.RUNNING)
        took_s.append(time.perf_counter() - began)
        await vm.stop()
        disk.set_generation(disk.generation + 1)
    return _bounded(f"corrected request to Running, p50, n={repeats}", took_s, CORRECTION_BOUND_S)


def _bounded(name: str, took_s: Sequence[float], bound_s: float) -> Figure:
    measured = percentile(took_s, 0.5)
    return Figure(
        name=name, measured=milliseconds(measured), bound=f"<= {milliseconds(bound_s)}", met=measured <= bound_s
    )
