"""Hosts over SSH, each in namespaces of its own: how they start, and how they are lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from ssh_rig import MakeHost, SshRig, link_processes, options_of, ssh_rig

from pytest_propolis import HostError, HostLost, ResourceExhausted
from pytest_propolis.agent_api.disks import CreateDisk
from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.ssh import link_client
from pytest_propolis.hosts.ssh_host import LINK_END_TIMEOUT_S, SshHost, open_host
from pytest_propolis.ledger.ledger_text import parse
from pytest_propolis.settings import Settings

AGENT = "pytest_propolis.agent"
WATCHDOG = (" -I -S -c import sys;",)
CLEAN_TIMEOUT_S = 60.0


async def until_clean(rig: SshRig, name: str = "h1") -> None:
    """Wait until a host has no process of a run, and no run directory.

    A session process of sshd does not notice that the other side is gone without a word.
    """
    host = rig.hosts[name]
    async with asyncio.timeout(CLEAN_TIMEOUT_S):
        while any(not line.startswith("sshd: ") for line in host.processes().values()) or host.run(
            "sh", "-c", "ls -d /run/propolis/*/ 2>/dev/null || true"
        ):
            await asyncio.sleep(0.05)


async def until_lost(host: SshHost) -> HostLost:
    """Wait until a host is lost, and return the error."""
    async with asyncio.timeout(CLEAN_TIMEOUT_S):
        while True:
            try:
                await (await host.client()).aclose()
            except HostLost as lost:
                return lost
            await asyncio.sleep(0.05)


async def test_the_agent_of_a_host_answers_behind_a_local_socket(make_host: MakeHost) -> None:
    host = make_host()
    async with await host.client() as agent:
        assert await agent.list_vms() == []
    assert host.agent is not None
    assert await asyncio.to_thread(host.agent.vms) == []


async def test_what_a_client_owns_is_not_taken_for_that_of_a_process_of_the_host(
    make_host: MakeHost, rig: SshRig
) -> None:
    start = f"echo {os.getpid() - 1} >/proc/sys/kernel/ns_last_pid; sleep 600 </dev/null >/dev/null 2>&1 & echo $!"
    assert int(rig.hosts["h1"].run("sh", "-c", start)) == os.getpid()
    host = make_host()
    async with await host.client() as agent:
        await agent.create_disk(CreateDisk(size_bytes=1 << 20))
        ledger = parse(rig.hosts["h1"].run("sh", "-c", "cat /run/propolis/*/ledger.jsonl").encode(), Path("ledger"))
    (disk,) = (entry for entry in ledger.entries.values() if entry.kind == "file")
    assert disk.owner.process is None


async def test_a_command_runs_on_the_host(make_host: MakeHost) -> None:
    assert await make_host(name="h2").run("hostname") == "h2"


async def test_a_command_that_fails_says_its_status_and_what_it_wrote(make_host: MakeHost) -> None:
    with pytest.raises(HostError, match=r"host h1: 'echo no >&2; exit 3' ended with status 3: no"):
        await make_host().run("echo no >&2; exit 3")


async def test_a_command_that_does_not_end_is_ended(make_host: MakeHost, rig: SshRig) -> None:
    host = make_host()
    with pytest.raises(HostError, match="did not end"):
        await host.run("exec sleep 12345", timeout_s=0.5)
    async with asyncio.timeout(CLEAN_TIMEOUT_S):
        while rig.hosts["h1"].find("sleep 12345"):
            await asyncio.sleep(0.05)


async def test_nothing_is_left_when_a_host_is_closed(make_host: MakeHost, rig: SshRig, runtime: Path) -> None:
    host = make_host()
    await (await host.client()).aclose()
    await asyncio.to_thread(host.close)
    await until_clean(rig)
    async with asyncio.timeout(CLEAN_TIMEOUT_S):
        while list((runtime / "propolis-links").glob("*/")):
            await asyncio.sleep(0.05)


async def test_a_host_that_was_closed_can_be_used_again(make_host: MakeHost) -> None:
    host = make_host()
    assert await host.run("hostname") == "h1"
    await asyncio.to_thread(host.close)
    assert await host.run("hostname") == "h1"


async def test_the_bundle_is_unpacked_once(make_host: MakeHost, rig: SshRig) -> None:
    bundles = rig.hosts["h1"].home / ".cache/propolis/bundles"
    first = make_host()
    await first.run("true")
    (unpacked,) = bundles.iterdir()
    inode = unpacked.stat().st_ino
    await make_host().run("true")
    assert [path.stat().st_ino for path in bundles.iterdir()] == [inode]


async def test_six_runs_at_once_share_one_bundle(make_host: MakeHost, rig: SshRig) -> None:
    names = await asyncio.gather(*(make_host().run("hostname") for _ in range(6)))
    assert names == ["h1"] * 6
    assert len(list((rig.hosts["h1"].home / ".cache/propolis/bundles").iterdir())) == 1


async def test_all_clients_of_a_run_share_one_connection(make_host: MakeHost, rig: SshRig) -> None:
    hosts = [make_host(run_id="f" * 16) for _ in range(6)]
    await asyncio.gather(*((host.client()) for host in hosts))
    assert len(rig.hosts["h1"].find(*WATCHDOG)) == len(link_processes()) == 1


async def test_the_last_client_waits_until_the_link_process_has_ended(make_host: MakeHost) -> None:
    first, last = make_host(run_id="e" * 16), make_host(run_id="e" * 16)
    await asyncio.gather(first.client(), last.client())
    await asyncio.to_thread(first.close)
    assert len(link_processes()) == 1
    await asyncio.to_thread(last.close)
    assert link_processes() == []


async def test_a_client_waits_for_a_link_process_that_ends_because_its_agent_has_left(
    make_host: MakeHost, rig: SshRig
) -> None:
    host = make_host()
    await host.client()
    (agent,) = rig.hosts["h1"].find(AGENT)
    assert host._joined is not None
    link, _ = host._joined
    os.kill(agent, signal.SIGTERM)
    await asyncio.to_thread(_until_closed, link._connection)
    assert link_processes() == []


def _until_closed(connection: socket.socket) -> None:
    connection.settimeout(LINK_END_TIMEOUT_S)
    while connection.recv(4096):
        pass


def test_a_host_is_tied_to_no_event_loop(make_host: MakeHost) -> None:
    host = make_host()
    assert [asyncio.run(host.run("hostname")) for _ in range(2)] == ["h1", "h1"]


async def test_a_link_that_is_cut_is_told_with_the_host_and_the_reason(make_host: MakeHost, rig: SshRig) -> None:
    host = make_host()
    await host.run("true")
    rig.cut("h1")
    lost = await until_lost(host)
    assert (lost.host, lost.reason) == ("h1", "nothing was heard from it for 4 s")
    assert str(lost).startswith("host h1 is lost: nothing was heard from it for 4 s")
    await until_clean(rig)


async def test_a_host_that_is_back_can_be_used_again(make_host: MakeHost, rig: SshRig) -> None:
    host = make_host(silence_s=1.5)
    await host.run("true")
    rig.cut("h1")
    await until_lost(host)
    rig.mend("h1")
    assert await host.run("hostname") == "h1"


async def test_a_request_under_way_fails_with_the_reason_when_the_link_is_cut(make_host: MakeHost, rig: SshRig) -> None:
    host = make_host()
    running = asyncio.create_task(host.run("echo up > ~/up; sleep 600"))
    while not (rig.hosts["h1"].home / "up").exists():
        await asyncio.sleep(0.02)
    rig.cut("h1")
    with pytest.raises(HostLost, match="host h1 is lost: nothing was heard"):
        await running


async def test_a_link_that_comes_back_in_time_is_not_lost(make_host: MakeHost, rig: SshRig) -> None:
    host = make_host(silence_s=60)
    await host.run("true")
    rig.cut("h1")
    pending = asyncio.create_task(host.run("hostname"))
    await asyncio.wait([pending], timeout=1)
    assert not pending.done()
    rig.mend("h1")
    assert await pending == "h1"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(("sshd: ",), "SSH|watchdog", id="sshd"),
        pytest.param((AGENT,), "its agent ended with status -9", id="agent"),
        pytest.param(WATCHDOG, "its watchdog ended, and the agent with it", id="watchdog"),
    ],
)
async def test_what_is_killed_on_the_host_is_named_and_the_host_is_clean(
    make_host: MakeHost, rig: SshRig, words: tuple[str, ...], reason: str
) -> None:
    host = make_host()
    await host.run("true")
    rig.hosts["h1"].kill(*words)
    lost = await until_lost(host)
    assert lost.host == "h1"
    assert re.search(reason, lost.reason)
    await until_clean(rig)


@pytest.mark.slow
async def test_an_agent_that_hangs_is_killed_when_the_connection_is_gone(make_host: MakeHost, rig: SshRig) -> None:
    host = make_host(silence_s=1.5)
    await host.run("true")
    rig.hosts["h1"].kill(AGENT, number=signal.SIGSTOP)
    rig.cut("h1")
    await until_clean(rig)


async def test_a_host_is_clean_after_the_link_process_is_killed(make_host: MakeHost, rig: SshRig) -> None:
    host = make_host()
    await host.run("true")
    (link,) = link_processes()
    os.kill(link, signal.SIGKILL)
    lost = await until_lost(host)
    assert lost.reason == "the link process on this machine ended"
    await until_clean(rig)
    assert await host.run("hostname") == "h1"


CLIENT = """
import asyncio, json, sys
from pytest_propolis.hosts.host import HostSpec
from pytest_propolis.hosts.ssh_host import open_host
from pytest_propolis.settings import Settings

async def main():
    spec = HostSpec(name="h1", kind="ssh", address="h1", options=json.loads(sys.argv[1]))
    await open_host(spec, Settings(), "e" * 16).client()
    print("up", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_host_is_clean_after_the_only_client_is_killed(rig: SshRig, runtime: Path) -> None:
    client = subprocess.Popen([sys.executable, "-c", CLIENT, json.dumps(options_of(rig))], stdout=subprocess.PIPE)
    assert client.stdout
    assert await asyncio.to_thread(client.stdout.readline) == b"up\n"
    client.kill()
    client.communicate()
    await until_clean(rig)
    async with asyncio.timeout(CLEAN_TIMEOUT_S):
        while link_processes():
            await asyncio.sleep(0.05)


async def test_a_client_of_another_version_is_refused_with_both_versions(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = version("pytest-propolis")
    await make_host(run_id="d" * 16).run("true")
    monkeypatch.setattr(link_client, "version", lambda name: "0.0.1")
    with pytest.raises(HostError, match=f"host h1: the agent .* pytest-propolis {ours}, and this process of 0.0.1"):
        await make_host(run_id="d" * 16).run("true")


async def test_what_the_login_shell_prints_is_passed_over(make_host: MakeHost, rig: SshRig) -> None:
    (rig.hosts["h1"].home / ".bashrc").write_text("echo welcome; printf 'no end of line'; echo >&2 careful; echo\n")
    host = make_host()
    await (await host.client()).aclose()


async def test_a_home_that_is_mounted_noexec_is_passed_over(rig_possible: None, runtime: Path) -> None:
    mounts = "mount -t tmpfs -o noexec home {home}"
    with ssh_rig("h1", mounts=mounts) as rig:
        host = _host(rig)
        try:
            await host.run("true")
            assert rig.hosts["h1"].run("ls", "/var/tmp/propolis-0/bundles")
        finally:
            host.close()


async def test_a_host_without_space_says_which_places_were_tried(rig_possible: None, runtime: Path) -> None:
    mounts = "for place in {home} /tmp /var/tmp; do mount -t tmpfs -o size=1m full $place; done"
    with ssh_rig("h1", mounts=mounts) as rig:
        with pytest.raises(ResourceExhausted) as raised:
            await _host(rig).run("true")
        assert "host h1: no directory there can take the agent's program" in str(raised.value)
        assert "/.cache/propolis/bundles: less than 25 MiB are free there" in str(raised.value)
        await until_clean(rig)


async def test_openssh_connects_a_host_whose_keys_asyncssh_cannot_look_up(make_host: MakeHost, rig: SshRig) -> None:
    config = rig.config.read_text().replace("UserKnownHostsFile", "KnownHostsCommand /bin/cat")
    path = rig.write_config(config.replace("GlobalKnownHostsFile /dev/null", ""), name="of_openssh")
    host = make_host(config=str(path))
    async with await host.client() as agent:
        assert await agent.list_vms() == []
    assert await host.run("hostname") == "h1"
    rig.hosts["h1"].kill(AGENT)
    assert "its agent ended with status -9" in (await until_lost(host)).reason
    await until_clean(rig)


WRONG_CLOCK = """
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (clock == CLOCK_REALTIME) at->tv_sec += 3600;
    return result;
}
int gettimeofday(struct timeval *at, void *zone) {
    int result = syscall(SYS_gettimeofday, at, zone);
    at->tv_sec += 3600;
    return result;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


async def test_a_host_whose_clock_is_off_by_an_hour_is_used_as_any_other(make_host: MakeHost, rig: SshRig) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for a clock that is wrong for the agent's process only")
    home = rig.hosts["h1"].home
    (home / "clock.c").write_text(WRONG_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(home / "clock.so"), str(home / "clock.c")], check=True)
    python = options_of(rig).get("python", "python3")
    (home / "late-python").write_text(f'#!/bin/sh\nLD_PRELOAD="$HOME/clock.so" exec {python} "$@"\n')
    (home / "late-python").chmod(0o755)
    host = make_host(python="./late-python")
    async with await host.client() as agent:
        assert await agent.list_vms() == []
    assert host.facts is not None
    assert 3500 < host.facts.clock_s - time.time() < 3700
    await asyncio.to_thread(host.close)
    await until_clean(rig)


def _host(rig: SshRig) -> SshHost:
    spec = HostSpec(name="h1", kind="ssh", address="h1", options=options_of(rig))
    return open_host(spec, Settings(), "c" * 16)
