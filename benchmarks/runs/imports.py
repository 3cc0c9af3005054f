"""Modules that ``import pytest_propolis.plugin`` loads beside the standard library, pluggy and pytest, and its time."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import Any, Final

from ..common.figure import Figure
from ..common.options import Options, say

__all__ = ["measure"]

REPEATS: Final = 15

# In a fresh process, which has what pytest itself has by then.
PROBE: Final = """
import json, sys, time
import pluggy, pytest
before = set(sys.modules)
began = time.perf_counter()
import pytest_propolis.plugin
took_s = time.perf_counter() - began
brought = set(sys.modules) - before
foreign = sorted(
    name for name in brought
    if name.partition(".")[0] not in {"pytest_propolis", "pytest", "_pytest", "pluggy", *sys.stdlib_module_names}
)
print(json.dumps({"took_s": took_s, "foreign": foreign, "modules": len(brought)}))
"""


def measure(options: Options) -> list[Figure]:
    say("import")
    probes = [_probe() for _ in range(options.repeated(REPEATS))]
    foreign = probes[0]["foreign"]
    took_s = [probe["took_s"] for probe in probes]
    return [
        Figure(
            name="import pytest_propolis.plugin: foreign modules",
            measured=", ".join(foreign) or "none",
            bound="none",
            met=not foreign,
        ),
        Figure(
            name=f"its time after pytest's own import, n={len(probes)}",
            measured=f"{median(took_s) * 1000:.1f} ms ({probes[0]['modules']} modules)",
        ),
    ]


def _probe() -> dict[str, Any]:
    finished = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True, cwd="/")
    probe: dict[str, Any] = json.loads(finished.stdout)
    return probe
