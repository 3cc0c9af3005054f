"""SSH hosts for tests: namespaces joined by a bridge, each with an sshd, an address and a home of its own.

The hosts are held by processes, not by names: a rig that is killed leaves nothing. The test's main thread moves into a
namespace of its own meanwhile, so that any number of rigs live side by side, and nothing is added to the network of the
machine. It takes root, or the capabilities of a user namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_propolis.hosts.ssh_host import SshHost

__all__ = [
    "MakeHost",
    "RigHost",
    "SshRig",
    "can_make_rigs",
    "inventory_of",
    "link_processes",
    "options_of",
    "require_clean",
    "require_rigs",
    "ssh_rig",
]

MakeHost = Callable[..., SshHost]
"""Makes a host of the rig, with options of its kind."""

START_TIMEOUT_S = 30.0
CLEAN_TIMEOUT_S = 60.0
OUTSIDE_TMP = "/dev/shm"
"""The place for rigs: each host has a /tmp of its own."""

LINK = b"pytest_propolis.hosts.ssh.link"

CLONE_NEWNET = 0x40000000

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))

HOLD = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--pid", "--fork")
HOLD_OPTIONS = ("--kill-child=KILL", "--mount-proc")

CABLE = "ip link set lo up; echo held; read go; ip addr add {address}/24 dev eth0; ip link set eth0 up"

INIT = """set -e
hostname {name}
{cable}
mount -t tmpfs -o mode=755,size=64m run /run
mount -t tmpfs -o mode=1777,size=64m tmp /tmp
mount -t tmpfs -o mode=1777,size=64m tmp /var/tmp
mkdir -p /run/sshd
mount --bind {python} /mnt
{mounts}
mount --rbind {home} {user_home}
[ -d {python} ] || {{ mkdir -p {python}; mount --bind /mnt {python}; }}
cd {user_home}
exec {sshd} -D -e -f {directory}/sshd_config 2>>{directory}/sshd.log"""

SSHD_CONFIG = """
HostKey {directory}/host_key
AuthorizedKeysFile {keys}/id.pub
PidFile none
StrictModes no
UsePAM no
UseDNS no
MaxSessions 100
MaxStartups 100
PrintMotd no
"""


def can_make_rigs() -> bool:
    """Return whether this process may create namespaces, and sshd is installed."""
    if SSHD is None or not all(map(shutil.which, ("ip", "nsenter", "setpriv", "unshare", "ssh-keygen"))):
        return False
    return subprocess.run([*HOLD[3:], *HOLD_OPTIONS, "true"], capture_output=True).returncode == 0


def require_rigs() -> None:
    """Skip the test where no SSH hosts can be made."""
    if not can_make_rigs():
        pytest.skip("needs root, or the capabilities of a user namespace, and sshd, ip, nsenter, setpriv, unshare")


@dataclass
class RigHost:
    """One host.

    :param home: the home directory of the user on the host, as seen from here.
    """

    name: str
    address: str
    directory: Path
    holder: subprocess.Popen[bytes]
    home: Path

    @property
    def init(self) -> int:
        """The process 1 of the host, which is sshd."""
        path = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children")
        return int(path.read_text().split()[0])

    def processes(self) -> dict[int, str]:
        """Return the ids, as seen from here, and command lines of the host's processes except the listening sshd."""
        space = Path(f"/proc/{self.init}/ns/pid").readlink()
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if (path / "ns/pid").readlink() == space and int(path.name) != self.init and words:
                    found[int(path.name)] = words
        return found

    def find(self, *words: str) -> list[int]:
        """Return the processes of the host whose command lines contain all of these strings."""
        return [pid for pid, line in self.processes().items() if all(word in line for word in words)]

    def kill(self, *words: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the processes of the host whose command lines contain all of these strings."""
        found = self.find(*words)
        assert found, self.processes()
        for pid in found:
            os.kill(pid, number)

    def run(self, *command: str) -> str:
        """Run a program on the host, not through SSH."""
        entered = ["nsenter", "-t", str(self.init), "-n", "-m", "-p", "-u", *command]
        return subprocess.run(entered, check=True, capture_output=True, text=True).stdout


@dataclass
class SshRig:
    """A network of hosts."""

    directory: Path
    switch: subprocess.Popen[bytes]
    hosts: dict[str, RigHost] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The SSH configuration file with all hosts."""
        return self.directory / "ssh_config"

    def write_config(self, text: str, *, name: str) -> Path:
        """Write another configuration, and return its path; ``{directory}`` is the directory of keys."""
        path = self.directory / name
        path.write_text(text.replace("{directory}", str(self.directory)))
        return path

    def cut(self, host: str) -> None:
        """Disconnect a host silently: no packet arrives any more on either side."""
        self._in_switch("ip", "link", "set", host, "down")

    def mend(self, host: str) -> None:
        """Reconnect a host."""
        self._in_switch("ip", "link", "set", host, "up")

    def _in_switch(self, *command: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.switch.pid), "-n", *command], check=True)


@contextlib.contextmanager
def ssh_rig(*names: str, mounts: str = "") -> Iterator[SshRig]:
    """Make hosts with these names, and move this thread into their network until they are gone.

    :param mounts: shell commands that each host runs before it is up; ``{home}`` is its home as seen from here.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rig-", dir=OUTSIDE_TMP)))
        _make_keys(directory, names)
        stack.enter_context(_own_network())
        switch = _hold(stack, "ip link add br0 type bridge; ip link set br0 up; echo held; read gone")
        rig = SshRig(directory, switch)
        for number, name in enumerate(names, start=11):
            rig.hosts[name] = _make_host(stack, directory, name, f"10.99.0.{number}", mounts)
        _wire(rig)
        _write_configurations(rig)
        for host in rig.hosts.values():
            assert host.holder.stdin
            host.holder.stdin.write(b"go\n")
            host.holder.stdin.flush()
        for host in rig.hosts.values():
            _wait_for_sshd(host)
        yield rig


def _make_keys(directory: Path, names: tuple[str, ...]) -> None:
    for path in (directory / "id", *(directory / name / "host_key" for name in names)):
        path.parent.mkdir(exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextlib.contextmanager
def _own_network() -> Iterator[None]:
    """Move this thread and its children into a new network namespace, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(libc.unshare(CLONE_NEWNET))
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        _checked(libc.setns(before, CLONE_NEWNET))
        os.close(before)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _hold(stack: contextlib.ExitStack, script: str) -> subprocess.Popen[bytes]:
    """Start a process that holds namespaces, and wait until they exist."""
    process = subprocess.Popen(
        [*HOLD, *HOLD_OPTIONS, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    stack.callback(_end, process)
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _make_host(stack: contextlib.ExitStack, directory: Path, name: str, address: str, mounts: str) -> RigHost:
    own = directory / name
    home = own / "home"
    home.mkdir()
    (own / "sshd_config").write_text(SSHD_CONFIG.format(directory=own, keys=directory))
    cable = CABLE.format(address=address)
    user_home = pwd.getpwuid(os.geteuid()).pw_dir
    values: dict[str, Any] = {"name": name, "directory": own, "home": home, "user_home": user_home}
    values |= {"sshd": SSHD, "cable": cable, "python": sys.base_prefix}
    script = INIT.format(**values, mounts=mounts.format(**values))
    return RigHost(name, address, own, _hold(stack, script), home)


def _wire(rig: SshRig) -> None:
    """Connect the bridge with this thread's namespace and with each host."""
    lines = [
        f"link add propolis0 type veth peer name c0 netns {rig.switch.pid}",
        "addr add 10.99.0.1/24 dev propolis0",
        "link set propolis0 up",
    ]
    for name, host in rig.hosts.items():
        lines.append(f"link add {name} netns {rig.switch.pid} type veth peer name eth0 netns {host.holder.pid}")
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    ports = "\n".join(f"link set {port} master br0 up" for port in ("c0", *rig.hosts))
    subprocess.run(
        ["nsenter", "-t", str(rig.switch.pid), "-n", "ip", "-batch", "-"], input=ports, text=True, check=True
    )


def _write_configurations(rig: SshRig) -> None:
    known = []
    lines = []
    for name, host in rig.hosts.items():
        lines.append(f"Host {name}\n  HostName {host.address}")
        kind, key = (host.directory / "host_key.pub").read_text().split()[:2]
        known.append(f"{name},{host.address} {kind} {key}\n")
    lines.append(
        f"Host *\n  IdentityFile {rig.directory}/id\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n"
        f"  UserKnownHostsFile {rig.directory}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    (rig.directory / "known_hosts").write_text("".join(known))
    rig.config.write_text("\n".join(lines))


def _wait_for_sshd(host: RigHost) -> None:
    log = host.directory / "sshd.log"
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (log.exists() and "Server listening" in log.read_text()):
        assert host.holder.poll() is None, log.read_text() if log.exists() else "the host ended before its sshd"
        assert time.monotonic() < deadline, "sshd does not listen"
        select.select([], [], [], 0.01)


def options_of(rig: SshRig) -> dict[str, str]:
    """Return the options that each host of a rig needs in an inventory."""
    return {"config": str(rig.config), **_python_option()}


@functools.cache
def _python_option() -> dict[str, str]:
    """Name this process's Python where that of hosts has another version: a rig has no network to get wheels from.

    It may be below the user's home, which is another one on hosts: `INIT` mounts it there.
    """
    here = "{}.{}".format(*sys.version_info)
    there = subprocess.check_output(
        ["/usr/bin/python3", "-c", "import sys; print('{}.{}'.format(*sys.version_info))"], text=True
    )
    return {} if here == there.strip() else {"python": f"{sys.base_prefix}/bin/python{here}"}


def inventory_of(rig: SshRig, **options: Any) -> str:
    """Return an inventory of a rig's hosts.

    :param options: of each host, beside the file of its SSH configuration.
    """
    tables = []
    for name in rig.hosts:
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**options_of(rig), **options}.items()]
        tables += [f"[hosts.{name}]", 'kind = "ssh"', "slots = 2", f"[hosts.{name}.options]", *lines, ""]
    return "\n".join(tables)


def link_processes() -> list[int]:
    """Return the link processes of this process, which have its runtime directory in their environment."""
    wanted = f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if LINK in (path / "cmdline").read_bytes() and wanted in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:  # gone meanwhile
            pass
    return found


def require_clean(rig: SshRig) -> None:
    """Wait until no host has anything of a run."""
    deadline = time.monotonic() + CLEAN_TIMEOUT_S
    while left := [line for host in rig.hosts.values() for line in _left_at(host)]:
        assert time.monotonic() < deadline, left
        select.select([], [], [], 0.1)


def _left_at(host: RigHost) -> list[str]:
    files = "find /run/propolis -mindepth 1; find ~/.cache/propolis/artifacts/disks -name '*.qcow2' 2>/dev/null || true"
    processes = [line for line in host.processes().values() if "propolis" in line]
    return processes or host.run("sh", "-c", files).splitlines()
