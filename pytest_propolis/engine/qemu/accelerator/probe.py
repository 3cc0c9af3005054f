"""The accelerator: probe whether KVM actually runs guests on this host, by running one.

`/dev/kvm` can exist, be accessible, even run real-mode code, and still be unable to run an ordinary kernel: under
nested or software virtualisation it hangs or fails. So a tiny guest executes what every kernel executes first, and
reports how far it got. Under TCG that takes 0.15 s, nearly all of it QEMU's own start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import time
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ....errors import CapabilityMissing, HostError
from ....operating_system.child import Child, spawn
from ....storage.locks import locked
from ..binary import Qemu
from .probe_guest import GUEST_ROM, STEPS, SUCCESS, WRONG_RESULT

__all__ = ["AcceleratorChoice", "AcceleratorName", "probe_accelerator"]

AcceleratorName: TypeAlias = Literal["kvm", "tcg"]
Wanted: TypeAlias = Literal["auto", "kvm", "tcg"]

KVM_DEADLINE_S: Final = 4.0
TCG_DEADLINE_S: Final = 30.0
_BUSY_S: Final = 1.0
"""If TCG takes longer than this, the machine is busy, which may be why KVM hung."""

_KVM: Final = Path("/dev/kvm")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_ORDER: Final[dict[Wanted, tuple[AcceleratorName, ...]]] = {"auto": ("kvm", "tcg"), "kvm": ("kvm",), "tcg": ("tcg",)}
_GAVE_UP: Final = b"KVM internal error"


@dataclass(frozen=True, slots=True)
class AcceleratorChoice:
    """The accelerator that runs guests on this host.

    :param name: for QEMU's ``-accel``.
    :param reason: why, in one line for the user.
    :param from_cache: whether the result was cached, so that no guest had to run.
    :param took_s: how long the choice took, in seconds.
    """

    name: AcceleratorName
    reason: str
    from_cache: bool
    took_s: float


@dataclass(frozen=True, slots=True)
class _Trial:
    """The result of running the guest under one accelerator.

    :param hung: whether it failed by taking too long.
    """

    works: bool
    finding: str
    took_s: float = 0.0
    hung: bool = False


_Trials: TypeAlias = dict[AcceleratorName, _Trial]


async def probe_accelerator(qemu: Qemu, *, wanted: Wanted, cache_dir: Path) -> AcceleratorChoice:
    """Choose the accelerator: KVM if the guest runs on it, else TCG if it runs under that.

    The results are cached in `cache_dir` until the machine reboots, or its kernel, the KVM modules, `/dev/kvm`, the
    right to open that, or QEMU change. Of several processes, one runs guests, and the others wait for it. It takes
    `KVM_DEADLINE_S` and `TCG_DEADLINE_S` at worst. However it ends, QEMU is gone then.

    :raises CapabilityMissing: when what is wanted does not work, saying why, or there is no ``/proc``.
    :raises HostError: when `cache_dir` cannot be used.
    """
    started = time.monotonic()
    path, key = cache_dir / _file_name(qemu), _key(qemu)
    trials = _load(path, key)
    from_cache = _next_trial(wanted, trials) is None
    if not from_cache:
        with _directory_errors(cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            async with locked(path.with_suffix(".lock"), purpose="probing the accelerator", progress=_ignore_line):
                trials = _load(path, key)
                from_cache = _next_trial(wanted, trials) is None
                await _complete(trials, qemu, wanted)
                _save(path, key, qemu, trials)
                _forget_removed_programs(cache_dir)
    name, reason = _decide(wanted, trials)
    return AcceleratorChoice(name, reason, from_cache, time.monotonic() - started)


def _next_trial(wanted: Wanted, trials: _Trials) -> AcceleratorName | None:
    for name in _ORDER[wanted]:
        if name not in trials:
            return name
        if trials[name].works:
            break
    return None


async def _complete(trials: _Trials, qemu: Qemu, wanted: Wanted) -> None:
    while name := _next_trial(wanted, trials):
        trials[name] = await _try(qemu, name)


def _decide(wanted: Wanted, trials: _Trials) -> tuple[AcceleratorName, str]:
    tried = [(name, trials[name]) for name in _ORDER[wanted] if name in trials]
    failed = [trial.finding for _, trial in tried if not trial.works]
    for name, trial in tried:
        if trial.works:
            return name, f"{failed[0]}: using TCG" if failed else trial.finding
    raise CapabilityMissing("; ".join(failed), hint=_hint(wanted))


def _hint(wanted: Wanted) -> str:
    if wanted == "kvm":
        return (
            "let --propolis-accelerator be auto or tcg, or see to KVM: virtualisation enabled in the firmware or by "
            "the host, the module kvm_intel or kvm_amd loaded, and this user in the group that owns /dev/kvm"
        )
    return "name another QEMU with --propolis-qemu, or run `propolis setup`"


async def _try(qemu: Qemu, name: AcceleratorName) -> _Trial:
    if name == "kvm" and (obstacle := _kvm_obstacle()):
        return _Trial(works=False, finding=obstacle)
    started = time.monotonic()
    try:
        ending = await _run_guest(qemu, name, KVM_DEADLINE_S if name == "kvm" else TCG_DEADLINE_S)
    except OSError as error:
        return _Trial(works=False, finding=f"{qemu.system} cannot be started ({error.strerror})")
    took_s = time.monotonic() - started
    what = f"ran in {took_s:.2f} s" if ending.works else ending.failure()
    sentence = {
        ("kvm", True): f"a 64-bit guest on /dev/kvm {what}",
        ("kvm", False): f"/dev/kvm is there but a 64-bit guest on it {what}",
    }.get((name, ending.works), f"a 64-bit guest under TCG {what}")
    return _Trial(ending.works, sentence, took_s, hung=ending.hung_for_s is not None)


def _kvm_obstacle() -> str | None:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "there is no /dev/kvm"
    except OSError as error:
        return f"/dev/kvm is there but cannot be opened ({error.strerror})"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProbeResult:
    """The end of a probe's QEMU: its status, the guest's output until then, and QEMU's error output."""

    status: int
    output: str
    stderr: bytes
    hung_for_s: float | None

    @property
    def works(self) -> bool:
        return self.status == SUCCESS and self.output == "".join(STEPS)

    def failure(self) -> str:
        if self.hung_for_s is not None:
            return f"hung for {self.hung_for_s:.0f} s {self._where()}"
        if _GAVE_UP in self.stderr:
            return f"crashed ({_GAVE_UP.decode()}) {self._where()}"
        if self.status == WRONG_RESULT:
            return f"came to a wrong result {self._where()}"
        if self.status == 0:
            return f"reset itself {self._where()}"
        lines = self.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        return f"did not run: QEMU ended with status {self.status} and said {lines[-1]}"

    def _where(self) -> str:
        undone = (step for letter, step in STEPS.items() if letter not in self.output)
        return f"while {next(undone, 'ending')}"


async def _run_guest(qemu: Qemu, name: AcceleratorName, deadline_s: float) -> _ProbeResult:
    with _rom_in_memory() as rom:
        arguments = [*qemu.arguments, *_arguments(name, rom)]
        child = await spawn(
            qemu.system, arguments, stdout=PIPE, stderr=PIPE, pass_fds=[rom], environment=qemu.environment
        )
        stderr = bytearray()
        hung = False
        try:
            async with asyncio.timeout(deadline_s):
                await _wait_for_end(child, stderr)
        except TimeoutError:
            hung = True
        finally:
            await child.end()
    assert child.stdout is not None
    assert child.returncode is not None
    output = await child.stdout.read()
    return _ProbeResult(
        status=child.returncode,
        output=output.decode("ascii", errors="replace"),
        stderr=bytes(stderr),
        hung_for_s=deadline_s if hung else None,
    )


async def _wait_for_end(child: Child, stderr: bytearray) -> None:
    """Wait until QEMU ends, or reports that KVM failed: it would wait for a debugger then."""
    assert child.stderr is not None
    while chunk := await child.stderr.read(1 << 12):
        stderr += chunk
        if _GAVE_UP in stderr:
            return
    await child.wait()


def _arguments(name: AcceleratorName, rom: int) -> list[str]:
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "pc", "-accel", name, "-cpu", "host" if name == "kvm" else "max", "-smp", "2", "-m", "16M"),
        *("-bios", f"/proc/self/fd/{rom}"),
        *("-chardev", "stdio,id=said,signal=off", "-device", "isa-debugcon,iobase=0xe9,chardev=said"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    ]


@contextmanager
def _rom_in_memory() -> Iterator[int]:
    descriptor = os.memfd_create("propolis-probe")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(GUEST_ROM)
        yield descriptor
    finally:
        os.close(descriptor)


def _file_name(qemu: Qemu) -> str:
    key = hashlib.sha256(f"{platform.node()} {qemu.system}".encode()).hexdigest()
    return f"accelerator-{key[:16]}.json"


def _key(qemu: Qemu) -> str:
    facts = (
        _boot_id(),
        platform.release(),
        sorted(module.name for module in Path("/sys/module").glob("kvm*")),
        _kvm_facts(),
        qemu.identity,
    )
    return hashlib.sha256(repr(facts).encode() + GUEST_ROM).hexdigest()


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text()
    except OSError as error:
        # No VM would run either: QEMU opens its guest's memory there, and the agent finds processes there.
        raise CapabilityMissing(
            f"{_BOOT_ID} cannot be read: {error.strerror}",
            hint="mount the file system of processes: mount -t proc proc /proc",
        ) from None


def _kvm_facts() -> tuple[object, ...] | None:
    try:
        status = _KVM.stat()
    except OSError:
        return None
    may_open = os.access(_KVM, os.R_OK | os.W_OK)
    return status.st_rdev, status.st_mode, status.st_uid, status.st_gid, may_open


def _load(path: Path, key: str) -> _Trials:
    try:
        document = json.loads(path.read_bytes())
        if document["key"] != key:
            return {}
        return {name: _Trial(**trial) for name, trial in document["trials"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # missing or damaged: probe again


def _save(path: Path, key: str, qemu: Qemu, trials: _Trials) -> None:
    sure = {name: asdict(trial) for name, trial in trials.items() if _is_sure(name, trials)}
    part = path.with_suffix(".part")  # we hold the lock
    try:
        document = {"host": platform.node(), "program": str(qemu.system), "key": key, "trials": sure}
        part.write_text(json.dumps(document, indent=1) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _forget_removed_programs(directory: Path) -> None:
    """Remove cached results of programs that are no longer on this host."""
    for path in directory.glob("accelerator-*.json"):
        try:
            document = json.loads(path.read_bytes())
            if document["host"] != platform.node() or Path(document["program"]).exists():
                continue  # a home directory may be shared among hosts
        except (OSError, ValueError, TypeError, KeyError):
            pass  # damaged, or of an earlier version
        for file in (path, path.with_suffix(".lock")):
            file.unlink(missing_ok=True)


def _is_sure(name: AcceleratorName, trials: _Trials) -> bool:
    """Trust a KVM hang only if TCG was fast at the time. A failure of TCG says nothing conclusive about QEMU."""
    trial, tcg = trials[name], trials.get("tcg")
    if name == "tcg":
        return trial.works
    return not trial.hung or (tcg is not None and tcg.works and tcg.took_s < _BUSY_S)


@contextmanager
def _directory_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"the directory {directory} cannot be used: {error.strerror or error}",
            hint="make it a directory of yours with space in it, or choose another place with XDG_CACHE_HOME",
        ) from error


def _ignore_line(_line: str) -> None:
    """Discard progress messages: the probe takes seconds at most."""
