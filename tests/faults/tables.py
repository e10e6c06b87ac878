"""What the sweeps and the load come to: counts for build/ and docs/reliability.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.docs import put
from tests.faults.books import Verdict
from tests.faults.proxy import Kind
from tests.faults.units import Part

if TYPE_CHECKING:
    from tests.faults.sweep import Run

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build"
PAGE = ROOT / "docs" / "reliability.md"
_KINDS = {"RST": (Kind.RESET,), "FIN": (Kind.FIN,), "half close": (Kind.HALF,), "black hole": (Kind.HOLE, Kind.HOLE_UP, Kind.HOLE_DOWN)}


@dataclass(frozen=True)
class Row:
    """One phase and one kind of cut: ``runs`` migrations had ``cuts`` such cuts, and came out so."""

    part: str
    kind: str
    runs: int
    cuts: int
    survived: int
    given_up: int
    wrong: int


@dataclass(frozen=True)
class Outcome:
    """A mode's rows; ``unreached``: cuts that were never made; ``left``: what had not ended in the end."""

    mode: str
    rows: list[Row]
    unreached: int
    left: list[str]
    migrations: int
    seed: int = 0
    seconds: int = 0


def keep(outcome: Outcome) -> None:
    """Into build/faults.json, in the place of the same mode's last one."""
    found = {each.mode: each for each in kept()} | {outcome.mode: outcome}
    BUILD.mkdir(exist_ok=True)
    (BUILD / "faults.json").write_text(json.dumps([asdict(each) for each in found.values()], indent=1) + "\n")


def kept() -> list[Outcome]:
    """The last one of each mode."""
    try:
        found = json.loads((BUILD / "faults.json").read_text())
    except FileNotFoundError:
        return []
    return [Outcome(**{**each, "rows": [Row(**row) for row in each["rows"]]}) for each in found]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Count them."""
    found = []
    for part in Part:
        for name, kinds in _KINDS.items():
            met = [(run, count) for run in runs if (count := sum(cut.part is part and cut.kind in kinds for cut in run.cuts))]
            if met:
                verdicts = [run.verdict for run, _ in met]
                counts = [verdicts.count(verdict) for verdict in (Verdict.SURVIVED, Verdict.GIVEN_UP, Verdict.WRONG)]
                found.append(Row(str(part), name, len(met), sum(count for _, count in met), *counts))
    untouched = [run.verdict for run in runs if not run.cuts]
    if Verdict.WRONG in untouched:
        found.append(Row("none", "none", len(untouched), 0, 0, 0, untouched.count(Verdict.WRONG)))
    return found


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The tables of the page."""
    lines = []
    for outcome in outcomes:
        cuts, wrong = sum(row.cuts for row in outcome.rows), sum(row.wrong for row in outcome.rows)
        minutes = max(1, round(outcome.seconds / 60))
        lines += [
            f"**{outcome.mode}**: {outcome.migrations} migrations, {cuts} cuts, {outcome.unreached} places not reached, seed {outcome.seed}, "
            f"{minutes} min; wrong: {wrong}; left behind: {len(outcome.left)}",
            "",
            "| phase | kind of cut | runs | cuts | survived | cleanly given up | wrong |",
            "|---|---|--:|--:|--:|--:|--:|",
        ]
        for row in outcome.rows:
            cells = (row.part, row.kind, row.runs, row.cuts, row.survived, row.given_up, row.wrong)
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    return "\n".join(lines)


def write(name: str, content: str) -> None:
    """Put a section between its markers."""
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")
