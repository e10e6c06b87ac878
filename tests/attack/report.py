"""The runs as tables in Markdown, and their place in docs/evaluation.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench.docs import put
from bench.report import table
from tests.attack.cited import Result
from tests.attack.runs import COLUMNS, ROWS, Cell
from tests.attack.scene import OURS

_ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = _ROOT / "docs" / "evaluation.md"
DRAFT = _ROOT / "build" / "evaluation.md"  # as it would be with what the last run has found, also where that is not as it has to be
_SESSION = re.compile(r"\b[0-9a-f]{32}\b")


def attacks(cells: Sequence[Cell], before: str = "") -> str:
    """Attacks down, transports across; ``before``: such a table, whose rows stay where there is no newer one."""
    columns = list(dict.fromkeys(cell.column for cell in cells)) or list(COLUMNS)
    found = {(cell.attack.key, cell.column.key): cell for cell in cells}
    lines = _rows(before)
    for attack in dict.fromkeys(cell.attack for cell in cells):
        lines[attack.title] = [[attack.title, *(_words(found.get((attack.key, column.key))) for column in columns)]]
    return table(["attack", *(column.title for column in columns)], _in_order(lines))


def _rows(text: str) -> dict[str, list[list[str]]]:
    """The rows of a table in Markdown by their first cell."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines()[2:]:
        row = [cell.strip() for cell in line.strip("|").split(" | ")]
        found.setdefault(row[0], []).append(row)
    return found


def _in_order(lines: dict[str, list[list[str]]]) -> list[list[str]]:
    return [row for attack in ROWS for row in lines.get(attack.title, [])]


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.verdict is None:
        return "no verdict"
    return cell.verdict.cell() + ("; the guard reports it" if cell.attack.guard and cell.verdict.facts.guard else "")


def words(cells: Sequence[Cell], before: str = "") -> str:
    """What xensecure said under each attack that it noticed: the first line with SECURITY, or else the source's first."""
    lines = _rows(before)
    for attack in dict.fromkeys(cell.attack for cell in cells):
        lines[attack.title] = [
            [attack.title, cell.column.title.removeprefix("xensecure, by "), f"`{_SESSION.sub('…', line)}`"]
            for cell in cells
            if cell.attack is attack and cell.column.key in OURS and (line := _line(cell))
        ]
    return table(["attack", "by", "what the operator reads"], _in_order(lines))


def _line(cell: Cell) -> str:
    facts = cell.verdict.facts if cell.verdict else None
    if facts is None:
        return ""
    if cell.attack.guard and facts.guard and not facts.security:
        return facts.guard[0]
    if facts.arrived and not facts.security:
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
    """Bring the page up to date with what was run; ``page``: or write it to another place."""
    text = PAGE.read_text(encoding="utf-8")
    text = put(text, "attacks", attacks(cells, _between(text, "attacks")))
    text = put(text, "words", words(cells, _between(text, "words")))
    if results:
        text = put(text, "cited", cited(results))
    if frames:
        text = put(text, "frames", frames)
    page.parent.mkdir(exist_ok=True)
    page.write_text(text, encoding="utf-8")


def _between(text: str, name: str) -> str:
    return text.partition(f"<!-- {name}: begin -->\n")[2].partition(f"<!-- {name}: end -->")[0]
