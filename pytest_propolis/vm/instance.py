"""A VM at its Propolis server: state, spec, serial console."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from ..agent_api.messages import ExtendedInfo
from ..agent_api.migration_report import MigrationReport
from ..console.console import Console
from ..console.transcript import Found
from ..errors import (
    AgentError,
    ApiError,
    CapabilityMissing,
    ConfigError,
    ConsoleError,
    PropolisError,
    StateTimeout,
    VmStateError,
)
from ..field_checks import member_of
from ..hosts.vm_extensions import get_extended_info, get_screenshot
from ..propolis_api import (
    InstanceMigrateStatusResponse,
    InstanceSerialConsoleHistoryResponse,
    InstanceState,
    PresentSpec,
)
from ..propolis_api.client import Endpoint, PropolisClient
from .migration import TERMINAL
from .server_handle import ServerHandle

__all__ = ["OUTPUT_TIMEOUT_S", "STATE_TIMEOUT_S", "Instance"]

STATE_TIMEOUT_S: Final = 60.0
OUTPUT_TIMEOUT_S: Final = 60.0
LAST_STATE_TIMEOUT_S: Final = 2.0


class Instance:
    """Access to a VM's server.

    It belongs to the event loop in which it was created.

    :param migrations: queries the server's report of its latest migrations; None if the server has none.
    """

    def __init__(self, *, name: str, server: ServerHandle, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._client = server.client
        self._migrations = server.migrations
        self._console: Console | None = None
        self._loop = asyncio.get_running_loop()
        self._final_state: str | None = None

    @property
    def console(self) -> Console:
        """The serial console.

        :raises ConsoleError: before the VM is created.
        """
        self._require_loop()
        if self._console is None:
            raise ConsoleError("there is no console yet", vm=self.name, hint="call `launch` or `boot` first")
        return self._console

    async def wait_for_serial_output(
        self, pattern: str | re.Pattern[str], *, timeout_s: float = OUTPUT_TIMEOUT_S
    ) -> Found:
        """Wait until the console shows a text, or a match of a regular expression.

        :raises ConsoleTimeout: when it does not in time.
        :raises ConsoleClosed: when the VM stops before.
        """
        return await self.console.wait_for(pattern, timeout_s=timeout_s)

    async def send_serial(self, data: str | bytes) -> None:
        """Type exactly this text at the console, without adding a newline."""
        await self.console.send(data)

    @property
    def client(self) -> PropolisClient:
        """The Propolis API of this VM's server."""
        return self._api()

    async def _state(self) -> InstanceState:
        return (await self._api().instance_get()).instance.state

    async def get_spec(self) -> PresentSpec:
        """Return the server's instance spec.

        :raises VmStateError: when it is not known yet, because the VM waits for the source of a migration.
        """
        status = (await self._api().instance_spec_get()).spec
        if isinstance(status, PresentSpec):
            return status
        raise VmStateError("its spec is that of the guest that migrates to it", vm=self.name, **self._evidence())

    async def screenshot(self) -> bytes:
        """Return a screenshot of the VM's display, as a PNG image.

        :raises CapabilityMissing: when it has no display: it was not created with ``VmConfig(display=True)``.
        :raises ApiError: when it does not run.
        """
        return await get_screenshot(self._api().endpoint, vm=self.name)

    async def extended_info(self) -> ExtendedInfo:
        """Return facts beyond the API: the display's VNC socket, and the number of panics that the guest reported.

        :raises CapabilityMissing: when its server is not one of this project.
        """
        return await get_extended_info(self._api().endpoint, vm=self.name)

    async def get_migration_state(self) -> InstanceMigrateStatusResponse:
        """Return the progress of the latest migrations into this VM's server and out of it."""
        return await self._api().instance_migrate_status()

    async def get_migration_report(self) -> MigrationReport:
        """Return a report of the latest migrations into this VM's server and out of it.

        It has the transfers of memory and disks, the pause, the phases, and the bytes carried between hosts.

        :raises CapabilityMissing: when its server is not one of this project.
        """
        if self._migrations is None:
            raise CapabilityMissing("its server does not report on migrations", vm=self.name)
        return await self._migrations()

    async def get_serial_console_history(
        self, from_start: int = 0, *, max_bytes: int | None = None
    ) -> InstanceSerialConsoleHistoryResponse:
        """Return the guest's console output from the server's history, which holds the first and the last MiB.

        :param from_start: the offset of the first byte.
        :param max_bytes: the most bytes to read; the server's default is 16 KiB.
        """
        return await self._api().instance_serial_history(from_start=from_start, max_bytes=max_bytes)

    async def _until_state(self, state: InstanceState | str, *, timeout_s: float) -> InstanceState:
        """Wait as `TestVm.wait_for_state` does, and return the state."""
        target = member_of(InstanceState, state, what=f"VM {self.name!r}: the state to wait for")
        last: InstanceState | None = None
        try:
            async with asyncio.timeout(timeout_s):
                gen = 0
                while last is not target:
                    if last in TERMINAL:
                        raise self._state_error(target, last)
                    answer = await self._api().instance_state_monitor(gen)
                    gen, last = answer.gen + 1, answer.state
                return target
        except TimeoutError:
            raise StateTimeout(
                f"it is {last} and not {target}", vm=self.name, waited_s=timeout_s, **self._evidence()
            ) from None
        except ApiError as error:
            if error.status != 410:
                raise
            raise self._state_error(target, last) from None

    async def is_active(self) -> bool:
        """Return whether there is an active instance."""
        if self._final_state is not None:
            return False
        try:
            return await self._state() not in TERMINAL
        except (ApiError, AgentError):  # it is not created, or its server is gone
            return False

    async def _may_have_disks(self) -> bool:
        """Return False when it has ended: others may use its disks then."""
        if self._final_state is not None:
            return False
        try:
            return await self._state() not in TERMINAL
        except ApiError as error:
            return error.status == HTTPStatus.FAILED_DEPENDENCY  # it is not created yet
        except AgentError:
            return False

    def console_tail(self) -> tuple[str, ...]:
        """Return the last lines that the console showed."""
        return self._console.tail() if self._console else ()

    @property
    def log_failure(self) -> str | None:
        """The reason why the console's log is incomplete; None if it is complete."""
        return self._console.log.failure if self._console else None

    @property
    def final_state(self) -> str | None:
        """The state of the VM when it was removed; None while it exists."""
        return self._final_state

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of the VM's server."""
        return self._client.endpoint

    def _state_error(self, target: InstanceState, last: InstanceState | None) -> VmStateError:
        return VmStateError(f"it is {last}, and will not be {target} any more", vm=self.name, **self._evidence())

    def _evidence(self) -> dict[str, Any]:
        return {"console_tail": self.console_tail(), "log_path": str(self.log_path)}

    def _api(self) -> PropolisClient:
        self._require_loop()
        return self._client

    def _require_loop(self) -> None:
        # A debugger's prompt has no running loop: what needs none works there, and `debug` runs what does.
        if asyncio._get_running_loop() not in (None, self._loop):
            raise ConfigError(
                "it was made in another event loop than this test runs in",
                vm=self.name,
                hint="mark the test with the loop scope of the fixture that made the VM,"
                ' as in @pytest.mark.asyncio(loop_scope="module")',
            )

    async def _last_state(self) -> str:
        try:
            async with asyncio.timeout(LAST_STATE_TIMEOUT_S):
                return (await self._state()).value
        except ApiError as error:
            return "not created" if error.status == 424 else "unknown"
        except (PropolisError, TimeoutError):
            return "unknown"
