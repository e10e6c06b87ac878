#!/usr/bin/python3
"""A corpus as text and as libFuzzer has it.

    corpus.py unpack FILE FOLDER           a file each
    corpus.py pack FOLDER FILE [BYTES]     the shortest ones, up to so many bytes in all
"""

from __future__ import annotations

import sys
from pathlib import Path

KEPT_BYTES = 12_000  # of each target, in all
LONGEST = 512  # bytes of one input


def unpack(file: Path, folder: Path) -> None:
    """The lines of a corpus as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(file.read_text("ascii").splitlines()):
        if not line.startswith("#"):
            (folder / f"seed-{number:04}").write_bytes(bytes.fromhex(line.partition("#")[0].strip()))


def pack(folder: Path, file: Path, most: int) -> None:
    """Files as lines; the lines with comments stay."""
    head = [line for line in file.read_text("ascii").splitlines() if "#" in line] if file.exists() else []
    lines, kept = [], 0
    for data in sorted({path.read_bytes() for path in folder.iterdir()}, key=lambda data: (len(data), data)):
        if len(data) <= LONGEST and kept + len(data) <= most:
            kept += len(data)
            lines.append(data.hex())
    file.write_text("\n".join([*head, *lines]) + "\n", "ascii")


if __name__ == "__main__":
    if sys.argv[1] == "unpack":
        unpack(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        pack(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else KEPT_BYTES)
