"""ISO 9660 file systems, with the names of Rock Ridge and Joliet."""

from __future__ import annotations

import io
from collections.abc import Mapping

from ...errors import CapabilityMissing

__all__ = ["iso9660_image"]


def iso9660_image(files: Mapping[str, bytes], *, label: str) -> bytes:
    """Return a file system with these files in its root directory.

    :param files: contents by name.
    :raises CapabilityMissing: when pycdlib is not installed.
    """
    try:
        import pycdlib
    except ImportError:
        raise CapabilityMissing(
            "an ISO 9660 image needs pycdlib, which is not installed", hint="pip install 'pytest-propolis[iso]'"
        ) from None
    image, written = pycdlib.PyCdlib(), io.BytesIO()
    image.new(vol_ident=label, joliet=3, rock_ridge="1.09")
    for number, (name, contents) in enumerate(files.items()):
        image.add_fp(io.BytesIO(contents), len(contents), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    image.write_fp(written)
    image.close()
    return written.getvalue()
