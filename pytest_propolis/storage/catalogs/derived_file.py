"""Files that a program of the user's makes of another artifact: a base, a recipe, and the recipe's hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from ...errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from ..files import copy as copy_file
from ..files import sha256_of
from ..programs import run_program
from ..sources import LocalFile, WheelMember
from .archive_member import ArchiveMember
from .remote_file import RemoteFile
from .unpacked_file import UnpackedFile

__all__ = ["CatalogSource", "DerivedFile"]

_RECIPE: Final = ".recipe"
_LINES_SHOWN: Final = 12


class DerivedFile(msgspec.Struct, frozen=True, tag="derived-file"):
    """The output of a recipe applied to a base. It is rebuilt when the base or the recipe changes.

    The recipe is a program on this machine, which is called with two paths: that of the base, which it must not change,
    and that of the file to make. Its working directory is empty, and is removed afterwards.

    :param base: where the base comes from.
    :param base_name: its file name.
    :param base_sha256: its hash; None for a member of an archive whose own hash is known, and for a derived file.
    :param recipe: the program's path.
    :param recipe_sha256: its hash: another program under the same path is not run.
    :param sha256: the hash of the result; None if it differs from one time to the next.
    """

    base: CatalogSource
    base_name: str
    base_sha256: str | None
    recipe: str
    recipe_sha256: str
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.recipe} with {self.base}"

    @property
    def key(self) -> str:
        """Identifies the content."""
        base = self.base.key if isinstance(self.base, DerivedFile | ArchiveMember) else self.base_sha256
        identity = f"{base}\0{self.base_name}\0{self.recipe_sha256}\0{self.sha256}"
        return f"recipe-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"

    async def make(self, base: Path, made: Path) -> None:
        """Make the file from its base, in an empty directory.

        :raises ArtifactMissing: when there is no recipe.
        :raises ArtifactCorrupt: when the recipe or its result has another hash than it should.
        :raises ArtifactError: when the recipe fails, with its last lines.
        """
        recipe = made.parent / _RECIPE
        await self._copy_recipe(recipe)
        try:
            finished = await run_program(
                [str(recipe), str(base), str(made)], directory=made.parent, ends_with_parent=True
            )
        except OSError as error:
            raise ArtifactError(
                f"{self.recipe} cannot be run: {error.strerror}", hint="begin a script with a line such as #!/bin/sh"
            ) from None
        if finished.status != 0:
            raise ArtifactError(
                f"{self.recipe} failed (status {finished.status}):\n{finished.last_lines(_LINES_SHOWN)}",
                hint=f"run it by hand: {self.recipe} {base} OUTPUT",
            )
        if not made.is_file() or made.is_symlink():
            raise ArtifactError(f"{self.recipe} did not make its file", hint="it must write to its second argument")
        if self.sha256 is not None and (found := await sha256_of(made)) != self.sha256:
            raise ArtifactCorrupt(
                f"what {self.recipe} made has the SHA-256 {found}, and should have {self.sha256}",
                hint="correct the hash, or leave it out if the recipe never makes the same file twice",
            )

    async def _copy_recipe(self, copy: Path) -> None:
        """Copy the recipe and check the copy, so that what is run is what was checked."""
        try:
            await copy_file(Path(self.recipe), copy)
        except OSError as error:
            raise ArtifactMissing(
                f"the recipe {self.recipe} cannot be read: {error.strerror}", hint="correct its path in the catalog"
            ) from None
        if (found := await sha256_of(copy)) != self.recipe_sha256:
            raise ArtifactCorrupt(
                f"the recipe {self.recipe} has the SHA-256 {found}, and should have {self.recipe_sha256}",
                hint="if it was changed on purpose, correct its hash in the catalog",
            )
        copy.chmod(0o500)


CatalogSource: TypeAlias = LocalFile | WheelMember | RemoteFile | ArchiveMember | DerivedFile | UnpackedFile
"""Every source of a catalog's artifacts. A new one is a module beside this, and an entry here."""
