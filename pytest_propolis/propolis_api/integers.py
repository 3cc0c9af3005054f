"""The integer types of the wire: msgspec refuses what Rust's type of the same name cannot hold."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

__all__ = ["PositiveUint64", "Uint8", "Uint32", "Uint64", "require_uint64"]

Uint8 = Annotated[int, Meta(ge=0, le=(1 << 8) - 1)]
Uint32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]

# msgspec's bounds end at 63 bits: the upper one is checked by `require_uint64`, which every struct that has such a
# field calls when it is made.
Uint64 = Annotated[int, Meta(ge=0)]
PositiveUint64 = Annotated[int, Meta(ge=1)]

_UINT64_END: Final = 1 << 64


def require_uint64(**numbers: int | None) -> None:
    """Check numbers that are given, by the name of their field.

    :raises ValueError: for the first that is not in 0 … 2**64-1; msgspec reports it as its own `ValidationError`.
    """
    for name, number in numbers.items():
        if number is not None and not 0 <= number < _UINT64_END:
            raise ValueError(f"{name} must be from 0 to 2**64-1, not {number}")
