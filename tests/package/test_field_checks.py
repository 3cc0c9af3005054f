"""Values that do not match their annotations are refused by field, with the expected type."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

import pytest_propolis
from pytest_propolis import (
    Artifact,
    ArtifactError,
    CloudInitDisk,
    CommandResult,
    ConfigError,
    CrucibleDisk,
    DataDisk,
    FatDisk,
    GuestImage,
    ImageDisk,
    ImageRecipe,
    LocalFile,
    Migrate,
    Nic,
    NotSameAs,
    Progress,
    Samples,
    Settings,
    SettingsError,
    VmConfig,
    VolumeDisk,
    WheelMember,
)
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.propolis_api import Cpuid, CpuidEntry, CpuidVendor, HyperVFeatureFlag
from pytest_propolis.settings import OPTIONS, Option
from pytest_propolis.storage.debian import DebianBuild
from pytest_propolis.vm.config import VmConfigFields
from pytest_propolis.vm.disks.image_fork import ForkDisk, ImageFork
from pytest_propolis.vm.disks.kinds import Disk, DiskSource

A_CPUID = Cpuid(entries=(), vendor=CpuidVendor.INTEL)
BAD_LEAF = CpuidEntry(leaf=1.5, eax=0, ebx=0, ecx=0, edx=0)  # type: ignore[arg-type]
NAN, INFINITY = float("nan"), float("inf")
RECIPE: dict[str, Any] = dict.fromkeys(
    ("name", "kernel", "initrd", "disk", "command_line", "prompt", "script", "done"), "x"
)


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("name", 3, "text"),
        ("guest", b"micro", "text"),
        ("guest", "mi\0cro", "text without NUL"),
        ("cpus", 1.5, "a whole number from 1 to 64"),
        ("cpus", 2.0, "a whole number from 1 to 64"),
        ("cpus", True, "a whole number from 1 to 64"),
        ("memory_mib", "512", "a whole number from 16 to 1048576"),
        ("memory_mib", 15, "from 16 to 1048576"),
        ("boot", "Warm", "did you mean 'warm'"),
        ("boot_timeout_s", "10", "a number greater than 0"),
        ("boot_timeout_s", 0, "must be greater than 0"),
        ("boot_timeout_s", NAN, "a finite number"),
        ("boot_timeout_s", INFINITY, "a finite number"),
        ("disk_interface", "nvm", "did you mean 'nvme'"),
        ("disk_interface", ["nvme"], "'virtio' or 'nvme'"),
        ("disks", [], "a tuple, and is a list"),
        ("disks", (Nic(),), "a tuple whose items are each a Disk"),
        ("boot_order", "boot-disk", "a tuple, and is a str"),
        ("firmware", "efi", "did you mean 'uefi'"),
        ("kernel_arguments", None, "text"),
        ("kernel_arguments", "\ud800", "lone surrogates"),
        ("nics", (DataDisk(name="a", size_mib=1),), "a tuple whose items are each a Nic"),
        ("cpuid", {}, "a Cpuid"),
        ("cpuid", Cpuid(entries=(BAD_LEAF,), vendor=CpuidVendor.AMD), r"entries\[0\]\.leaf"),
        ("hyper_v", ("reference_tcs",), "did you mean 'reference_tsc'"),
        ("display", 1, "True or False"),
        ("fail_migration_exports", -1, "from 0 to 4294967295"),
        ("fail_migration_imports", 1.0, "a whole number"),
    ],
)
def test_a_field_of_a_vm_is_refused_by_name_and_with_what_fits(field: str, value: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"^VM .*: {field} is ") as caught:
        VmConfig(**{field: value})
    assert caught.value.hint
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 1),
        ("size_mib", 1.5),
        ("size_mib", 1 << 70),
        ("image", 3),
        ("image_format", "qcow"),
        ("contents", "text"),
        ("in_memory", "no"),
        ("interface", "ide"),
        ("readonly", 0),
        ("block_size", 4096.0),
        ("block_size", 513),
        ("pci_slot", 4.0),
        ("pci_slot", 32),
    ],
)
def test_a_field_of_a_disk_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is "):
        DataDisk(**{"name": "a", "size_mib": 1, field: value})


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda: Nic(link=3), ConfigError, "network card 'nic': link is 3"),  # type: ignore[arg-type]
        (lambda: Nic(pci_slot="4"), ConfigError, "network card 'nic': pci_slot is '4'"),  # type: ignore[arg-type]
        (lambda: Migrate(timeout_s="9"), ConfigError, "Migrate: timeout_s is '9'"),  # type: ignore[arg-type]
        (lambda: Migrate(copy_disks=1), ConfigError, "Migrate: copy_disks is 1"),  # type: ignore[arg-type]
        (lambda: GuestImage(kernel=Path("/k")), ConfigError, "GuestImage: kernel is "),  # type: ignore[arg-type]
        (lambda: ImageRecipe(**RECIPE, revision="2"), ConfigError, "recipe 'x': revision is '2'"),  # type: ignore[arg-type]
        (lambda: Settings(memory_mib=1.5), SettingsError, "settings: memory_mib is 1.5"),  # type: ignore[arg-type]
        (lambda: Settings(standby="aut"), SettingsError, "settings: standby is 'aut'"),  # type: ignore[arg-type]
        (lambda: Artifact("a", "a", None, Path("/a")), ArtifactError, "artifact a: source is "),  # type: ignore[arg-type]
        (lambda: Artifact("a", 1, None, LocalFile("/a")), ArtifactError, "artifact a: filename is 1"),  # type: ignore[arg-type]
    ],
)
def test_other_public_classes_check_their_fields_too(make: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert complaint in str(caught.value)


VALID: dict[type[Any], dict[str, Any]] = {
    Artifact: {"key": "a", "filename": "a", "sha256": None, "source": LocalFile("/a")},
    CloudInitDisk: {"user_data": "#cloud-config"},
    DataDisk: {"name": "a", "size_mib": 1},
    DebianBuild: {},
    FatDisk: {},
    ForkDisk: {"fork": object.__new__(ImageFork), "name": "a"},
    GuestImage: {},
    ImageDisk: {"artifact": "a"},
    ImageRecipe: RECIPE,
    LocalFile: {"path": "/a"},
    Migrate: {},
    Nic: {},
    NotSameAs: {"other": LocalHost(Settings(), run_id="a")},
    Settings: {},
    VmConfig: {},
    VolumeDisk: {"volume": object.__new__(CrucibleDisk), "name": "a"},
    WheelMember: {"distribution": "a", "version": "1", "member": "a"},
}
"""Classes whose objects tests and guest adapters make, with the fields that have no default."""

RETURNED = {CommandResult, Progress, Samples}
"""Public classes with fields that tests only receive."""


def fields_of(cls: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if cls is Settings:
        return tuple(option.name for option in OPTIONS)
    return getattr(cls, "__struct_fields__", ())


def test_every_public_class_with_fields_is_known_here() -> None:
    public = {getattr(pytest_propolis, name) for name in pytest_propolis.__all__}
    classes = [cls for cls in (*public, *Disk.__subclasses__(), DebianBuild) if isinstance(cls, type)]
    # By name: a dataclass with slots stands for another class of the same name, which is a subclass too.
    assert {cls.__name__ for cls in classes if fields_of(cls)} == {cls.__name__ for cls in (*VALID, *RETURNED)}


@pytest.mark.parametrize(
    ("cls", "field"),
    [pytest.param(cls, field, id=f"{cls.__name__}.{field}") for cls in VALID for field in fields_of(cls)],
)
def test_a_value_that_fits_no_field_is_refused_by_name(cls: type[Any], field: str) -> None:
    for value in (object(), ["x"], {"x"}, {1.5: "x"}, 1j):
        with pytest.raises((ConfigError, ArtifactError, SettingsError), match=rf": (the )?{field} is ") as caught:
            cls(**VALID[cls] | {field: value})
        assert caught.value.hint


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_default_of_an_option_fits_its_field(option: Option) -> None:
    """The checks leave out values that are not given."""
    Settings(**{option.name: option.default})


def test_settings_can_be_neither_changed_nor_invented() -> None:
    settings = Settings(cpus=1)
    with pytest.raises(AttributeError, match="cannot be changed"):
        settings.cpus = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="no field 'cpu'"):
        Settings(cpu=1)  # type: ignore[call-arg]
    assert (settings.cpus, Settings().cpus) == (1, 2)


def test_values_that_fit_are_taken() -> None:
    VmConfig(boot_timeout_s=1, hyper_v=(HyperVFeatureFlag.REFERENCE_TSC,), cpuid=A_CPUID)
    assert DataDisk(name="a", image="x.img").image == Path("x.img")  # type: ignore[arg-type]


def test_the_keywords_of_start_are_the_fields_of_a_vm_configuration() -> None:
    fields = {field.name for field in dataclasses.fields(VmConfig)} - {"name"}
    types, keywords = typing.get_type_hints(VmConfig), typing.get_type_hints(VmConfigFields)
    assert keywords.keys() == fields
    assert keywords.pop("disks") == tuple[Disk | DiskSource, ...]  # A source of a disk stands for its disk.
    assert keywords == {name: types[name] for name in fields - {"disks"}}
