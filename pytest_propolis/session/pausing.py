"""The pause after a failed test: its VMs stay up until the user continues."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest

from ..errors import PropolisError
from ..propolis_api import InstanceState
from .internals import with_standard_input
from .progress import progress_printer

if TYPE_CHECKING:
    from ..vm.factory import VmFactory
    from ..vm.vm import TestVm

__all__ = ["pauser"]

STDIN: Final = 0

RUNNING: Final = frozenset(
    {InstanceState.RUNNING, InstanceState.MIGRATING, InstanceState.REBOOTING, InstanceState.REPAIRING}
)
"""The states in which a VM can be inspected, as in PHD."""


def pauser(config: pytest.Config) -> Callable[[str, VmFactory], Awaitable[None]] | None:
    """Return an object that waits for the user; None, with a line that says so, if there is no terminal."""
    show = progress_printer(config)
    with with_standard_input(config):
        at_terminal = os.isatty(STDIN)
    if not at_terminal:
        show("--propolis-pause-on-failure has no effect: standard input is not a terminal")
        return None

    async def pause(test: str, factory: VmFactory) -> None:
        running = [vm for vm in factory.vms if await _runs(vm)]
        if running:
            for line in _instructions(test, running):
                show(line)
            with with_standard_input(config):
                await _wait_for_user(running)
            show("going on")

    return pause


def _instructions(test: str, vms: list[TestVm]) -> Iterator[str]:
    yield f"{test} failed. Its VMs stay up until you press Enter or Ctrl-C, or they stop:"
    for vm in vms:
        yield f"  propolis console {vm.id}{vm.host.command_options}    # VM {vm.name!r}; Ctrl-] leaves it"
        socket = f"--unix-socket {vm.endpoint.uds} " if vm.endpoint.uds else ""
        yield f"  curl {socket}{vm.endpoint.base_url}/instance"


async def _wait_for_user(vms: list[TestVm]) -> None:
    async with _key_pressed() as pressed:
        waits = [asyncio.ensure_future(pressed.wait()), asyncio.ensure_future(_all_ended(vms))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


@contextlib.asynccontextmanager
async def _key_pressed() -> AsyncIterator[asyncio.Event]:
    """Set by Enter, by the end of standard input, and in the main thread by Ctrl-C, which has no other effect then."""
    loop = asyncio.get_running_loop()
    pressed = asyncio.Event()

    def read() -> None:
        os.read(STDIN, 4096)
        pressed.set()

    loop.add_reader(STDIN, read)
    try:
        with _interrupt_sets(pressed, loop):
            yield pressed
    finally:
        loop.remove_reader(STDIN)


@contextlib.contextmanager
def _interrupt_sets(pressed: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # a synchronous test's thread: Ctrl-C ends the run
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, pressed.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, handler)


async def _all_ended(vms: list[TestVm]) -> None:
    await asyncio.gather(*(_ended(vm) for vm in vms))


async def _ended(vm: TestVm) -> None:
    """Wait until a VM has left all states in which a guest runs."""
    with contextlib.suppress(PropolisError):
        answer = await vm.client.instance_state_monitor(0)
        while answer.state in RUNNING:
            answer = await vm.client.instance_state_monitor(answer.gen + 1)


async def _runs(vm: TestVm) -> bool:
    try:
        return await vm.get_state() in RUNNING
    except PropolisError:
        return False
