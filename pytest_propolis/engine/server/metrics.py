"""The metrics of a VM while it exists: ``virtual_machine:vcpu_usage`` and ``virtual_machine:reset``.

As `bin/propolis-server/src/lib/stats/mod.rs` of oxidecomputer/propolis, which has one result for each of the two.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from ...oximeter.producer import producing
from ...oximeter.registration import MetricsConfig
from ...oximeter.samples import MetricsError, ProducerError, ProducerResult, ProducerResults, ProducerSamples
from ...oximeter.virtual_machine import VcpuState, reset, target_of, vcpu_usage
from ..qemu.monitor import MachineError
from ..qemu.vcpu_times import VcpuTimesUnknown, VcpuTimesView
from .served_vm import ServedVm

__all__ = ["producing_metrics"]

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def producing_metrics(config: MetricsConfig, vm: ServedVm) -> AsyncIterator[None]:
    """Register a VM whose QEMU is up as a producer, and serve its samples, for the length of the block.

    If that fails, log the reason, and continue without metrics.
    """
    metrics = await _Metrics.of(vm)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(producing(config, producer_id=vm.properties.id, produce=metrics.results))
        except OSError as error:
            logger.error("there are no metrics of this instance: %s cannot be listened on: %s", config.host, error)
        yield


class _Metrics:
    """Measures one VM."""

    def __init__(self, vm: ServedVm, times: VcpuTimesView | VcpuTimesUnknown) -> None:
        self._vm = vm
        self._target = target_of(vm.properties)
        self._since = datetime.now(UTC)
        self._times = times

    @classmethod
    async def of(cls, vm: ServedVm) -> _Metrics:
        times: VcpuTimesView | VcpuTimesUnknown
        try:
            times = await VcpuTimesView.of(vm.built.machine)
        except (VcpuTimesUnknown, MachineError) as error:
            logger.warning("there are no times of virtual CPUs: %s", error)
            times = VcpuTimesUnknown(str(error))
        return cls(vm, times)

    async def results(self) -> ProducerResults:
        return [self._vcpu_usage(), self._reset()]

    def _vcpu_usage(self) -> ProducerResult:
        try:
            if isinstance(self._times, VcpuTimesUnknown):
                raise self._times
            times, now = self._times.read(), datetime.now(UTC)
        except VcpuTimesUnknown as error:
            return ProducerError(MetricsError(type="datum_error", content=str(error)))
        return ProducerSamples(
            [
                vcpu_usage(self._target, vcpu, state, time_ns, since=self._since, at=now)
                for vcpu, each in times.items()
                for state, time_ns in (
                    (VcpuState.RUN, each.run),
                    (VcpuState.IDLE, each.idle),
                    (VcpuState.WAITING, each.waiting),
                )
            ]
        )

    def _reset(self) -> ProducerResult:
        count = self._vm.built.driver.resets
        return ProducerSamples([reset(self._target, count, since=self._since, at=datetime.now(UTC))])
