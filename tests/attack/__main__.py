"""The command: ``python -m tests.attack [--only ROW,…] [--against COLUMN,…] [--write-docs]``; ``make attack ATTACK="…"``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from types import FrameType

from tests.attack import cited, report
from tests.attack.frames import key_frames
from tests.attack.runs import COLUMNS, NEEDED, ROWS, Cell, missing_tools, run
from tests.attack.segment import NoSegmentError


def _say(cell: Cell) -> None:
    words = cell.verdict.cell() if cell.verdict else f"NO VERDICT: {cell.failure}"
    print(f"{cell.attack.key:16} {cell.column.key:13} {cell.seconds:5.1f} s  {words}", flush=True)


_OWN_PID = os.getpid()


def _end(_signum: int, _frame: FrameType | None) -> None:
    if os.getpid() != _OWN_PID:
        os._exit(0)  # a fork of pyroute2's: the segment is not its to remove
    raise SystemExit(143)  # so that the segment and all programs on it are ended


def main() -> int:
    """Run, print, and complain; the exit status says whether anything was not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    rows = f"of {', '.join(row.key for row in ROWS)}; cited: the tests that are named; frames: the captures"
    parser.add_argument("--only", default="", metavar="ROW,…", help=rows)
    parser.add_argument("--against", default="", metavar="COLUMN,…", help=f"of {', '.join(column.key for column in COLUMNS)}")
    parser.add_argument("--write-docs", action="store_true", help="bring docs/evaluation.md up to date: with --only, those rows of it")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    if missing := missing_tools((*NEEDED, "mitmdump", "tshark")):
        print(f"not here: {', '.join(missing)}: scripts/setup.sh attack", file=sys.stderr)
        return 1
    only, against = (set(filter(None, words.split(","))) for words in (given.only, given.against))
    began = time.monotonic()
    try:
        columns = [column for column in COLUMNS if not against or column.key in against]
        cells = run([row for row in ROWS if not only or row.key in only], columns, _say)
    except NoSegmentError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    results = cited.run() if not only or "cited" in only else []
    frames = key_frames() if not only or "frames" in only else ""
    complaints = [*filter(None, (cell.complaint() for cell in cells))]
    complaints += [f"{result.title}: {result.words}" for result in results if not result.passed]
    print(f"\n{report.attacks(cells)}\n{report.words(cells)}\n{report.cited(results)}\n{frames}")
    print(f"{len(cells)} attacks, {len(results)} groups of tests, {time.monotonic() - began:.0f} s; {len(complaints)} not as they have to be")
    print("\n".join(complaints))
    if not against:
        report.write(cells, results, frames, report.DRAFT)
        if given.write_docs and not complaints:
            report.write(cells, results, frames)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
