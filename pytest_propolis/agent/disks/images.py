"""Images on the agent's host: fetch artifacts and build recipes, each once for all runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...agent_api.agent_process import AgentConfig
from ...agent_api.derived import DerivedState, SentDerived
from ...agent_api.image_recipe import ImageNeeded, ImageRecipe
from ...engine.templates.image_builder import build_image
from ...ledger.entry import Owner, command_line_tag
from ...ledger.ledger import Ledger
from ...ledger.writer import LedgerWriter
from ...storage.artifacts import Artifact, checked_name
from ...storage.images.image_references import require_contained
from ...storage.images.overlays import put_overlay_on
from ...storage.store import ArtifactStore
from ...storage.user_directories import default_artifact_dir
from ..hypervisor import HypervisorFinder
from ..sharing.files import move_to, sent_file
from .disk_images import allowed_image_directories

__all__ = ["ImageMaker"]

DERIVED_DISK = "disk.qcow2"


class ImageMaker:
    """Resolves artifacts and recipes to paths."""

    def __init__(self, config: AgentConfig, ledger: Ledger, hypervisors: HypervisorFinder) -> None:
        self._config = config
        self._writer = LedgerWriter(ledger, Owner("images"))
        self._hypervisors = hypervisors
        self._store = ArtifactStore(
            Path(config.artifact_dir) if config.artifact_dir else default_artifact_dir(),
            peers=[Path(peer) for peer in config.peer_stores],
        )

    async def get(self, needed: ImageNeeded, progress: Callable[[str], None]) -> tuple[str, ...]:
        """Return the paths of the artifacts, in order, or of the recipe's result if there is a recipe.

        :raises ArtifactError: if one cannot be fetched or built.
        """
        paths = {artifact: await self._store.get(artifact, progress) for artifact in needed.artifacts}
        if needed.recipe is None:
            return tuple(str(path) for path in paths.values())
        made = await self._build(needed.recipe, paths, needed.timeout_s, progress)
        return (str(made),)

    def state(self, needed: ImageNeeded) -> DerivedState:
        """Return whether the result of a recipe exists, and by what it is found on other hosts."""
        assert needed.recipe is not None
        key = needed.recipe.key
        return DerivedState(is_there=self._store.derived(key, [DERIVED_DISK]) is not None, identity=key)

    async def find(self, identity: str) -> SentDerived | None:
        """Return what is sent of the result of a recipe; None if there is none with this key."""
        directory = self._store.derived(checked_name(identity, what="identity"), [DERIVED_DISK])
        return SentDerived(files=(await sent_file(directory / DERIVED_DISK),)) if directory else None

    async def adopt(self, needed: ImageNeeded, sent: SentDerived, progress: Callable[[str], None]) -> None:
        """Take a fetched file for the result of a recipe, unless there is one.

        :raises ArtifactError: when that cannot be done.
        """
        recipe = needed.recipe
        assert recipe is not None
        paths = {artifact.sha256: await self._store.get(artifact, progress) for artifact in needed.artifacts}
        hypervisor = await self._hypervisors.find()

        async def take(directory: Path) -> None:
            await move_to(directory, sent)
            overlay = directory / DERIVED_DISK
            await put_overlay_on(
                qemu_img=hypervisor.qemu.img, backing=paths[recipe.disk], overlay=overlay, backing_format="qcow2"
            )

        title = f"{recipe.name} from the files of another host's"
        await self._store.derive(recipe.key, [DERIVED_DISK], take, progress, title=title)

    async def _build(
        self, recipe: ImageRecipe, paths: dict[Artifact, Path], timeout_s: float, progress: Callable[[str], None]
    ) -> Path:
        by_hash = {artifact.sha256: path for artifact, path in paths.items()}
        hypervisor = await self._hypervisors.find()

        async def make(directory: Path) -> None:
            require_contained(by_hash[recipe.disk], "qcow2", allowed=allowed_image_directories(self._config))
            progress(f"preparing {recipe.name}: editing the image in a guest of its own, once")
            await build_image(
                recipe,
                qemu=hypervisor.qemu,
                accelerator=hypervisor.accelerator.name,
                kernel=by_hash[recipe.kernel],
                initrd=by_hash[recipe.initrd],
                disk=by_hash[recipe.disk],
                target=directory / DERIVED_DISK,
                timeout_s=timeout_s,
                tag=f"{command_line_tag(self._config.run)}image",
                journal=self._writer,
            )

        directory = await self._store.derive(recipe.key, [DERIVED_DISK], make, progress, title=recipe.name)
        return directory / DERIVED_DISK
