"""Files of this machine on several SSH hosts: they are sent to one of them, and fetched from there by the others."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from ssh_rig import SshRig, inventory_of, ssh_rig

from pytest_propolis.hosts.host import Host
from pytest_propolis.hosts.run_hosts import open_hosts
from pytest_propolis.hosts.ssh.link_client import link_base
from pytest_propolis.settings import Settings

MIB = 1 << 20
NAMES = ("h1", "h2", "h3")
AGENT = "pytest_propolis.agent"

MakeRun = Callable[..., tuple[Host, ...]]


@pytest.fixture
def rig(rig_possible: None) -> Iterator[SshRig]:
    """Three SSH hosts, which only this test has."""
    with ssh_rig(*NAMES) as made:
        yield made


@pytest.fixture
def process(rig: SshRig, runtime: Path, tmp_path: Path) -> Iterator[MakeRun]:
    """Open the hosts of one run, as each of its processes does, and close them."""
    opened: list[Host] = []

    def make(**options: object) -> tuple[Host, ...]:
        inventory = tmp_path / "hosts.toml"
        inventory.write_text(inventory_of(rig, **options))
        hosts = open_hosts(Settings(hosts=inventory), shared_id="a run")
        opened.extend(hosts)
        return hosts

    yield make
    for host in opened:
        host.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_file(tmp_path / "image.raw", 24)


def random_file(path: Path, size_mib: int) -> Path:
    path.write_bytes(os.urandom(size_mib * MIB))
    return path


def sent_bytes() -> int:
    """Return the number of bytes that this machine has sent to the hosts."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    (fields,) = (line.split() for line in lines if line.strip().startswith("propolis0:"))
    return int(fields[9])


async def start_agents(hosts: Sequence[Host]) -> None:
    await asyncio.gather(*(host.run("true") for host in hosts))


def files_at(rig: SshRig, name: str) -> list[Path]:
    """Return the files that a host has by their content, partial ones included."""
    return [path for path in (rig.hosts[name].home / ".cache/propolis/files").glob("*/*") if path.is_file()]


def require_only(rig: SshRig, name: str, content: bytes) -> None:
    (path,) = files_at(rig, name)
    assert path.name == "image.raw"
    assert path.read_bytes() == content


async def test_a_file_that_all_hosts_need_at_once_passes_this_machine_once(
    process: MakeRun, rig: SshRig, image: Path
) -> None:
    hosts = process()
    await start_agents(hosts)
    before, lines = sent_bytes(), list[str]()
    sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
    places = await asyncio.gather(*(host.provide(image, lines.append, content=sha256) for host in hosts))
    assert len(set(places)) == 1
    assert 24 * MIB < sent_bytes() - before < 30 * MIB, lines
    assert sum("comes from" in line for line in lines) == 2
    for name in NAMES:
        require_only(rig, name, image.read_bytes())
    assert [path for path in link_base().glob("*.rendezvous") if sha256[:16] in path.name] == []


async def test_a_host_that_another_process_of_the_run_uses_passes_a_file_on(
    process: MakeRun, rig: SshRig, image: Path
) -> None:
    first, _, _ = process()
    await first.provide(image, print)
    _, second, third = process()
    await start_agents((second, third))
    before = sent_bytes()
    lines: list[str] = []
    await second.provide(image, lines.append)
    assert lines == ["host h2: image.raw comes from h1"]
    inode = files_at(rig, "h2")[0].stat().st_ino
    await process()[1].provide(image, lines.append)
    assert files_at(rig, "h2")[0].stat().st_ino == inode
    assert sent_bytes() - before < 4 * MIB
    require_only(rig, "h2", image.read_bytes())
    assert files_at(rig, "h3") == []


async def test_two_processes_that_need_a_file_on_one_host_fetch_it_once(
    process: MakeRun, rig: SshRig, image: Path
) -> None:
    first, second, _ = process()
    await first.provide(image, print)
    before = sent_bytes()
    places = await asyncio.gather(second.provide(image, print), process()[1].provide(image, print))
    assert len(set(places)) == 1
    assert sent_bytes() - before < 4 * MIB
    require_only(rig, "h2", image.read_bytes())


async def test_a_small_file_is_sent_to_each_host_from_this_machine(process: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "small").write_text("small")
    lines: list[str] = []
    for host in process()[:2]:
        place = await host.provide(tmp_path / "small", lines.append)
        assert await host.run(f"cat {place}") == "small"
    assert all("is sent there" in line for line in lines)


async def test_hosts_that_may_not_be_connected_get_a_file_from_this_machine(
    process: MakeRun, rig: SshRig, image: Path
) -> None:
    lines: list[str] = []
    for host in process(direct=False):
        await host.provide(image, lines.append)
    assert len(lines) == 3
    assert all("is sent there" in line for line in lines)
    require_only(rig, "h3", image.read_bytes())


async def test_a_host_that_does_not_reach_another_one_gets_a_file_from_this_machine(
    process: MakeRun, rig: SshRig, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = process()
    await first.provide(image, print)
    nowhere = ("nud", "permanent", "lladdr", "02:00:00:00:00:01")
    rig.hosts["h2"].run("ip", "neigh", "replace", rig.hosts["h1"].address, "dev", "eth0", *nowhere)
    lines: list[str] = []
    await second.provide(image, lines.append)
    assert lines == ["host h2: image.raw is sent there unless it has it"]
    assert "h2 does not reach h1" in caplog.text
    require_only(rig, "h2", image.read_bytes())


async def test_a_file_that_is_damaged_at_another_host_is_sent_from_this_machine(
    process: MakeRun, rig: SshRig, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = process()
    await first.provide(image, print)
    with files_at(rig, "h1")[0].open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(100))
    lines: list[str] = []
    await second.provide(image, lines.append)
    assert len(lines) == 2
    assert "h2 does not get image.raw from h1, and it is sent from this machine: it did not arrive" in caplog.text
    require_only(rig, "h2", image.read_bytes())


async def until_part_of_it_is_there(rig: SshRig, name: str, providing: asyncio.Task[str]) -> None:
    """Wait until a host has noted that it received a part of a file."""
    while not any(path.name.endswith(".part.done") for path in files_at(rig, name)):
        assert not providing.done()
        await asyncio.sleep(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, ""), (signal.SIGSTOP, "nothing came for 10 s")], ids=["is killed", "hangs"]
)
async def test_the_rest_is_sent_from_this_machine_when_the_agent_that_sends_a_file(
    process: MakeRun,
    rig: SshRig,
    tmp_path: Path,
    number: signal.Signals,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = random_file(tmp_path / "image.raw", 150)
    first, second, _ = process()
    await first.provide(image, print)
    await start_agents((second,))
    (agent,) = rig.hosts["h1"].find(AGENT)
    before, lines = sent_bytes(), list[str]()
    providing = asyncio.create_task(second.provide(image, lines.append))
    await until_part_of_it_is_there(rig, "h2", providing)
    os.kill(agent, number)
    await providing
    with contextlib.suppress(ProcessLookupError):
        os.kill(agent, signal.SIGCONT)
    assert len(lines) == 2, "the transfer had ended before"
    assert reason in caplog.text
    assert sent_bytes() - before < 100 * MIB, "what came from h1 is not sent again"
    require_only(rig, "h2", image.read_bytes())
