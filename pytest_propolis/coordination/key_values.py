"""The key-values of a group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..agent_api.key_value import VALUE_BYTES, Entry, Put
from ..errors import CoordinationError
from .limits import DEFAULT_TIMEOUT_S
from .names import require_key

if TYPE_CHECKING:
    from .group import NodeGroup

__all__ = ["KeyValues"]

VALUES: Final = "kv/"


class KeyValues:
    """Keys with values of bytes, up to 1 MiB each. They live as long as the group."""

    def __init__(self, group: NodeGroup) -> None:
        self._group = group

    async def get(self, key: str) -> bytes | None:
        """Return the value of a key; None if there is none."""
        entry = await self.entry(key)
        return entry.value if entry else None

    async def entry(self, key: str) -> Entry | None:
        """Return the value of a key with its revision, for `swap`."""
        return await self._group.read(VALUES + require_key(key))

    async def list(self, prefix: str = "") -> dict[str, bytes]:
        """Return the values of all keys in a directory, by whole key.

        :param prefix: the directory, without a slash at its end; empty for all.
        """
        directory = f"{require_key(prefix)}/" if prefix else ""
        found = await self._group.read_all(VALUES + directory)
        return {directory + key: entry.value for key, entry in sorted(found.items())}

    async def put(self, key: str, value: bytes) -> int:
        """Give a key a value; return the revision.

        :raises CoordinationError: when it is too large.
        """
        return (await self._group.commit(self._put(key, value))).revision

    async def add(self, key: str, value: bytes) -> bool:
        """Give a key a value if it has none; return whether that was so."""
        return await self.swap(key, value, revision=0)

    async def swap(self, key: str, value: bytes, *, revision: int) -> bool:
        """Give a key a value if it was written last at a revision; return whether that was so.

        :param revision: 0: if there is no such key.
        """
        outcome = await self._group.commit(self._put(key, value), expected={VALUES + key: revision})
        return outcome.done

    async def delete(self, key: str, *, revision: int | None = None) -> bool:
        """Delete a key; return False if it was not written last at that revision."""
        whole = VALUES + require_key(key)
        expected = {} if revision is None else {whole: revision}
        return (await self._group.commit(deletes=(whole,), expected=expected)).done

    async def get_json(self, key: str) -> Any:
        """Return the value of a key, decoded; None if there is none."""
        value = await self.get(key)
        return None if value is None else _decoded(key, value)

    async def put_json(self, key: str, value: Any) -> int:
        """Give a key a value, encoded."""
        return await self.put(key, msgspec.json.encode(value))

    async def wait(
        self, key: str, *, equal_to: bytes | None = None, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> bytes:
        """Wait until a key has a value, and return it.

        :param equal_to: wait for this value.
        :raises CoordinationTimeout: when that takes too long.
        :raises Poisoned: when a node fails or vanishes.
        """
        whole = VALUES + require_key(key)

        def value() -> bytes | None:
            entry = self._group.mirror.get(whole)
            return entry.value if entry and equal_to in (None, entry.value) else None

        return await self._group.until(
            value, on=(whole,), timeout_s=timeout_s, operation=f"waiting for a value of {key!r}"
        )

    async def wait_json(self, key: str, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> Any:
        """As `wait`; return the value decoded."""
        return _decoded(key, await self.wait(key, timeout_s=timeout_s))

    async def watch(self, key: str) -> AsyncIterator[bytes | None]:
        """Iterate over the values of a key: what it has now, if anything, and then each that it gets; None: deleted.

        :raises Poisoned: when a node fails or vanishes.
        """
        whole = VALUES + require_key(key)
        news: asyncio.Queue[bytes | None] = asyncio.Queue()

        def note(changed: str, _before: Entry | None, after: Entry | None) -> None:
            if changed == whole:
                news.put_nowait(after.value if after else None)
                self._group.mirror.wake((whole,))

        mirror = self._group.mirror
        if there := mirror.get(whole):
            news.put_nowait(there.value)
        with mirror.listening(whole[: whole.rfind("/") + 1], note):
            while True:
                await self._group.until(
                    lambda: None if news.empty() else True, on=(whole,), timeout_s=None, operation=f"watching {key!r}"
                )
                yield news.get_nowait()

    def _put(self, key: str, value: bytes) -> Put:
        if not isinstance(value, bytes) or len(value) > VALUE_BYTES:
            what = f"{len(value)} bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"
            raise CoordinationError(
                f"the value of {key!r} is {what}", hint=f"it is bytes, at most {VALUE_BYTES} of them"
            )
        return Put(VALUES + require_key(key), value, self._group.lease)


def _decoded(key: str, value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise CoordinationError(f"the value of {key!r} is no JSON: {error}") from None
