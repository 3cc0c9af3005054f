"""A user's SSH configuration is honoured, or the error names the unsupported option."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from ssh_rig import SshRig, ssh_rig

from pytest_propolis.errors import HostError
from pytest_propolis.hosts.ssh.connecting import connect
from pytest_propolis.hosts.ssh.transport.openssh_transport import OpensshTransport
from pytest_propolis.hosts.ssh.transport.transport import SshDestination

TIMEOUT_S = 60.0

PASS_SOCKET = """#!/usr/bin/env python3
import array, socket, sys
connection = socket.create_connection((sys.argv[1], 22))
passed = array.array("i", [connection.fileno()])
socket.socket(fileno=1).sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
"""

KEYS = "IdentityFile {directory}/id\nIdentitiesOnly yes\n"
KNOWN = "UserKnownHostsFile {directory}/known_hosts\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
UNKNOWN = "UserKnownHostsFile {directory}/nothing_known\nGlobalKnownHostsFile /dev/null\n"
TARGET = "HostName 10.99.0.11\n"

HONOURED = {
    "alias": "Host h1\n" + TARGET + KEYS + KNOWN,
    "pattern": "Host h?\n" + TARGET + KEYS + KNOWN,
    "user": "Host h1\nUser {user}\n" + TARGET + KEYS + KNOWN,
    "include": "Include {directory}/ssh_config\n",
    "token in a path": "Host h1\nIdentityFile {directory}/%n.id\nIdentitiesOnly yes\n" + TARGET + KNOWN,
    "variable in a path": "Host h1\nIdentityFile ${HOME_OF_KEYS}/id\nIdentitiesOnly yes\n" + TARGET + KNOWN,
    "environment": "SetEnv GREETING=hello\nSendEnv LANG\nHost h1\n" + TARGET + KEYS + KNOWN,
    "match host": "Match host h1\n" + TARGET + KEYS + KNOWN,
    "match originalhost": "Match originalhost h1\n" + TARGET + KEYS + KNOWN,
    "match user": "Match user {user}\n" + TARGET + KEYS + KNOWN,
    "match localuser": "Match localuser {user}\n" + TARGET + KEYS + KNOWN,
    "match all": "Match all\n" + TARGET + KEYS + KNOWN,
    "match tagged": "Host h1\nTag here\nMatch tagged here\n" + TARGET + KEYS + KNOWN,
    "match exec": 'Match exec "true"\n' + TARGET + KEYS + KNOWN,
    "match final": "Host h1\n" + TARGET + "Match final host 10.99.0.11\n" + KEYS + KNOWN,
    "ciphers": "Ciphers aes256-ctr\nHost h1\n" + TARGET + KEYS + KNOWN,
    "ciphers with ^": "Ciphers ^aes256-ctr\nHost h1\n" + TARGET + KEYS + KNOWN,
    "host key algorithms with +": "HostKeyAlgorithms +ssh-rsa\nHost h1\n" + TARGET + KEYS + KNOWN,
    "compression": "Compression yes\nHost h1\n" + TARGET + KEYS + KNOWN,
    "address family": "AddressFamily inet\nHost h1\n" + TARGET + KEYS + KNOWN,
    "connect timeout": "ConnectTimeout 20\nHost h1\n" + TARGET + KEYS + KNOWN,
    "jump host": "Include {directory}/ssh_config\nMatch originalhost h1\nProxyJump h2\n",
    "two jump hosts": (
        "Include {directory}/ssh_config\nHost again\nHostName 10.99.0.12\nHostKeyAlias h2\n"
        + KEYS
        + KNOWN
        + "Match originalhost h1\nProxyJump h2,again\n"
    ),
    "no jump host": "Host h1\nProxyJump none\n" + TARGET + KEYS + KNOWN + "Host *\nProxyJump h2\n",
    "proxy command": "Match originalhost h1\nProxyCommand ssh -F {directory}/ssh_config h2 -W %h:%p\n"
    + TARGET
    + KEYS
    + KNOWN,
    "hashed known hosts": "Host h1\nUserKnownHostsFile {directory}/hashed\nGlobalKnownHostsFile /dev/null\n"
    + TARGET
    + KEYS,
    "host key alias": "Host h1\nHostKeyAlias h1-alias\nUserKnownHostsFile {directory}/aliased\n" + TARGET + KEYS,
    "certificate": "Host h1\nIdentityFile {directory}/certified\nIdentitiesOnly yes\n" + TARGET + KNOWN,
    "certificate in a file of its own": (
        "Host h1\nIdentityFile {directory}/apart\nCertificateFile {directory}/certified-cert.pub\nIdentitiesOnly yes\n"
        + TARGET
        + KNOWN
    ),
    "canonical name": ("CanonicalizeHostname yes\nCanonicalDomains nowhere.invalid\nHost h1\n" + TARGET + KEYS + KNOWN),
    "no GSSAPI on the host": "GSSAPIAuthentication yes\nHost h1\n" + TARGET + KEYS + KNOWN,
    "word of a newer OpenSSH": "NoWordOfToday yes\nHost h1\n" + TARGET + KEYS + KNOWN,
    "control master": "ControlMaster auto\nControlPath {directory}/mux\nHost h1\n" + TARGET + KEYS + KNOWN,
    "remote command": "RemoteCommand false\nHost h1\n" + TARGET + KEYS + KNOWN,
    "agent": "IdentityAgent {directory}/agent\nHost h1\n" + TARGET + KNOWN,
    "agent and the public half of a key": (
        "IdentityAgent {directory}/agent\nIdentityFile {directory}/in_agent.pub\nIdentitiesOnly yes\nHost h1\n"
        + TARGET
        + KNOWN
    ),
    "key of a security key beside another": (
        "Host h1\nIdentityFile {directory}/security_key\n" + TARGET + KEYS + KNOWN
    ),
    "key with a passphrase beside another": "Host h1\nIdentityFile {directory}/locked\n" + TARGET + KEYS + KNOWN,
}
"""What asyncssh does as OpenSSH."""

FALLEN_BACK = {
    "no strict checking": "StrictHostKeyChecking no\nHost h1\n" + TARGET + KEYS + UNKNOWN,
    "new keys accepted": "StrictHostKeyChecking accept-new\nHost h1\n" + TARGET + KEYS + UNKNOWN,
    "known hosts command": "KnownHostsCommand /bin/cat {directory}/known_hosts\nHost h1\n" + TARGET + KEYS + UNKNOWN,
    "match exec with a token": 'Match exec "test %n = h1"\n' + TARGET + KEYS + KNOWN,
    "missing key": "Host h1\nIdentityFile {directory}/missing\n" + TARGET + KEYS + KNOWN,
    "passed socket": ("ProxyUseFdpass yes\nProxyCommand {directory}/pass_socket %h\nHost h1\n" + TARGET + KEYS + KNOWN),
    "accepted key algorithms": "PubkeyAcceptedAlgorithms +ssh-rsa\nHost h1\n" + TARGET + KEYS + KNOWN,
    "host keys in DNS": "VerifyHostKeyDNS yes\nHost h1\n" + TARGET + KEYS + KNOWN,
    "security key": "SecurityKeyProvider /nowhere.so\nHost h1\n" + TARGET + KEYS + KNOWN,
    "PKCS#11 token": "PKCS11Provider /nowhere.so\nHost h1\n" + TARGET + KEYS + KNOWN,
    "bind interface": "BindInterface propolis0\nHost h1\n" + TARGET + KEYS + KNOWN,
}
"""What OpenSSH has to do."""

REFUSED = {
    "changed key": ("Host h1\nUserKnownHostsFile {directory}/changed\n" + TARGET + KEYS, "h1"),
    "revoked key": ("Host h1\nUserKnownHostsFile {directory}/revoked\n" + TARGET + KEYS, "h1"),
    "unknown key": ("StrictHostKeyChecking yes\nHost h1\n" + TARGET + KEYS + UNKNOWN, "h1"),
    "no key that is let in": (
        "Host h1\nIdentityFile {directory}/stranger\nIdentitiesOnly yes\n" + TARGET + KNOWN,
        "h1",
    ),
    "security key that is not plugged in": (
        "Host h1\nIdentityFile {directory}/security_key\nIdentitiesOnly yes\n" + TARGET + KNOWN,
        "h1",
    ),
    "name that does not resolve": ("Host h1\nHostName nowhere.invalid\n" + KEYS + KNOWN, "h1"),
}


@pytest.fixture(scope="module")
def rig(rig_possible: None) -> Iterator[SshRig]:
    with ssh_rig("h1", "h2") as made:
        place = made.directory
        _make_key(place / "stranger")
        _make_key(place / "locked", passphrase="secret")
        shutil.copy(place / "id", place / "h1.id")
        _make_security_key(place / "security_key")
        _make_known_hosts(made)
        _make_certificate(made)
        program = place / "pass_socket"
        program.write_text(PASS_SOCKET)
        program.chmod(0o755)
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(place / "agent")], stdout=subprocess.DEVNULL)
        try:
            shutil.copy(place / "id.pub", place / "in_agent.pub")
            _add_to_agent(place)
            yield made
        finally:
            agent.kill()
            agent.wait()


@pytest.mark.parametrize("name", HONOURED)
async def test_asyncssh_connects_as_configured(
    rig: SshRig, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME_OF_KEYS", str(rig.directory))
    assert await connected(rig, HONOURED[name], tmp_path) == ("AsyncsshTransport", "h1")


@pytest.mark.parametrize("name", FALLEN_BACK)
async def test_openssh_connects_where_asyncssh_would_not(rig: SshRig, name: str, tmp_path: Path) -> None:
    assert await connected(rig, FALLEN_BACK[name], tmp_path) == ("OpensshTransport", "h1")


@pytest.mark.parametrize("name", REFUSED)
async def test_a_host_that_must_not_be_connected_to_is_named(rig: SshRig, name: str, tmp_path: Path) -> None:
    config, host = REFUSED[name]
    with pytest.raises((HostError, NotConnected), match=f"host {host}|verification failed|Permission denied|resolve"):
        await connected(rig, config, tmp_path)


async def test_a_condition_that_asyncssh_does_not_know_is_left_to_openssh(rig: SshRig, tmp_path: Path) -> None:
    config = "Match localnetwork 10.99.0.0/24\n" + TARGET + KEYS + KNOWN
    try:
        result = str(await connected(rig, config, tmp_path))
    except NotConnected as error:  # OpenSSH before 9.4 does not know it either
        result = str(error)
    assert result == "('OpensshTransport', 'h1')" or "Match attribute localnetwork" in result


class NotConnected(Exception):
    """Raised with the output of ssh if it ran no command."""


async def connected(rig: SshRig, config: str, tmp_path: Path) -> tuple[str, str]:
    """Connect with a configuration; return the kind of transport, and the name of the reached host."""
    user = os.environ.get("USER") or "root"
    path = rig.write_config(config.replace("{user}", user), name="config_of_a_test")
    (rig.directory / "nothing_known").unlink(missing_ok=True)
    transport = await connect(
        SshDestination(name="h1", address="h1", config=(str(path),)), control=rig.directory / "control"
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            channel = await transport.start("hostname")
            output = (await channel.stdout.read(-1)).decode().strip()
            if not output and isinstance(transport, OpensshTransport):
                raise NotConnected((await channel.stderr.read(-1)).decode())
        return type(transport).__name__, output
    finally:
        transport.abort()
        await transport.wait_closed()


def _make_key(path: Path, *, passphrase: str = "") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)


def _make_security_key(path: Path) -> None:
    """Write a key file as of a security key that is not plugged in: what is secret is in the device."""

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(4) + value

    public = text(b"sk-ssh-ed25519@openssh.com") + text(os.urandom(32)) + text(b"ssh:")
    check = os.urandom(4)
    private = check + check + public + b"\x01" + text(os.urandom(64)) + text(b"") + text(b"of a test")
    private += bytes(range(1, 1 + -len(private) % 8))
    file = b"openssh-key-v1\0" + text(b"none") + text(b"none") + text(b"") + (1).to_bytes(4) + text(public)
    encoded = base64.encodebytes(file + text(private)).decode()
    path.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{encoded}-----END OPENSSH PRIVATE KEY-----\n")
    path.chmod(0o600)
    shown = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], check=True, capture_output=True, text=True).stdout
    path.with_suffix(".pub").write_text(shown)


def _make_known_hosts(rig: SshRig) -> None:
    place = rig.directory
    kind, key = (rig.hosts["h1"].directory / "host_key.pub").read_text().split()[:2]
    stranger = (place / "stranger.pub").read_text().split()[1]
    shutil.copy(place / "known_hosts", place / "hashed")
    subprocess.run(["ssh-keygen", "-H", "-f", str(place / "hashed")], check=True, capture_output=True)
    (place / "aliased").write_text(f"h1-alias {kind} {key}\n")
    (place / "changed").write_text(f"h1,10.99.0.11 {kind} {stranger}\n")
    (place / "revoked").write_text(f"@revoked * {kind} {key}\nh1,10.99.0.11 {kind} {key}\n")


def _make_certificate(rig: SshRig) -> None:
    """Have the hosts trust an authority that certifies a key: its certificate lies beside it."""
    place = rig.directory
    _make_key(place / "authority")
    _make_key(place / "certified")
    sign = ["ssh-keygen", "-q", "-s", str(place / "authority"), "-I", "test", "-n", os.environ.get("USER") or "root"]
    subprocess.run([*sign, str(place / "certified.pub")], check=True)
    shutil.copy(place / "certified", place / "apart")
    authority = (place / "authority.pub").read_text()
    with (place / "id.pub").open("a") as keys:
        keys.write(f"cert-authority {authority}")
        keys.write((place / "security_key.pub").read_text())


def _add_to_agent(place: Path) -> None:
    environment = {**os.environ, "SSH_AUTH_SOCK": str(place / "agent")}
    done = None
    while done is None or done.returncode == 2:  # the agent does not listen yet
        done = subprocess.run(["ssh-add", "-q", str(place / "id")], env=environment, capture_output=True)
    assert done.returncode == 0, dedent(done.stderr.decode())
