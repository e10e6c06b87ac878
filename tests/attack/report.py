"""The runs as tables in Markdown, and their place in docs/evaluation.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench.docs import put
from bench.report import table
from tests.attack.cited import Result
from tests.attack.runs import Cell
from tests.attack.scene import OURS

_ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = _ROOT / "docs" / "evaluation.md"
DRAFT = _ROOT / "build" / "evaluation.md"  # as it would be with what the last run has found, also where that is not as it has to be
_SESSION = re.compile(r"\b[0-9a-f]{32}\b")


def attacks(cells: Sequence[Cell]) -> str:
    """Attacks down, transports across."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    found = {(cell.attack.key, cell.column.key): cell for cell in cells}
    attacks = dict.fromkeys(cell.attack for cell in cells)
    rows = [[attack.title, *(_words(found.get((attack.key, column.key))) for column in columns)] for attack in attacks]
    return table(["attack", *(column.title for column in columns)], rows)


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return cell.verdict.cell() if cell.verdict else "no verdict"


def words(cells: Sequence[Cell]) -> str:
    """What xensecure said under each attack that it noticed: the first line with SECURITY, or else the source's first."""
    rows = [
        [cell.attack.title, cell.column.title.removeprefix("xensecure, by "), f"`{_SESSION.sub('…', line)}`"]
        for cell in cells
        if cell.column.key in OURS and (line := _line(cell))
    ]
    return table(["attack", "by", "what the operator reads"], rows)


def _line(cell: Cell) -> str:
    facts = cell.verdict.facts if cell.verdict else None
    if facts is None or (facts.arrived and not facts.security):
        return ""
    said = [line for line in facts.stderr.splitlines() if line.startswith("xensecure: ") and not line.startswith("xensecure: sent ")]
    return next(iter((*facts.security, *said)), "")


def cited(results: Sequence[Result]) -> str:
    """The test suite's own attacks."""
    rows = [[result.title, result.outcome if result.passed else "not shown", result.words, _named(result)] for result in results]
    return table(["attack", "xensecure", "tests", "which"], rows)


def _named(result: Result) -> str:
    files = dict.fromkeys(test.partition("::")[0] for test in result.tests)
    return ", ".join(f"`tests/{name}`" for name in files)


def write(cells: Sequence[Cell], results: Sequence[Result], frames: str, page: Path = PAGE) -> None:
    """Bring the page up to date; ``page``: or write it to another place."""
    text = PAGE.read_text(encoding="utf-8")
    for name, content in (("attacks", attacks(cells)), ("words", words(cells)), ("cited", cited(results)), ("frames", frames)):
        text = put(text, name, content)
    page.parent.mkdir(exist_ok=True)
    page.write_text(text, encoding="utf-8")
