"""Generator of valid libxl/libxc migration streams of any size.

``python -m tests.xl.stream --mib 512 --seed 1 out.stream``

The stream is that of a PVH guest: an HVM image without device model. Its
contents are a function of the arguments alone.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.xl import records
from tests.xl.records import BATCH_PAGES, PAGE_SIZE, LibxcType, LibxlType

PAGES_PER_MIB = (1 << 20) // PAGE_SIZE
POOL_PAGES = 64 * PAGES_PER_MIB  # 64 MiB of random bytes, made once, then rotated
ROTATE = 1032  # bytes that each turn through the pool starts later, so that no page comes twice
ZERO_RUN = 8  # pages: zero pages stand together, as in a guest's free memory
RESEND_STEP = 8  # a pass re-sends every eighth page: 12 % as seen in the two-host lab


@dataclass(frozen=True)
class StreamSpec:
    """What a generated stream is a function of."""

    mib: int
    seed: int = 0
    zero_share: float = 0.3
    passes: int = 1

    def __post_init__(self) -> None:
        """Reject what makes no stream."""
        if self.mib < 1 or self.passes < 0 or not 0 <= self.zero_share <= 1:
            raise ValueError(f"no stream can be made of {self}")

    @property
    def pages(self) -> int:
        """Pages of the guest."""
        return self.mib * PAGES_PER_MIB


class _PagePool:
    """Page contents: slices of a random pool and of zeros, never copied here."""

    def __init__(self, spec: StreamSpec) -> None:
        self._random = random.Random(spec.seed)
        self._zero_share = spec.zero_share
        pages = min(POOL_PAGES, max(spec.pages, ZERO_RUN)) + 1
        self._pool = memoryview(self._random.randbytes(pages * PAGE_SIZE))
        self._zeros = memoryview(bytes(ZERO_RUN * PAGE_SIZE))
        self._cursor = 0
        self._turns = 0

    def take(self, count: int) -> Iterator[memoryview]:
        """The contents of the next count pages, in runs of equal kind."""
        while count > 0:
            run = min(count, ZERO_RUN)
            zero = self._random.random() < self._zero_share
            yield self._zeros[: run * PAGE_SIZE] if zero else self._data(run * PAGE_SIZE)
            count -= run

    def _data(self, size: int) -> memoryview:
        if self._cursor + size > len(self._pool):
            self._turns += 1
            self._cursor = self._turns * ROTATE % PAGE_SIZE
        start = self._cursor
        self._cursor += size
        return self._pool[start : start + size]


def _head() -> bytes:
    return b"".join(
        (
            records.LIBXL_HEADER.pack(records.LIBXL_IDENT, records.LIBXL_VERSION, 0),
            records.pack_record(LibxlType.LIBXC_CONTEXT),
            records.IMAGE_HEADER.pack(
                records.IMAGE_MARKER, records.IMAGE_IDENT, records.IMAGE_VERSION, 0, 0, 0
            ),
            records.DOMAIN_HEADER.pack(records.DomainType.HVM, 12, 0, 4, 17),
            records.pack_record(LibxcType.X86_CPUID_POLICY, struct.pack("<6I", 0, 0, 1, 0, 0, 0)),
            records.pack_record(LibxcType.X86_MSR_POLICY, struct.pack("<QII", 0xCE, 0, 0)),
            records.pack_record(LibxcType.STATIC_DATA_END),
        )
    )


def _tail() -> bytes:
    """State of the guest's CPU; sizes as a PVH guest of Xen 4.17 has them, contents made up."""
    return b"".join(
        (
            records.pack_record(LibxcType.X86_TSC_INFO, struct.pack("<IIQII", 1, 2600000, 0, 0, 0)),
            records.pack_record(LibxcType.HVM_CONTEXT, bytes(range(256)) * 32),
            records.pack_record(LibxcType.HVM_PARAMS, struct.pack("<IIQQ", 1, 0, 0, 1)),
            records.pack_record(LibxcType.END),
            records.pack_record(LibxlType.END),
        )
    )


def _write_pass(file: BinaryIO, pfns: range, pool: _PagePool) -> None:
    for start in range(0, len(pfns), BATCH_PAGES):
        batch = pfns[start : start + BATCH_PAGES]
        entries = struct.pack(f"<II{len(batch)}Q", len(batch), 0, *batch)
        length = len(entries) + len(batch) * PAGE_SIZE
        head = records.RECORD_HEADER.pack(LibxcType.PAGE_DATA, length) + entries
        file.write(b"".join((head, *pool.take(len(batch)))))


def write_stream(file: BinaryIO, spec: StreamSpec) -> None:
    """Write the stream: one pass over all pages, then spec.passes over an eighth of them."""
    pool = _PagePool(spec)
    file.write(_head())
    _write_pass(file, range(spec.pages), pool)
    for number in range(spec.passes):
        _write_pass(file, range(number % RESEND_STEP, spec.pages, RESEND_STEP), pool)
    file.write(_tail())


def make_stream(path: Path, spec: StreamSpec) -> Path:
    """Write the stream to a file and return its path."""
    with path.open("wb", buffering=1 << 20) as file:
        write_stream(file, spec)
    return path


def make_config(name: str, *, mib: int = 128) -> str:
    """A domain's configuration in libxl's JSON, as xl puts it before the stream."""
    config = {
        "c_info": {"type": "pvh", "name": name, "uuid": "5b1d8f3e-6a0c-4d57-9f0e-2c9a4e7b1d60"},
        "b_info": {"max_vcpus": 1, "max_memkb": mib * 1024, "target_memkb": mib * 1024},
        "on_reboot": "restart",
    }
    return json.dumps(config, indent=4) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write one stream as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.xl.stream", description=__doc__)
    parser.add_argument("output", type=Path, help="file to write, /dev/stdout for a pipe")
    parser.add_argument("--mib", type=int, default=128, help="size of the guest in MiB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zero-share", type=float, default=0.3, help="share of zero pages, 0 to 1")
    parser.add_argument("--passes", type=int, default=1, help="passes that re-send changed pages")
    given = parser.parse_args(arguments)
    spec = StreamSpec(given.mib, given.seed, given.zero_share, given.passes)
    make_stream(given.output, spec)
    return 0


if __name__ == "__main__":
    sys.exit(main())
