"""xensecure beside ssh and plain TCP: the same guest, by turns, for times that can be compared. Writes run/compare-MODE.md."""

from __future__ import annotations

import statistics

from tests.xen.common import RUN
from tests.xen.hosts import HOSTS
from tests.xen.moves import XENSECURE, Move, move, put_guest

TRANSPORTS = {"xensecure": XENSECURE, "ssh": "", "socat (plain TCP)": "-s lab-socat"}
TURNS = 5
_HEAD = """\
| transport | `xl migrate`, median of {turns} | least, most | guest not running, median | least, most |
|---|---|---|---|---|
"""


def beside_others(mode: str) -> str:
    """xensecure, ssh and plain TCP by turns, five moves each."""
    put_guest(mode, "g1", HOSTS["a"])
    moves: dict[str, list[Move]] = {name: [] for name in TRANSPORTS}
    at, other = HOSTS["a"], HOSTS["b"]
    for _ in range(TURNS):
        for name, options in TRANSPORTS.items():
            moves[name].append(move(at, other, "g1", options))
            at, other = other, at
    rows = "".join(_row(name, done) for name, done in moves.items())
    (RUN / f"compare-{mode}.md").write_text(_HEAD.format(turns=TURNS) + rows)
    medians = {name: statistics.median(one.seconds for one in done) for name, done in moves.items()}
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items())


def _row(name: str, moves: list[Move]) -> str:
    cells = []
    for values in ([one.seconds for one in moves], [one.downtime for one in moves]):
        cells += [f"{statistics.median(values):.2f} s", f"{min(values):.2f}, {max(values):.2f}"]
    return f"| {name} | {' | '.join(cells)} |\n"
