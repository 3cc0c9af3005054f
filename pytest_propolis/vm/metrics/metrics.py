"""Collecting the metrics of VMs: what the fixture `metrics` is."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from ...errors import ApiError, MetricsMissing, MetricsTimeout, PropolisError, VmStateError
from ...guests.fork_identity import real_time_ns
from ...hosts.host import Host
from ...oximeter.collector import Collector, NotCollected
from ...oximeter.virtual_machine import VCPU_USAGE
from ...propolis_api.connection.endpoint import Endpoint
from ..migration import TERMINAL
from ..vm import TestVm
from .samples import Samples

__all__ = ["Metrics"]

T = TypeVar("T")

TIMEOUT_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
HINT: Final = "docs/metrics.md says which metrics a server has"


class Metrics:
    """A stand-in for oximeter: servers of VMs register at it, and it asks them for samples when a test wants some.

    VMs of a factory that was given it register by themselves.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._reached: dict[tuple[str, int], int] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls) -> AsyncIterator[Metrics]:
        """One that listens on 127.0.0.1, for the length of the block."""
        async with Collector.opened() as collector:
            yield cls(collector)

    @property
    def address(self) -> str:
        """The IP address and port at which servers register, for a server's ``--metric-addr``."""
        return self._collector.address

    async def poll(self, vm: TestVm, *, timeout_s: float = TIMEOUT_S) -> Samples:
        """Poll a VM's server, after waiting for its registration.

        :raises MetricsTimeout: when the server does not register or answer in time.
        """
        return await self.wait_for(vm, lambda samples: samples, timeout_s=timeout_s)

    async def snapshot(self, vm: TestVm, *, timeout_s: float = TIMEOUT_S) -> Samples:
        """Return samples that include the times of vCPUs, measured after this was called.

        :raises MetricsTimeout: when there are none in time.
        :raises MetricsMissing: when the server says that it cannot measure them.
        """
        asked = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=real_time_ns() // 1000)
        return await self.wait_for(
            vm, lambda samples: samples if samples.oldest(VCPU_USAGE) >= asked else None, timeout_s=timeout_s
        )

    async def wait_for(
        self, vm: TestVm, predicate: Callable[[Samples], T | None], *, timeout_s: float = TIMEOUT_S
    ) -> T:
        """Poll a VM's server until a predicate is content with what it answers, and return what the predicate does.

        As PHD's ``wait_for_propolis_stats``. Samples that a predicate does not find (`MetricsMissing`) may come with a
        later poll.

        :param predicate: is given the samples of each poll; None and False mean that this is not it.
        :raises MetricsTimeout: when that does not happen in time, with what was answered last.
        :raises VmStateError: when the VM has ended.
        :raises MetricsMissing: when the predicate looks for what the server says that it cannot measure.
        """
        last = "its server has not answered yet"
        pause_s = FIRST_PAUSE_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found, last = await self._try_poll(vm, predicate)
                    if found is not None:
                        return found
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except TimeoutError:
            raise MetricsTimeout(
                f"its metrics did not show in time what is waited for: {last}",
                vm=vm.name,
                waited_s=timeout_s,
                hint=self._hint(vm),
            ) from None

    def _hint(self, vm: TestVm) -> str:
        if "://" in str(vm.server):
            return f"{vm.server} registers where it was told to: start it with --metric-addr {self.address}"
        return HINT

    async def _reach(self, host: Host, address: str) -> Endpoint:
        """Return this process's endpoint for an address on a host."""
        endpoint = Endpoint.at(address)
        ip, port = endpoint.host_and_port
        if host.shares_files or not ipaddress.ip_address(ip).is_loopback:
            return endpoint
        if (host.name, port) not in self._reached:
            self._reached[host.name, port] = await host.forward_port(port)
        return Endpoint(base_url=f"http://127.0.0.1:{self._reached[host.name, port]}")

    async def _try_poll(self, vm: TestVm, predicate: Callable[[Samples], T | None]) -> tuple[T | None, str]:
        """Poll once; return what the predicate found, if anything, and what there was to find."""
        try:
            samples = Samples.of(
                vm.name, await self._collector.collect(vm.properties.id, reach=partial(self._reach, vm.host))
            )
        except NotCollected as error:
            if await _has_ended(vm):
                raise VmStateError(f"it has ended, and has no metrics any more: {error}", vm=vm.name) from None
            return None, str(error)
        try:
            found = predicate(samples)
        except MetricsMissing as error:
            if samples.errors:  # the server says itself that it cannot
                raise
            return None, error.message
        return (None if found is False else found), str(samples)


async def _has_ended(vm: TestVm) -> bool:
    try:
        return await vm.get_state() in TERMINAL
    except ApiError:
        return False  # it is not created yet
    except PropolisError:
        return True
