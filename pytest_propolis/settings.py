"""Settings: command line, environment, ini file and settings file become one frozen `Settings`.

A value is taken from the first place that has one: ``--propolis-cpus`` on the command line, ``PROPOLIS_CPUS`` in the
environment, ``propolis_cpus`` in pytest's ini file, ``cpus`` in the ``[settings]`` table of the settings file, the
default. This module imports only the standard library, because pytest reads it before every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from .errors import SettingsError
from .field_checks import check_fields
from .option_values import (
    Shard,
    automatic_or_number,
    coordination_store,
    inventory,
    lease_place,
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


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a user.

    :param name: the attribute of `Settings`; option, ini key and environment variable derive from it.
    :param parse: turns the text into the value; raises `ValueError` saying what is allowed.
    :param help: one line for ``pytest --help``.
    :param metavar: how the value is shown there; empty for one that is on when it is given.
    """

    name: str
    parse: Callable[[str], Any]
    help: str
    metavar: str

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # comparing takes as long to generate as all else
class Settings:
    """The checked settings of a user. Build them with `Settings.resolve`."""

    guest: str = field(
        default="alpine", metadata={"parse": non_empty, "help": "guest that test_vm boots", "metavar": "NAME"}
    )
    cpus: int = field(
        default=2, metadata={"parse": whole_number(1, 64), "help": "virtual CPUs of a VM", "metavar": "N"}
    )
    memory_mib: int = field(
        default=512, metadata={"parse": whole_number(64, 1 << 20), "help": "memory of a VM in MiB", "metavar": "MIB"}
    )
    boot: BootKind = field(
        default="warm",
        metadata={
            "parse": one_of("warm", "cold"),
            "help": "how VMs start: warm (forked from a guest that was booted once, if possible), cold",
            "metavar": "KIND",
        },
    )
    standby: int | Literal["auto"] = field(
        default="auto",
        metadata={
            "parse": automatic_or_number,
            "help": "forks of each kind to prepare for the next tests: auto (by processors and free memory), a number",
            "metavar": "N",
        },
    )
    linger: float = field(
        default=0.0,
        metadata={
            "parse": seconds,
            "help": "seconds that the agent on this machine stays after a run, for the next one; default: 0",
            "metavar": "SECONDS",
        },
    )
    boot_timeout: float = field(
        default=300.0,
        metadata={"parse": positive_seconds, "help": "seconds within which a guest must boot", "metavar": "S"},
    )
    channel: ChannelKind = field(
        default="auto",
        metadata={
            "parse": one_of("auto", "console", "port"),
            "help": "what commands of guests go over: auto (ports where the guest has the driver), console, port",
            "metavar": "KIND",
        },
    )
    accelerator: Accelerator = field(
        default="auto",
        metadata={
            "parse": one_of("auto", "kvm", "tcg"),
            "help": "how QEMU runs guests: auto (kvm if a trial guest runs on it), kvm, tcg",
            "metavar": "KIND",
        },
    )
    keep: KeepPolicy = field(
        default="never",
        metadata={
            "parse": one_of("never", "failed", "always"),
            "help": "VMs and disks to keep after their test for inspection: never, failed, always",
            "metavar": "WHEN",
        },
    )
    keep_ttl: float = field(
        default=28800.0,
        metadata={"parse": positive_seconds, "help": "seconds after which kept resources are removed", "metavar": "S"},
    )
    pause_on_failure: bool = field(
        default=False,
        metadata={
            "parse": yes_or_no,
            "help": "on a terminal, keep the VMs of a failed test running until Enter is pressed",
            "metavar": "",
        },
    )
    fail_on: FailOn = field(
        default="panic",
        metadata={
            "parse": one_of("never", "panic", "oops"),
            "help": "unexpected event of a guest that fails its test: never, panic (or reset, end), oops (or all)",
            "metavar": "WHAT",
        },
    )
    artifact_dir: Path | None = field(
        default=None,
        metadata={"parse": path, "help": "directory of images; default: the user's cache", "metavar": "DIR"},
    )
    artifacts: tuple[Path, ...] | None = field(
        default=None,
        metadata={
            "parse": paths,
            "help": "catalogs of artifacts, separated by colons: TOML files (docs/artifacts.md)",
            "metavar": "FILES",
        },
    )
    image_dirs: tuple[Path, ...] | None = field(
        default=None,
        metadata={
            "parse": paths,
            "help": "directories, separated by colons, whose files disk images may refer to",
            "metavar": "DIRS",
        },
    )
    disk_dir: Path | None = field(
        default=None,
        metadata={
            "parse": path,
            "help": "directory of writable disks of VMs; default: beside the images",
            "metavar": "DIR",
        },
    )
    log_dir: Path | None = field(
        default=None,
        metadata={"parse": path, "help": "directory of logs; default: pytest's temporary directory", "metavar": "DIR"},
    )
    qemu: Path | None = field(
        default=None,
        metadata={"parse": path, "help": "QEMU program to use; default: found on PATH", "metavar": "FILE"},
    )
    server: str | Path = field(
        default=ENGINE,
        metadata={
            "parse": name_or_path,
            "help": "server of VMs: engine, a program's path, an artifact, http://IP:PORT (docs/server.md)",
            "metavar": "SERVER",
        },
    )
    crucible_downstairs: str | Path | None = field(
        default=None,
        metadata={
            "parse": name_or_path,
            "help": "program of downstairs: crucible-downstairs' path, or an artifact; default: this project's own",
            "metavar": "PROGRAM",
        },
    )
    boot_rom: str | Path | None = field(
        default=None,
        metadata={
            "parse": name_or_path,
            "help": "UEFI image that VMs with firmware='uefi' boot from: a path, an artifact; default: the host's",
            "metavar": "ROM",
        },
    )
    hosts: str | Path | None = field(
        default=None,
        metadata={
            "parse": inventory,
            "help": "hosts that VMs run on: local:N (N separate hosts on this machine), a TOML file (docs/hosts.md)",
            "metavar": "HOSTS",
        },
    )
    coordination: str = field(
        default="embedded",
        metadata={
            "parse": coordination_store,
            "help": "store in which nodes coordinate: embedded, etcd://HOST:PORT,… or etcds://… (docs/nodes.md)",
            "metavar": "STORE",
        },
    )
    leases: str | Path | None = field(
        default=None,
        metadata={
            "parse": lease_place,
            "help": "directory or etcd://…: runs that name the same one take turns at their hosts (docs/ci.md)",
            "metavar": "PLACE",
        },
    )
    shard: Shard | None = field(
        default=None,
        metadata={
            "parse": shard,
            "help": "run only the I-th of N disjoint parts of the tests, as in 2/5 (docs/ci.md)",
            "metavar": "I/N",
        },
    )
    durations: Path | None = field(
        default=None,
        metadata={
            "parse": path,
            "help": "file of tests' durations: for shards, which all need the same one, and for -n",
            "metavar": "FILE",
        },
    )
    write_durations: Path | None = field(
        default=None,
        metadata={
            "parse": path,
            "help": "file to write the durations of tests to (`propolis durations` merges such files)",
            "metavar": "FILE",
        },
    )
    status: Path | None = field(
        default=None,
        metadata={
            "parse": path,
            "help": "file to write the run's status to, as lines of JSON (docs/status.md); `propolis top` needs none",
            "metavar": "FILE",
        },
    )
    settings_file: Path | None = field(
        default=None,
        metadata={"parse": path, "help": "TOML file with a [settings] table of these options", "metavar": "FILE"},
    )

    def __post_init__(self) -> None:
        check_fields(self, subject="settings", error=SettingsError)
        if isinstance(self.server, Path) and not os.access(self.server, os.X_OK):
            hint = "--propolis-server names it, or PROPOLIS_SERVER, or propolis_server in a file"
            raise SettingsError(f"{self.server} is no program that can be run", hint=hint)
        program = self.crucible_downstairs
        if isinstance(program, Path) and not os.access(program, os.X_OK):
            hint = "--propolis-crucible-downstairs names it, or PROPOLIS_CRUCIBLE_DOWNSTAIRS"
            raise SettingsError(f"{program} is no program that can be run", hint=hint)

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
        :raises SettingsError: when a value is bad, naming the place it came from, or the settings file is.
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


OPTIONS: Final[tuple[Option, ...]] = tuple(
    Option(f.name, f.metadata["parse"], f.metadata["help"], f.metadata["metavar"]) for f in fields(Settings)
)
"""Every option, in the order of ``pytest --help``."""

_BY_NAME: Final = {option.name: option for option in OPTIONS}


def text_of(name: str, value: object) -> str:
    """Return the value that a TOML file has for an option as it is given elsewhere: a list of paths with separators."""
    if isinstance(value, list) and _BY_NAME[name].parse is paths:
        return os.pathsep.join(map(str, value))
    return str(value)


@dataclass(frozen=True, slots=True)
class _Given:
    """The text of a value, the place it stands in, and the directory that a relative path there is relative to."""

    source: str
    text: str
    directory: Path

    def absolute(self, value: Any) -> Any:
        """Return a parsed value with all its paths absolute."""
        if isinstance(value, tuple):
            return tuple(map(self.absolute, value))
        return (self.directory / value).absolute() if isinstance(value, Path) else value


def _parse(name: str, given: _Given) -> Any:
    try:
        return given.absolute(_BY_NAME[name].parse(given.text))
    except ValueError as error:
        raise SettingsError(f"{given.source}: {given.text!r} {error}") from None
    except RuntimeError:
        hint = "set HOME, or give the path without ~"
        raise SettingsError(f"{given.source}: the home directory in {given.text!r} is not known", hint=hint) from None


def _given_in_file(named: _Given) -> dict[str, _Given]:
    path: Path = _parse("settings_file", named)
    texts = _read_settings_file(path, named.source)
    return {name: _Given(f"settings file {named.text}: {name}", text, path.parent) for name, text in texts.items()}


def _read_settings_file(path: Path, source: str) -> dict[str, str]:
    import tomllib  # here, because most runs have no such file, and discovery would pay for it

    hint = f"{source} names this file: make it readable TOML with a [settings] table, or drop the option"
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}", hint=hint) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} is not TOML: {error}", hint=hint) from None
    table = document.get("settings", {})
    if not isinstance(table, dict):
        raise SettingsError(f"settings file {path}: settings is no table", hint=hint)
    known = _BY_NAME.keys() - {"settings_file"}
    wrong = sorted({key for key in document if key != "settings"} | (set(table) - known))
    if wrong:
        raise SettingsError(
            f"settings file {path} has unknown keys: {', '.join(wrong)}",
            hint=f"it holds one table, [settings], with any of {', '.join(sorted(known))}",
        )
    return {key: text_of(key, value) for key, value in table.items()}
