"""Cuts a recorded migration down to a few pages for ``tests/data``.

``python -m tests.xl.cut_stream migrate-pv-128.up.bin migrate-pv-small.up.xz``

The input is all that a source's xl wrote: xl header, libxl stream, GO. Every
record stays, only most pages of each PAGE_DATA record go. What stays of them
has pages that were sent again with other contents.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from pathlib import Path
from typing import BinaryIO

from tests.xl import records
from tests.xl.records import PAGE_SIZE, LibxcType, PageData, Record, StreamReader

IMAGE_HEADERS = records.IMAGE_HEADER.size + records.DOMAIN_HEADER.size


def cut_page_data(record: Record, wanted: set[int]) -> bytes:
    """The record with its first entry and those of the wanted pfns only."""
    data = PageData.parse(record.body)
    entries, pages, position = [], [], 0
    for index, entry in enumerate(data.entries):
        size = PAGE_SIZE if records.has_data(entry) else 0
        if index == 0 or entry & records.PFN_MASK in wanted:
            entries.append(entry)
            pages.append(data.pages[position : position + size])
        position += size
    return records.pack_page_data(entries, b"".join(pages))


def last_pfns(file: BinaryIO, count: int) -> set[int]:
    """Some pfns of the last pass: pages that were sent before, with other contents."""
    reader = StreamReader(file)
    reader.xl_header()
    last = b""
    for record in reader.records():
        if record.kind is LibxcType.PAGE_DATA:
            last = record.body
    file.seek(0)
    entries = PageData.parse(last).entries
    return {entry & records.PFN_MASK for entry in entries[:: max(1, len(entries) // count)]}


def cut(file: BinaryIO, resent: int) -> bytes:
    """The whole direction from source to target, cut; resent is a number of pages."""
    wanted = last_pfns(file, resent)
    reader = StreamReader(file)
    reader.xl_header()
    head_size = reader.offset + records.LIBXL_HEADER.size
    parts = []
    for record in reader.records():
        if record.kind is LibxcType.PAGE_DATA:
            parts.append(cut_page_data(record, wanted))
        else:
            parts.append(records.pack_record(record.kind, record.body))
        if record.kind is records.LibxlType.LIBXC_CONTEXT:
            parts.append(_copy(file, record, IMAGE_HEADERS))
    rest = file.read()
    file.seek(0)
    return b"".join((file.read(head_size), *parts, rest))


def _copy(file: BinaryIO, after: Record, size: int) -> bytes:
    """The bytes that follow a record; the file's position stays as it is."""
    position = file.tell()
    file.seek(after.offset + after.size)
    data = file.read(size)
    file.seek(position)
    return data


def main() -> int:
    """Cut one file as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.xl.cut_stream", description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--resent", type=int, default=6, help="re-sent pages to keep")
    given = parser.parse_args()
    with given.input.open("rb") as file:
        small = cut(file, given.resent)
    given.output.write_bytes(lzma.compress(small, preset=9 | lzma.PRESET_EXTREME))
    return 0


if __name__ == "__main__":
    sys.exit(main())
