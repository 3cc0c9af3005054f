"""The inventory: the hosts that a run may use, and the errors of an invalid one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_propolis.errors import SettingsError
from pytest_propolis.hosts.inventory.inventory import read_inventory
from pytest_propolis.hosts.run_hosts import local_run_ids, open_hosts
from pytest_propolis.settings import Settings


def written(directory: Path, text: str) -> Path:
    path = directory / "hosts.toml"
    path.write_text(text)
    return path


def test_local_hosts_have_names_and_addresses_of_their_own() -> None:
    hosts = read_inventory("local:3")
    assert [host.name for host in hosts] == ["local-1", "local-2", "local-3"]
    assert len({host.address for host in hosts}) == 3


def test_a_file_describes_hosts_in_its_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[hosts.b]\nkind = "local"\nslots = 8\nmemory_mib = 4096\nlabels = ["fast"]\n[hosts.a]\nkind = "local"\n',
    )
    first, second = read_inventory(path)
    assert (first.name, first.slots, first.memory_mib, first.labels) == ("b", 8, 4096, frozenset({"fast"}))
    assert (second.name, second.slots, second.labels) == ("a", None, frozenset())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hosts", "is not TOML"),
        ("", "names no hosts"),
        ("[machines.a]\n", "no key 'machines'.*known are hosts"),
        ("[hosts.a]\n", "host 'a' has no kind"),
        ('[hosts.a]\nkind = "locl"\n', "no kind 'locl'.*did you mean 'local'"),
        ('[hosts.a]\nkind = "local"\nslot = 3\n', "host 'a': there is no key 'slot'.*did you mean 'slots'"),
        ('[hosts.a]\nkind = "local"\nslots = 0\n', "host 'a': slots must be a whole number from 1 on, and is 0"),
        ('[hosts.a]\nkind = "local"\nslots = true\n', "host 'a': slots must be a whole number"),
        ('[hosts.a]\nkind = "local"\nlabels = "fast"\n', "host 'a': labels must be a list of words"),
        ('[hosts.a]\nkind = "local"\naddress = 3\n', "host 'a': address must be a text, and is 3"),
        ('[hosts."a b"]\nkind = "local"\n', "host 'a b': the name may have"),
        ('[hosts]\na = "local"\n', "host 'a' is not a table"),
    ],
)
def test_a_bad_file_is_refused_with_the_host_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_inventory(written(tmp_path, text))
    assert re.search(said, str(caught.value), re.DOTALL)


@pytest.mark.parametrize("setting", ["local:0", "local:33", "local:x"])
def test_a_number_of_local_hosts_that_cannot_be_is_refused(setting: str) -> None:
    with pytest.raises(SettingsError, match=setting):
        read_inventory(setting)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml cannot be read"):
        read_inventory(tmp_path / "gone.toml")


def test_all_processes_of_a_run_agree_on_the_ids_of_its_hosts() -> None:
    settings = Settings(hosts="local:2")
    ids = [host.run_id for host in open_hosts(settings, shared_id="shared")]
    assert [found.run for found in local_run_ids(settings, shared_id="shared")] == ids
    assert [found.agent for found in local_run_ids(settings, shared_id="shared")] == ids, "it does not linger"
    assert len(set(ids)) == 2
    assert set(ids).isdisjoint(host.run_id for host in open_hosts(settings, shared_id="another run"))
