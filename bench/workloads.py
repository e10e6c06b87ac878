"""What is carried: random pages, and streams that xl has written when guests moved."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# programs.c: a record carries 4 MiB of pages behind its header.
_RECORD_MIB = 4
_RECORD_BYTES = (_RECORD_MIB << 20) + 16 + 1024 * 8

SMALL = Path(__file__).parent.parent / "tests" / "data" / "migrate-pv-small.up.xz"
# Bytes of a recorded stream that says something: a whole guest's, and too long for a compressor to find it again when it is repeated
# (zstd's window is 8 MiB at most unless it is told otherwise: RFC 8878, 3.1.1.1.2).
REAL = 64 << 20
STREAMS_MAX = 2  # recorded streams that are measured: the largest
_RUN_MIN, _PIECE = 64, 8  # bytes: docs/protocol.md, F14 and F15
_UNPACK = {".zst": "zstd", ".xz": "xz", ".gz": "gzip"}


@dataclass(frozen=True)
class Workload:
    """A stream: its name, what ``programs write`` is told, and how many bytes that makes.

    ``real``: a whole recorded stream. ``least``: the share of its bytes that is left without its runs of zeros.
    """

    name: str
    arguments: tuple[str, ...]
    size: int
    real: bool = False
    least: float = 1.0


def random_pages(mib: int) -> Workload:
    """So many MiB of random pages, down to a multiple of 4."""
    return Workload("random pages", (str(mib),), mib // _RECORD_MIB * _RECORD_BYTES)


def recorded(path: Path, mib: int) -> Workload:
    """A stream in a file, repeated up to at least so many MiB."""
    size = path.stat().st_size
    times = max(1, -(-(mib << 20) // size))
    return Workload(path.name, (str(path), str(times)), size * times, real=size >= REAL, least=_least(path))


@functools.cache
def _least(path: Path) -> float:
    """No run that an elided frame may leave out is in that share (docs/protocol.md, F15: 64 zeros at least, and 8 bytes in their place)."""
    stream = path.read_bytes()
    runs = sum(found.end() - found.start() - _PIECE for found in re.finditer(rb"\0{%d,}" % _RUN_MIN, stream))
    return 1 - runs / len(stream)


def quarter(workload: Workload) -> Workload:
    """The same content, a quarter as long or a little more."""
    mib = workload.size >> 22
    return recorded(Path(workload.arguments[0]), mib) if len(workload.arguments) > 1 else random_pages(mib)


def find_streams(given: Sequence[Path]) -> list[Path]:
    """The streams that were named; else those that ``make xen-record`` has made; else a small one that is always there."""
    if given:
        return list(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xensecure" / "streams"
    made = sorted(cache.glob("*.up.zst"), key=lambda path: path.stat().st_size, reverse=True)
    return made[:STREAMS_MAX] or [SMALL]


def unpack(path: Path, folder: Path) -> Path:
    """The stream as it is written, in a file of ``folder``; OSError or CalledProcessError if there is none."""
    program = _UNPACK.get(path.suffix)
    name = path.name
    for ending in (*_UNPACK, ".bin", ".up"):
        name = name.removesuffix(ending)
    target = folder / name
    with path.open("rb") as packed, target.open("wb") as plain:
        subprocess.run([program, "-dc"] if program else ["cat"], stdin=packed, stdout=plain, check=True)
    return target


def memory_folder() -> str | None:
    """A place for files in memory; None (the usual place for temporary files) where there is none."""
    shared = "/dev/shm"  # noqa: S108 - a folder of our own is made in it
    return shared if os.access(shared, os.W_OK) else None
