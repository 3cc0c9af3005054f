"""An agent in the process of the test: its application, its ledger, and a directory of QEMU's programs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
from migration_rig import spec_of

from pytest_propolis.agent.app import AgentApp
from pytest_propolis.agent.registry import ResourceRegistry
from pytest_propolis.agent.templates.templates import Templates
from pytest_propolis.agent_api.agent_process import AgentConfig, AgentOptions
from pytest_propolis.agent_api.boot_source import Firmware
from pytest_propolis.agent_api.messages import CreateVm
from pytest_propolis.agent_api.templates import MEMORY_FILE, STATE_FILE
from pytest_propolis.engine.qemu.memory import GuestMemory
from pytest_propolis.engine.templates.template import Template
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger
from pytest_propolis.propolis_api import FromSpec, InstanceEnsureRequest, SpecInit
from pytest_propolis.vm.instance_spec.builder import instance_properties

__all__ = ["AgentRig"]


class AgentRig:
    """An agent without its process: its ledger, its application, and a QEMU whose qemu-img can be held."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "run" / "word-1"
        self.directory.mkdir(parents=True)
        programs = root / "programs"
        programs.mkdir()
        (programs / "qemu-system-x86_64").symlink_to(str(shutil.which("qemu-system-x86_64")))
        self.image_program = programs / "qemu-img"
        self.image_program.symlink_to(str(shutil.which("qemu-img")))
        config = self.config = AgentConfig(
            run="word",
            directory=str(self.directory),
            artifact_dir=str(root / "store"),
            qemu=str(programs / "qemu-system-x86_64"),
            options=AgentOptions(accelerator="tcg"),
        )
        self.ledger = Ledger.open(
            self.directory / LEDGER_NAME, run="word", disk_directory=str(root / "store" / "disks" / "word-1")
        )
        self.app = AgentApp(config, self.ledger, on_empty=lambda: None)

    @property
    def registry(self) -> ResourceRegistry:
        return self.app.registry

    @property
    def templates(self) -> Templates:
        return self.app._templates

    def client(self) -> httpx.AsyncClient:
        """A client of the agent's HTTP API, without a socket."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app.asgi), base_url="http://agent")

    @property
    def disks(self) -> list[Path]:
        return sorted((self.root / "store" / "disks").rglob("*.qcow2"))

    def hold_images(self) -> Path:
        """Have qemu-img wait for a word, which is to be written into this pipe; it writes one itself before."""
        gate, started = self.root / "gate", self.root / "started"
        os.mkfifo(gate)
        os.mkfifo(started)
        self.image_program.unlink()
        script = f'#!/bin/sh\necho x > "{started}"\nread -r _ < "{gate}"\nexec {shutil.which("qemu-img")} "$@"\n'
        self.image_program.write_text(script)
        self.image_program.chmod(0o700)
        return gate

    async def template(self) -> tuple[Template, Path]:
        """Save a machine without a guest as a template, in a directory of its own."""
        directory = self.root / "template"
        directory.mkdir()
        memory = GuestMemory(path=str(directory / MEMORY_FILE), shared=True)
        vm = await self.registry.create_vm("client", self.vm("template"), memory=memory)
        assert vm.engine
        properties, spec = instance_properties("template"), spec_of()
        await vm.engine.ensure(InstanceEnsureRequest(properties=properties, init=SpecInit(FromSpec(spec=spec))))
        await vm.engine.freeze(directory / STATE_FILE)
        await self.registry.remove_vm("client", vm.id)
        template = Template(
            key="key",
            boot=Firmware(),
            spec=spec,
            properties=properties,
            disks=0,
            session="",
            console="",
            warmup_input="",
            warmup_marker="",
        )
        return template, directory

    def vm(self, name: str = "vm", *, memory_mib: int = 0) -> CreateVm:
        return CreateVm(
            name=name, group="test", boot=Firmware(), log_path=str(self.root / "qemu.log"), memory_mib=memory_mib
        )
