"""Make this process believe that it runs on illumos; every use of a Linux-only interface is an error.

It is run first in a process: ``python -c "import linux_forbidden; linux_forbidden.begin(...)"``. What illumos does not
have is removed from the standard library, and an audit hook refuses what only Linux would answer. The processes of
illumos's procfs are written from those of this machine at the moment in which they are looked at. Each refusal is also
appended to a file, because the code under test may catch the error.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ABSENT: dict[Any, tuple[str, ...]] = {
    os: (
        "pidfd_open", "memfd_create", "sched_getaffinity", "sched_setaffinity", "setns", "unshare", "eventfd",
        "splice", "copy_file_range", "getxattr", "setxattr", "listxattr", "removexattr", "O_PATH", "O_TMPFILE",
        "P_PIDFD",
    ),
    signal: ("pidfd_send_signal",),
    socket: ("AF_VSOCK", "AF_NETLINK", "AF_PACKET", "AF_ALG", "SO_PEERCRED", "SO_BINDTODEVICE", "SO_PASSCRED"),
    fcntl: ("F_ADD_SEALS", "F_GET_SEALS", "F_SETPIPE_SZ", "F_GETPIPE_SZ", "F_OFD_SETLK", "F_OFD_SETLKW"),
}  # fmt: skip
"""What Python documents as available on Linux only, or is not among the system calls of illumos."""

PLACES = ("/proc", "/sys", "/dev/shm", "/run")
PROGRAMS = frozenset({"setpriv", "unshare", "nsenter", "ip", "mount", "umount", "systemd-run", "qemu-system-x86_64"})
SYMBOLS = frozenset({"prctl", "syscall", "memfd_create", "pidfd_open", "setns", "unshare"})
FICLONE = 0x40049409
FAMILIES = (socket.AF_VSOCK, socket.AF_NETLINK, socket.AF_PACKET)
CLOCK_TICK_NS = 10_000_000

_inside = threading.local()
_pidfd_open, _pidfd_send_signal = os.pidfd_open, signal.pidfd_send_signal
_readlink, _stat, _getpgid = os.readlink, os.stat, os.getpgid


class LinuxReached(BaseException):
    """Raised when a Linux-only interface is used."""


def begin(place: str) -> None:
    """
    :param place: a directory of this test: the refusals are in ``refused``, what is told of children in ``children``.
    """
    sysconfig.get_config_vars()  # named after the platform that this Python was built for
    home = Path(place)
    for module, names in ABSENT.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    if hasattr(os, "process_cpu_count"):  # Python 3.13 defines it by os.sched_getaffinity, where there is one
        vars(os)["process_cpu_count"] = os.cpu_count
    refuse = _refuser(home / "refused")
    for name in ("stat", "lstat", "readlink", "access", "statvfs"):
        setattr(os, name, _guarded(getattr(os, name), refuse))
    sys.platform = "sunos5"
    procfs = FakeProcfs(home)
    sys.addaudithook(Hook(procfs, refuse))
    _choose(procfs)


def _choose(procfs: FakeProcfs) -> None:
    from pytest_propolis.operating_system import registry
    from pytest_propolis.operating_system.illumos.system import illumos

    registry.SYSTEMS = {"sunos5": lambda: illumos(procfs.root, library=procfs)}  # type: ignore[misc]


def _refuser(record: Path) -> Callable[[str], None]:
    def refuse(what: str) -> None:
        with inside(), record.open("a") as file:
            file.write(f"{what}\n")
        raise LinuxReached(what)

    return refuse


@contextmanager
def inside() -> Iterator[None]:
    """Mark a block of this module itself, which may use Linux."""
    before, _inside.here = getattr(_inside, "here", False), True
    try:
        yield
    finally:
        _inside.here = before


def _is_linux(path: object) -> bool:
    if isinstance(path, int) or path is None:
        return False
    text = os.fsdecode(path)  # type: ignore[arg-type]
    return any(text == place or text.startswith(f"{place}/") for place in PLACES)


def _guarded(function: Callable[..., Any], refuse: Callable[[str], None]) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if not getattr(_inside, "here", False) and _is_linux(path):
            refuse(f"{function.__name__} {path}")
        return function(path, *arguments, **options)

    return call


class Hook:
    """The audit hook: refuses Linux interfaces, and writes the fake procfs before it is read."""

    def __init__(self, procfs: FakeProcfs, refuse: Callable[[str], None]) -> None:
        self._procfs = procfs
        self._refuse = refuse

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        check = getattr(self, f"on_{event.replace('.', '_')}", None)
        if check is not None and not getattr(_inside, "here", False):
            check(*arguments)

    def on_open(self, path: Any, _mode: Any, _flags: Any) -> None:
        if _is_linux(path):
            self._refuse(f"open {path}")
        if isinstance(path, (str, bytes)):
            self._procfs.prepare(Path(os.fsdecode(path)))

    def on_os_listdir(self, path: Any) -> None:
        if _is_linux(path):
            self._refuse(f"list {path}")
        if isinstance(path, (str, bytes)) and Path(os.fsdecode(path)) == self._procfs.processes:
            self._procfs.prepare_all()

    on_os_scandir = on_os_listdir

    def on_subprocess_Popen(self, program: Any, arguments: Any, _cwd: Any, _environment: Any) -> None:  # noqa: N802
        words = [os.fsdecode(word) for word in (program, *arguments)]
        if PROGRAMS & {Path(word).name for word in words[:3]} or any("/proc/" in word for word in words):
            self._refuse(f"start {words}")
        self._procfs.started(words)

    def on_ctypes_dlopen(self, name: Any) -> None:
        if name is not None:
            self._refuse(f"load {name}")

    def on_ctypes_dlsym(self, _library: Any, name: Any) -> None:
        if name in SYMBOLS:
            self._refuse(f"call {name}")

    def on_socket___new__(self, _socket: Any, family: int, _kind: int, _protocol: int) -> None:
        if family in FAMILIES:
            self._refuse(f"socket of family {family}")

    def on_socket_bind(self, _socket: Any, address: Any) -> None:
        if isinstance(address, (str, bytes)) and address[:1] in ("\0", b"\0"):
            self._refuse(f"bind {address!r}")

    def on_fcntl_flock(self, descriptor: int, operation: int) -> None:
        """Check modes: illumos requires a file open for reading (shared lock) or writing (exclusive lock)."""
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & (fcntl.LOCK_EX if mode == os.O_RDONLY else fcntl.LOCK_SH if mode == os.O_WRONLY else 0):
            self._refuse(f"flock of a file that is not open for that: {operation} with mode {mode}")

    def on_fcntl_ioctl(self, _descriptor: Any, request: int, _argument: Any) -> None:
        if request == FICLONE:
            self._refuse("ioctl FICLONE")


class FakeProcfs:
    """illumos's procfs and contracts in a directory, made from this machine's processes.

    A contract has the number of the process group that its first member leads.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._template = False
        self._written: dict[int, bytes] = {}
        self._lock = threading.RLock()

    @property
    def root(self) -> Path:
        """The root of this process; forked processes have their own."""
        return self._home / f"root-{os.getpid()}"

    @property
    def processes(self) -> Path:
        return self.root / "proc"

    @property
    def contracts(self) -> Path:
        return self.root / "system/contract/process"

    # What libcontract does.

    def ct_pr_tmpl_set_param(self, _template: int, parameters: int, /) -> int:
        return 0 if parameters == 2 else 22

    def ct_tmpl_set_critical(self, _template: int, _events: int, /) -> int:
        return 0

    ct_tmpl_set_informative = ct_tmpl_set_critical

    def ct_tmpl_activate(self, _template: int, /) -> int:
        self._template = True
        return 0

    def ct_tmpl_clear(self, _template: int, /) -> int:
        self._template = False
        return 0

    def ct_ctl_abandon(self, control: int, /) -> int:
        with inside():
            group = int(Path(_readlink(f"/proc/self/fd/{control}")).parent.name)
            self._tell(f"abandoned {group}")
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        return 0

    # What the kernel does.

    def started(self, words: list[str]) -> None:
        self._tell(f"started {'in a contract' if self._template else 'without a contract'}: {' '.join(words[1:])}")

    def prepare(self, path: Path) -> None:
        """Write the file before it is opened."""
        if path == self.contracts / "template":
            with inside():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        elif path.is_relative_to(self.processes) and path.parent.name.isdigit():
            with inside(), self._lock:
                self._write(int(path.parent.name))
                if path.name == "ctl" and path.parent.is_dir():
                    self._write_control(int(path.parent.name))
                if path.name == "as" and path.parent.is_dir():
                    self._write_memory(int(path.parent.name))

    def prepare_all(self) -> None:
        with inside(), self._lock:
            self.processes.mkdir(parents=True, exist_ok=True)
            for process in Path("/proc").glob("[0-9]*"):
                (self.processes / process.name).mkdir(exist_ok=True)

    def _write(self, pid: int) -> None:
        """Write a process as it is now, also for those that have the file open; remove one that is gone."""
        directory = self.processes / str(pid)
        data = _psinfo(pid)
        if data is None:
            if self._written.pop(pid, None) is not None:
                os.truncate(directory / "psinfo", 0)
            for name in ("psinfo", "ctl", "as"):
                (directory / name).unlink(missing_ok=True)
        elif self._written.get(pid) != data:
            directory.mkdir(parents=True, exist_ok=True)
            with (directory / "psinfo").open("r+b" if pid in self._written else "wb") as file:
                file.write(data)
            self._written[pid] = data
            contract = self.contracts / str(_group(data))
            contract.mkdir(parents=True, exist_ok=True)
            (contract / "ctl").touch()

    def _write_control(self, pid: int) -> None:
        control = self.processes / str(pid) / "ctl"
        if not control.exists():
            try:
                process = _pidfd_open(pid)
            except ProcessLookupError:
                return
            os.mkfifo(control)
            orders = os.open(control, os.O_RDWR | os.O_NONBLOCK)
            status = control.with_name("psinfo").open("r+b")
            threading.Thread(target=self._obey, args=(process, orders, status), daemon=True).start()

    def _obey(self, process: int, orders: int, status: Any) -> None:
        """Send the signals that are written to a control file; empty the status file when the process ends."""
        _inside.here = True
        poller = select.poll()
        poller.register(process, select.POLLIN)
        poller.register(orders, select.POLLIN)
        while process not in (ready := {descriptor for descriptor, _ in poller.poll()}):
            if orders in ready:
                command, number = struct.unpack("@ll", os.read(orders, 16))
                assert command == 9, command
                with suppress(ProcessLookupError):
                    _pidfd_send_signal(process, signal.Signals(number))
        status.truncate(0)

    def _write_memory(self, pid: int) -> None:
        with (self.processes / str(pid) / "as").open("wb") as memory:
            for vector, base, name in ((0x10_0000, 0x100_0000, "cmdline"), (0x20_0000, 0x800_0000, "environ")):
                for index, text in enumerate(_strings(pid, name)):
                    os.pwrite(memory.fileno(), struct.pack("@Q", base), vector + 8 * index)
                    os.pwrite(memory.fileno(), text + b"\0", base)
                    base += len(text) + 1

    def _tell(self, line: str) -> None:
        with inside(), (self._home / "children").open("a") as file:
            file.write(f"{line}\n")


def _strings(pid: int, name: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _psinfo(pid: int) -> bytes | None:
    """Return the psinfo of a process of this machine."""
    from psinfo_layout import Timestruc, psinfo

    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        uid = _stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    fields = text[text.rindex(b")") + 1 :].split()
    seconds, nanoseconds = divmod(int(fields[19]) * CLOCK_TICK_NS, 10**9)
    return psinfo(
        pr_nlwp=0 if fields[0] in (b"Z", b"X") else 1,
        pr_pid=pid,
        pr_ppid=int(fields[1]),
        pr_pgid=int(fields[2]),
        pr_uid=uid,
        pr_start=Timestruc(seconds, nanoseconds),
        pr_psargs=b" ".join(_strings(pid, "cmdline"))[:79],
        pr_argc=len(_strings(pid, "cmdline")),
        pr_argv=0x10_0000,
        pr_envp=0x20_0000,
        pr_contract=int(fields[2]),
    )


def _group(data: bytes) -> int:
    from psinfo_layout import PsinfoLayout

    return int(PsinfoLayout.from_buffer_copy(data).pr_contract)
