"""The guest OS adapter: all that the framework knows of one kind of guest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..console.console import Console
from ..engine.recipe import Recipe
from ..storage.artifacts import Artifact

__all__ = ["GuestAdapter", "GuestImage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """What a guest boots from.

    :param kernel: the kernel, loaded by the server itself; None for a guest that firmware boots from its disk.
    :param initrd: the kernel's initial RAM disk.
    :param command_line: the kernel's parameters.
    :param disk: the root disk; None for a guest without one.
    :param recipe: how the root disk is prepared from `kernel`, `initrd` and `disk`, if it is not used as it is.
    """

    kernel: Artifact | None = None
    initrd: Artifact | None = None
    command_line: str = ""
    disk: Artifact | None = None
    recipe: Recipe | None = None


class GuestAdapter(ABC):
    """One kind of guest. Make one, and return it from the hook ``pytest_propolis_guests``."""

    name: ClassVar[str]
    """What tests and options call it."""

    image: ClassVar[GuestImage]

    shell: ClassVar[str] = "sh"
    """The POSIX shell that runs commands."""

    shell_wrapper: ClassVar[str] = "{}"
    """How the login shell is to run the read-eval loop. As a job of an interactive shell, the loop has a process group
    of its own, and the key that interrupts a command ends neither that shell nor the login above it."""

    reboot_command: ClassVar[str] = "reboot"

    minimum_memory_mib: ClassVar[int] = 128
    """With less, the guest is known not to come up."""

    @abstractmethod
    async def log_in(self, console: Console) -> None:
        """Wait for the guest to come up, and get to a shell prompt of the superuser.

        Waits have no time limits of their own: the boot as a whole has one, and is cancelled when it is over.
        """
