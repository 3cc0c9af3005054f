"""Images on the agent's host: fetch artifacts and build recipes, each once for all runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...agent_api.agent_process import AgentConfig
from ...agent_api.image_recipe import ImageRecipe
from ...agent_api.messages import ImageNeeded
from ...engine.templates.image_builder import build_image
from ...ledger.entry import Owner, command_line_tag
from ...ledger.ledger import Ledger
from ...ledger.writer import LedgerWriter
from ...storage.artifacts import Artifact
from ...storage.images.image_references import require_contained
from ...storage.store import ArtifactStore, default_artifact_dir
from ..hypervisor import HypervisorFinder
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

        directory = await self._store.derive(recipe.key, [DERIVED_DISK], make, progress)
        return directory / DERIVED_DISK
