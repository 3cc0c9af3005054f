"""Derived artifacts: built by a recipe from a base."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from propolis_command import propolis

from pytest_propolis.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.catalogs.catalog import read_catalogs
from pytest_propolis.storage.store import ArtifactStore

CONTENT = b"base\n"
RECIPE = """#!/bin/sh -e
tr a-z A-Z < "$1" > "$2"
echo made >> "{log}"
"""

CATALOG = """
[artifacts.base]
filename = "base.txt"
kind = "file"
source = {{ local_path = {{ path = ".", sha256 = "{base}" }} }}

[artifacts.loud]
filename = "loud.txt"
kind = "file"
source = {{ derived = {{ base = "base", recipe = "recipe.sh", recipe_sha256 = "{recipe}" }} }}

[artifacts.louder]
filename = "louder.txt"
kind = "file"
source = {{ derived = {{ base = "loud", recipe = "recipe.sh", recipe_sha256 = "{recipe}", sha256 = "{result}" }} }}
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Place:
    """A directory with a base, a recipe and a catalog."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.recipe = directory / "recipe.sh"
        self.recipe.write_text(RECIPE.format(log=self.log))
        self.base = directory / "base.txt"
        self.base.write_bytes(CONTENT)
        self.store = ArtifactStore(directory / "store")

    @property
    def catalog(self) -> Path:
        file = self.directory / "artifacts.toml"
        text = CATALOG.format(
            base=sha256(self.base.read_bytes()), recipe=sha256(self.recipe.read_bytes()), result=sha256(b"BASE\n")
        )
        file.write_text(text)
        return file

    def artifact(self, name: str) -> Artifact:
        return read_catalogs([self.catalog]).get(name)

    async def get(self, name: str) -> bytes:
        return (await self.store.get(self.artifact(name), lambda line: None)).read_bytes()

    @property
    def times(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_derived_file_is_made_once_and_again_when_base_or_recipe_change(place: Place) -> None:
    assert [await place.get("loud") for _ in range(2)] == [b"BASE\n"] * 2
    assert place.times == 1
    place.base.write_bytes(b"another\n")
    assert await place.get("loud") == b"ANOTHER\n"
    place.recipe.write_text(RECIPE.format(log=place.log).replace("tr a-z A-Z", "rev"))
    assert await place.get("loud") == b"rehtona\n"
    assert place.times == 3


async def test_a_derived_file_is_the_base_of_another(place: Place) -> None:
    assert await place.get("louder") == b"BASE\n"
    assert place.times == 2


async def test_a_damaged_result_is_made_again(place: Place) -> None:
    path = await place.store.get(place.artifact("loud"), lambda line: None)
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    assert await place.get("loud") == b"BASE\n"
    assert place.times == 2


async def test_a_recipe_that_was_changed_is_not_run(place: Place) -> None:
    artifact = place.artifact("loud")
    place.recipe.write_text(RECIPE.format(log=place.log) + "# changed")
    with pytest.raises(ArtifactCorrupt, match=r"recipe .*recipe\.sh has the SHA-256"):
        await place.store.get(artifact, lambda line: None)
    assert place.times == 0


async def test_a_result_with_another_hash_is_never_used(place: Place) -> None:
    place.base.write_bytes(b"another\n")
    with pytest.raises(ArtifactCorrupt, match=r"what .* made has the SHA-256"):
        await place.get("louder")
    assert not list((place.directory / "store").rglob("louder.txt"))


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ("#!/bin/sh\necho the reason >&2\nexit 3\n", r"recipe\.sh failed \(status 3\):\nthe reason"),
        ("#!/bin/sh\n", "did not make its file"),
        ('#!/bin/sh\nln -s /etc/passwd "$2"\n', "did not make its file"),
        ("#!/no/such/interpreter\n", "cannot be run|failed"),
    ],
    ids=["it fails", "it makes nothing", "it makes a link", "it is no program"],
)
async def test_a_recipe_that_fails_is_named(place: Place, recipe: str, complaint: str) -> None:
    place.recipe.write_text(recipe)
    with pytest.raises(ArtifactError, match=complaint):
        await place.get("loud")
    assert not list((place.directory / "store").rglob("loud.txt"))


async def test_a_missing_recipe_is_named(place: Place) -> None:
    artifact = place.artifact("loud")
    place.recipe.unlink()
    with pytest.raises(ArtifactMissing, match=r"recipe\.sh cannot be read"):
        await place.store.get(artifact, lambda line: None)


DERIVED = """
[artifacts.NAME]
filename = "NAME.txt"
kind = "file"
source = { derived = { base = "BASE", recipe = "recipe.sh", recipe_sha256 = "HASH" } }
"""
UNHASHED = """
[artifacts.base]
filename = "base.txt"
kind = "file"
source = { local_path = { path = "." } }
"""


def derived(name: str, base: str, digest: str = "0" * 64) -> str:
    return DERIVED.replace("NAME", name).replace("BASE", base).replace("HASH", digest)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (derived("one", "one"), "'one': it is derived from itself: one from one"),
        (derived("one", "two") + derived("two", "one"), "derived from itself: one from two from one"),
        (derived("one", "bass") + UNHASHED, "its base 'bass' is not in this file"),
        (derived("one", "base") + UNHASHED, "its base 'base' has no sha256"),
        (derived("one", "base", "12") + UNHASHED, "its recipe_sha256 is '12'"),
        (derived("one", "base").replace("} }", '}, url = { url = "http://a/b", sha256 = "0" } }'), "2 sources"),
    ],
)
def test_a_derived_file_that_cannot_be_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "artifacts.toml"
    file.write_text(text)
    with pytest.raises(ArtifactError, match=complaint):
        read_catalogs([file])


def test_the_command_makes_lists_and_verifies_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROPOLIS_ARTIFACTS", str(place.catalog))
    monkeypatch.setenv("PROPOLIS_ARTIFACT_DIR", str(place.store.directory))
    assert str(place.store.directory) in propolis("artifacts", "fetch", "loud")
    assert place.times == 1
    assert re.search(rf"loud\s+file\s+{place.store.directory}.*recipe\.sh with", propolis("artifacts", "list"))
    assert propolis("artifacts", "verify", "loud").endswith(" is intact\n")
    path = place.store.path_of(place.artifact("loud"))
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    assert "is damaged" in propolis("artifacts", "verify", "loud", status=1)
