"""What each layer of the engine costs by itself: layers.c."""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.build import build_with_engine

BACKENDS = ("ipsec-mb", "libcrypto")


def measure_layers(folder: Path) -> dict[str, float]:
    """CPU seconds a GiB of content, by layer."""
    done = subprocess.run([build_with_engine("layers", folder), *BACKENDS], capture_output=True, text=True, check=True)
    return {name: float(seconds) for name, _, seconds in (line.rpartition(" ") for line in done.stdout.splitlines())}
