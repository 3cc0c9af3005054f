"""The build of the Debian guest, short of building."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.storage import debian
from pytest_propolis.storage.debian import DebianBuild

SUITES = {
    "debian.sources": "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\nComponents: main\n",
    "sources.list": "deb [signed-by=/k] http://m/debian bookworm main\ndeb http://m/s bookworm-security main\n",
    "newer.sources": "Types: deb\nURIs: http://mirror/debian\nSuites: trixie\nComponents: main\n",
    "both.list": "deb http://mirror/debian bookworm main\ndeb http://mirror/debian trixie main\n",
    "vendor.list": "deb http://vendor/apt vendor-bookworm main\n",
    "empty.list": "# deb http://mirror/debian bookworm main\n",
}


@pytest.mark.parametrize("name", SUITES)
def test_apt_files_of_this_release_and_no_other_are_taken(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(SUITES[name])
    assert debian._names_only("bookworm", file) == (name in {"debian.sources", "sources.list"})


async def test_what_is_missing_to_build_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CapabilityMissing, match="lacks mmdebstrap, e2fsprogs, qemu-utils, util-linux") as caught:
        await DebianBuild().make(tmp_path, lambda text: None)
    assert "apt-get install mmdebstrap" in str(caught.value)


def test_another_release_has_another_key() -> None:
    assert DebianBuild().key != DebianBuild(suite="trixie").key
