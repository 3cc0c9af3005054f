"""Settings: command line, environment, ini file and settings file become one frozen `Settings`.

A value is taken from the first place that has one: ``--propolis-cpus`` on the command line, ``PROPOLIS_CPUS`` in the
environment, ``propolis_cpus`` in pytest's ini file, ``cpus`` in the ``[settings]`` table of the settings file, the
default. This module imports only the standard library, because pytest reads it before every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, Self, dataclass_transform

from .option_values import (
    Shard,
    automatic_or_number,
    coordination_store,
    inventory,
    lease_place,
    listen_address,
    name_or_path,
    non_empty,
    one_of,
    path,
    paths,
    positive_seconds,
    seconds,
    shard,
    whole_number,
    yes_or_no,
)

__all__ = ["ENGINE", "OPTIONS", "Accelerator", "BootKind", "FailOn", "KeepPolicy", "Option", "Settings", "text_of"]


ENGINE: Final = "engine"
"""The server that is part of this project: QEMU behind the Propolis API, in the agent."""

Accelerator = Literal["auto", "kvm", "tcg"]
ChannelKind = Literal["auto", "console", "port"]
BootKind = Literal["warm", "cold"]
FailOn = Literal["never", "panic", "oops"]
KeepPolicy = Literal["never", "failed", "always"]


class Option:
    """One setting of a user: an attribute of `Settings`, which has this default where none is given.

    :ivar name: the attribute; option, ini key and environment variable derive from it.
    :param parse: turns the text into the value; raises `ValueError` saying what is allowed.
    :param description: one line for ``pytest --help``.
    :param metavar: how the value is shown there; empty for one that is on when it is given.
    """

    name: str

    def __init__(self, *, default: Any, parse: Callable[[str], Any], description: str, metavar: str) -> None:
        self.default = default
        self.parse = parse
        self.description = description
        self.metavar = metavar

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else self.default

    @property
    def flag(self) -> str:
        return "--propolis-" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """Its syntax on the command line."""
        return f"{self.flag} {self.metavar}".rstrip()

    @property
    def ini_key(self) -> str:
        return "propolis_" + self.name

    @property
    def variable(self) -> str:
        return "PROPOLIS_" + self.name.upper()


def option(*, default: Any, parse: Callable[[str], Any], description: str, metavar: str) -> Any:
    """Return an `Option`, as the type of any field."""
    return Option(default=default, parse=parse, description=description, metavar=metavar)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
class _Frozen:
    """The base of `Settings`: keeps the values that are given.

    Not a dataclass: to generate the methods of one takes longer than all else that most runs do with settings.
    """

    def __init__(self, **values: Any) -> None:
        for name in values:
            if not isinstance(getattr(type(self), name, None), Option):
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
        vars(self).update(values)
        if values:
            self._check()

    @property
    def is_any_given(self) -> bool:
        """Whether any field has a value that was given, be it equal to its default."""
        return bool(vars(self))

    def replaced(self, **values: Any) -> Self:
        """Return a copy with other values for some fields."""
        return type(self)(**vars(self) | values)

    def _check(self) -> None:
        """Raise an error if a value is wrong. Not called for defaults."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Settings(_Frozen):
    """The checked settings of a user. Build them with `Settings.resolve`."""

    guest: str = option(default="alpine", parse=non_empty, description="guest that test_vm boots", metavar="NAME")
    cpus: int = option(default=2, parse=whole_number(1, 64), description="virtual CPUs of a VM", metavar="N")
    memory_mib: int = option(
        default=512, parse=whole_number(64, 1 << 20), description="memory of a VM in MiB", metavar="MIB"
    )
    boot: BootKind = option(
        default="warm",
        parse=one_of("warm", "cold"),
        description="how VMs start: warm (forked from a guest that was booted once, if possible), cold",
        metavar="KIND",
    )
    standby: int | Literal["auto"] = option(
        default="auto",
        parse=automatic_or_number,
        description="forks of each kind to prepare for the next tests: auto (by processors and free memory), a number",
        metavar="N",
    )
    linger: float = option(
        default=0.0,
        parse=seconds,
        description="seconds that the agent on this machine stays after a run, for the next one; default: 0",
        metavar="SECONDS",
    )
    boot_timeout: float = option(
        default=300.0, parse=positive_seconds, description="seconds within which a guest must boot", metavar="S"
    )
    channel: ChannelKind = option(
        default="auto",
        parse=one_of("auto", "console", "port"),
        description="what commands of guests go over: auto (ports where the guest has the driver), console, port",
        metavar="KIND",
    )
    accelerator: Accelerator = option(
        default="auto",
        parse=one_of("auto", "kvm", "tcg"),
        description="how QEMU runs guests: auto (kvm if a trial guest runs on it), kvm, tcg",
        metavar="KIND",
    )
    keep: KeepPolicy = option(
        default="never",
        parse=one_of("never", "failed", "always"),
        description="VMs and disks to keep after their test for inspection: never, failed, always",
        metavar="WHEN",
    )
    keep_ttl: float = option(
        default=28800.0,
        parse=positive_seconds,
        description="seconds after which kept resources are removed",
        metavar="S",
    )
    pause_on_failure: bool = option(
        default=False,
        parse=yes_or_no,
        description="on a terminal, keep the VMs of a failed test running until Enter is pressed",
        metavar="",
    )
    fail_on: FailOn = option(
        default="panic",
        parse=one_of("never", "panic", "oops"),
        description="unexpected event of a guest that fails its test: never, panic (or reset, end), oops (or all)",
        metavar="WHAT",
    )
    artifact_dir: Path | None = option(
        default=None, parse=path, description="directory of images; default: the user's cache", metavar="DIR"
    )
    artifacts: tuple[Path, ...] | None = option(
        default=None,
        parse=paths,
        description="catalogs of artifacts, separated by colons: TOML files (docs/artifacts.md)",
        metavar="FILES",
    )
    image_dirs: tuple[Path, ...] | None = option(
        default=None,
        parse=paths,
        description="directories, separated by colons, whose files disk images may refer to",
        metavar="DIRS",
    )
    disk_dir: Path | None = option(
        default=None,
        parse=path,
        description="directory of writable disks of VMs; default: beside the images",
        metavar="DIR",
    )
    log_dir: Path | None = option(
        default=None, parse=path, description="directory of logs; default: pytest's temporary directory", metavar="DIR"
    )
    qemu: Path | None = option(
        default=None, parse=path, description="QEMU program to use; default: found on PATH", metavar="FILE"
    )
    server: str | Path = option(
        default=ENGINE,
        parse=name_or_path,
        description="server of VMs: engine, a program's path, an artifact, http://IP:PORT (docs/server.md)",
        metavar="SERVER",
    )
    crucible_downstairs: str | Path | None = option(
        default=None,
        parse=name_or_path,
        description="program of downstairs: crucible-downstairs' path, or an artifact; default: this project's own",
        metavar="PROGRAM",
    )
    boot_rom: str | Path | None = option(
        default=None,
        parse=name_or_path,
        description="UEFI image that VMs with firmware='uefi' boot from: a path, an artifact; default: the host's",
        metavar="ROM",
    )
    hosts: str | Path | None = option(
        default=None,
        parse=inventory,
        description="hosts that VMs run on: local:N (N separate hosts on this machine), a TOML file (docs/hosts.md)",
        metavar="HOSTS",
    )
    listen: str | None = option(
        default=None,
        parse=listen_address,
        description="listen at HOST:PORT for machines that join the run as hosts (docs/hosts.md); default: nowhere",
        metavar="ADDRESS",
    )
    coordination: str = option(
        default="embedded",
        parse=coordination_store,
        description="store in which nodes coordinate: embedded, etcd://HOST:PORT,… or etcds://… (docs/nodes.md)",
        metavar="STORE",
    )
    leases: str | Path | None = option(
        default=None,
        parse=lease_place,
        description="directory or etcd://…: runs that name the same one take turns at their hosts (docs/ci.md)",
        metavar="PLACE",
    )
    shard: Shard | None = option(
        default=None,
        parse=shard,
        description="run only the I-th of N disjoint parts of the tests, as in 2/5 (docs/ci.md)",
        metavar="I/N",
    )
    durations: Path | None = option(
        default=None,
        parse=path,
        description="file of tests' durations: for shards, which all need the same one, and for -n",
        metavar="FILE",
    )
    write_durations: Path | None = option(
        default=None,
        parse=path,
        description="file to write the durations of tests to (`propolis durations` merges such files)",
        metavar="FILE",
    )
    status: Path | None = option(
        default=None,
        parse=path,
        description="file to write the run's status to, as lines of JSON (docs/status.md); `propolis top` needs none",
        metavar="FILE",
    )
    settings_file: Path | None = option(
        default=None, parse=path, description="TOML file with a [settings] table of these options", metavar="FILE"
    )

    def _check(self) -> None:
        from .errors import SettingsError  # here, because most runs give no values
        from .field_checks import check_fields

        check_fields(self, subject="settings", error=SettingsError)
        if isinstance(self.server, Path) and not os.access(self.server, os.X_OK):
            hint = "--propolis-server names it, or PROPOLIS_SERVER, or propolis_server in a file"
            raise SettingsError(f"{self.server} is not a program that can be run", hint=hint)
        program = self.crucible_downstairs
        if isinstance(program, Path) and not os.access(program, os.X_OK):
            hint = "--propolis-crucible-downstairs names it, or PROPOLIS_CRUCIBLE_DOWNSTAIRS"
            raise SettingsError(f"{program} is not a program that can be run", hint=hint)

    @classmethod
    def resolve(
        cls,
        *,
        command_line: Mapping[str, str | None],
        environment: Mapping[str, str] = os.environ,
        ini: Mapping[str, str | None],
        ini_directory: Path | None = None,
    ) -> Settings:
        """Merge the sources of values. All paths of the result are absolute.

        A relative path in a file is relative to that file's directory, any other one to the working directory.

        :param command_line: by option name, the text given, or None where the option was not given.
        :param ini: the same for pytest's ini file.
        :param ini_directory: the directory of that file; the working directory if None.
        :raises errors.SettingsError: when a value is bad, naming the place it came from, or the settings file is.
        """
        here = Path()  # made absolute only where it is needed: the directory may have been removed
        given: dict[str, _Given] = {}
        for option in OPTIONS:
            for source, text, directory in (
                (option.flag, command_line.get(option.name), here),
                (f"environment variable {option.variable}", environment.get(option.variable), here),
                (f"ini key {option.ini_key}", ini.get(option.name), ini_directory or here),
            ):
                if text not in (None, ""):
                    given.setdefault(option.name, _Given(source, str(text), directory))
        if "settings_file" in given:
            for name, value in _given_in_file(given["settings_file"]).items():
                given.setdefault(name, value)
        return cls(**{name: _parse(name, value) for name, value in given.items()})


OPTIONS: Final = tuple(value for value in vars(Settings).values() if isinstance(value, Option))
"""Every option, in the order of ``pytest --help``."""

_BY_NAME: Final = {option.name: option for option in OPTIONS}


def text_of(name: str, value: object) -> str:
    """Return the value that a TOML file has for an option as it is given elsewhere: a list of paths with separators."""
    if isinstance(value, list) and _BY_NAME[name].parse is paths:
        return os.pathsep.join(map(str, value))
    return str(value)


class _Given(NamedTuple):
    """The text of a value, the place it stands in, and the directory that a relative path there is relative to."""

    source: str
    text: str
    directory: Path

    def absolute(self, value: Any) -> Any:
        """Return a parsed value with all its paths absolute."""
        if type(value) is tuple:  # of paths
            return tuple(map(self.absolute, value))
        return (self.directory / value).absolute() if isinstance(value, Path) else value


def _parse(name: str, given: _Given) -> Any:
    try:
        return given.absolute(_BY_NAME[name].parse(given.text))
    except ValueError as error:
        raise _error(f"{given.source}: {given.text!r} {error}") from None
    except RuntimeError:
        hint = "set HOME, or give the path without ~"
        raise _error(f"{given.source}: the home directory in {given.text!r} is not known", hint=hint) from None


def _given_in_file(named: _Given) -> dict[str, _Given]:
    from .settings_file import read_settings_file  # here, because most runs have no such file

    path: Path = _parse("settings_file", named)
    table = read_settings_file(path, named_by=named.source, known=_BY_NAME.keys() - {"settings_file"})
    return {
        name: _Given(f"settings file {named.text}: {name}", text_of(name, value), path.parent)
        for name, value in table.items()
    }


def _error(message: str, *, hint: str | None = None) -> Exception:
    from .errors import SettingsError  # here, because most runs have none

    return SettingsError(message, hint=hint)
