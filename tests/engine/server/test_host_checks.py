"""Checks of host resources in a spec, before QEMU starts."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from pytest_propolis.engine.invalid_spec import InvalidSpec
from pytest_propolis.engine.qemu.devices.host_checks import require_host_resources
from pytest_propolis.propolis_api import (
    Board,
    Chipset,
    Component,
    FileStorageBackend,
    I440Fx,
    InstanceSpec,
    VirtioNetworkBackend,
)
from pytest_propolis.propolis_api.component import FileStorageBackendComponent, VirtioNetworkBackendComponent


def spec_of(component: Component) -> InstanceSpec:
    board = Board(chipset=Chipset(type="i440_fx", value=I440Fx(enable_pcie=False)), cpus=1, memory_mb=64)
    return InstanceSpec(board=board, components={"thing": component})


def card(path: Path) -> InstanceSpec:
    return spec_of(VirtioNetworkBackendComponent(VirtioNetworkBackend(vnic_name=f"unix:{path}")))


def disk(path: str, *, block_size: int) -> InstanceSpec:
    return spec_of(FileStorageBackendComponent(FileStorageBackend(path=path, readonly=False, block_size=block_size)))


def test_a_switch_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=rf"'thing': no switch listens at {tmp_path}/switch: No such file"):
        require_host_resources(card(tmp_path / "switch"))


def test_a_socket_that_its_switch_has_left_behind_is_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as switch:
        switch.bind(str(tmp_path / "switch"))
    with pytest.raises(InvalidSpec, match=f"no switch listens at {tmp_path}/switch: Connection refused"):
        require_host_resources(card(tmp_path / "switch"))


def test_a_switch_that_listens_is_not_connected_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as switch:
        switch.bind(str(tmp_path / "switch"))
        switch.listen()
        switch.setblocking(False)
        require_host_resources(card(tmp_path / "switch"))
        with pytest.raises(BlockingIOError):
            switch.accept()


def test_a_switch_behind_a_link_is_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as switch:
        switch.bind(str(tmp_path / "switch"))
        switch.listen()
        (tmp_path / "link").symlink_to(tmp_path / "switch")
        require_host_resources(card(tmp_path / "link"))


def test_a_file_that_is_no_whole_number_of_blocks_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "disk"
    raw.write_bytes(bytes(4096 + 512))
    with pytest.raises(InvalidSpec, match=r"has 4608 bytes, .* block_size 4096"):
        require_host_resources(disk(str(raw), block_size=4096))
    require_host_resources(disk(str(raw), block_size=512))


def test_the_size_of_a_qcow2_file_is_that_of_its_disk(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "4608"], check=True)
    with pytest.raises(InvalidSpec, match="has 4608 bytes"):
        require_host_resources(disk(str(image), block_size=4096))


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"'disk\.img' is a relative path"):
        require_host_resources(disk("disk.img", block_size=512))
