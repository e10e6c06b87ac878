"""``python -m tests.xen.analyse FILE…``: what is in a recorded migration stream (plain or zstd): pages that are zero, sent again, the same again."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tests.xl.records import PAGE_SIZE, PFN_MASK, LibxcType, PageData, StreamReader, has_data

_ZERO = bytes(PAGE_SIZE)


@dataclass
class Pages:
    """Counts of pages, and of each page frame the digest of what was sent of it last."""

    sent: int = 0
    zero: int = 0
    again: int = 0
    same: int = 0
    without_data: int = 0
    packed: int = 0  # bytes of the pages after zlib -1, record by record
    passes: list[int] = field(default_factory=list)  # pages in each pass over the memory
    _last: dict[int, bytes] = field(default_factory=dict)
    _previous: int = -1

    def take(self, data: PageData) -> None:
        """One PAGE_DATA record."""
        at = 0
        for entry in data.entries:
            frame = entry & PFN_MASK
            if frame < self._previous or not self.passes:
                self.passes.append(0)
            self._previous = frame
            if not has_data(entry):
                self.without_data += 1
                continue
            page = data.pages[at : at + PAGE_SIZE]
            at += PAGE_SIZE
            self._page(frame, page)
        self.packed += len(zlib.compress(data.pages, 1))

    def _page(self, frame: int, page: memoryview) -> None:
        self.passes[-1] += 1
        self.sent += 1
        self.zero += page == _ZERO
        digest = hashlib.blake2b(page, digest_size=16).digest()
        before = self._last.get(frame)
        if before is not None:
            self.again += 1
            self.same += before == digest
        self._last[frame] = digest

    @property
    def frames(self) -> int:
        """How many different page frames were sent."""
        return len(self._last)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.suffix != ".zst":
        with path.open("rb") as file:
            yield file
        return
    with subprocess.Popen(["zstd", "-dcq", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout  # type: ignore[misc]
        process.stdout.close()


def analyse(path: Path) -> str:
    """A table in Markdown of what is in the stream."""
    kinds: Counter[str] = Counter()
    pages = Pages()
    with _opened(path) as file:
        reader = StreamReader(file)
        reader.xl_header()
        for record in reader.records():
            kinds[record.kind.name] += 1
            if record.kind is LibxcType.PAGE_DATA:
                pages.take(PageData.parse(record.body))
        size = reader.offset
    if not pages.sent:
        return f"{size} bytes, no pages\n"
    rows = [
        ("bytes", f"{size}"),
        ("pages sent", f"{pages.sent} in {kinds['PAGE_DATA']} records, of {pages.frames} frames; {pages.without_data} frames without data"),
        ("pages that are zero", f"{pages.zero / pages.sent:.1%}"),
        ("pages sent again", f"{pages.again / pages.sent:.1%}"),
        ("of these the same as before", f"{pages.same / max(1, pages.again):.1%}"),
        ("pages after zlib -1", f"{pages.packed / (pages.sent * PAGE_SIZE):.1%}"),
        ("pages in each pass", ", ".join(str(count) for count in pages.passes if count)),
    ]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write(f"{name}\n{analyse(Path(name))}")
