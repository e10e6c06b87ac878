"""The link cut everywhere: ``python -m tests.faults.sweep [--seed N] [--random 500] [--write-docs]`` (make faults).

Three modes, each with two hosts of its own. *resumed*: one migration after the other is cut again and again, and has to arrive all the same.
*given up*: nothing waits for a new link before GO, so that each cut ends a migration, and the domain has to run on at the source. *outage*: at GO and
report no connection can be made for longer than the destination waits, and the source has to ask what became of its GO (S8, S9).
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tests.faults import tables
from tests.faults.books import Books, Result, Verdict
from tests.faults.hands import FINAL, SMALL, Hand, Recording, handshake_cuts, page_cuts, record, small_cuts
from tests.faults.proxy import Cut, Proxy
from tests.faults.units import Part, Way
from tests.pair import Pair
from tests.xl.stream import StreamSpec, make_stream
from xensecure.proto.messages import FrameType

_SILENCE = 3  # seconds; with less a machine that has much to do loses links by itself
_HANDSHAKE = 10  # seconds that a destination waits beside (S6)
_STREAM = StreamSpec(4, seed=3)
_PER_MIGRATION = 24  # cuts of the small phases
_PAGES_PER_MIGRATION = 10
_PATIENCE = 90.0  # seconds that one migration may take: the cuts that are found by silence cost some
_LAST = (Part.REPORT, Part.ENDING)
_TRIES = 12  # migrations that a cut is dealt to before it counts as not to be reached: a busy machine packs frames in other ways
_ADDRESSES = 12  # the relays call from so many, for a destination takes eight strangers of one at a time


class Mode(StrEnum):
    """What happens to a migration whose link is lost."""

    RESUMED = "resumed"
    GIVEN_UP = "given up"
    OUTAGE = "outage"


_WINDOWS = {Mode.RESUMED: 300, Mode.GIVEN_UP: 0, Mode.OUTAGE: 1}  # seconds: resume_window of the source
# A destination that has not heard that its last word came waits for the source, which has ended. Where cuts come that late, it waits so long.
_LAST_WINDOW = 2
OUTAGE_SECONDS = _WINDOWS[Mode.OUTAGE] + _SILENCE + _HANDSHAKE + 2.0


def settings() -> str:
    """The configuration of both hosts."""
    return f"[defaults]\nkeepalive = 1\nsilence = {_SILENCE}\nfinal_window = 300\n"


@dataclass
class Run:
    """One migration, the cuts that it met, and how it came out."""

    mode: Mode
    cuts: list[Cut]
    result: Result
    connections: int
    heard: bool  # whether the destination had sent a byte over the first of them

    @property
    def verdict(self) -> Verdict:
        """Also WRONG: given up where it must not be, or the other way round."""
        if self.result.verdict not in expected(self.mode, self.cuts, heard=self.heard):
            return Verdict.WRONG
        return self.result.verdict

    def describe(self) -> str:
        """For whoever has to find out."""
        cuts = "; ".join(f"{cut.kind} {cut.way} at {cut.count} of {cut.unit or cut.part}{' of all' if cut.every else ''}" for cut in self.cuts)
        return f"[{self.mode}] {self.result.domain}: {self.result.verdict}: {self.result.faults}; cuts: {cuts}\n{self.result.said}"


def expected(mode: Mode, cuts: list[Cut], *, heard: bool) -> set[Verdict]:
    """How a migration with these cuts may come out."""
    if not cuts:
        return {Verdict.SURVIVED}
    if mode is Mode.RESUMED:
        return {Verdict.SURVIVED}
    parts = {cut.part for cut in cuts}
    if parts <= {Part.REPORT, Part.ENDING}:
        return {Verdict.SURVIVED}
    if parts == {Part.HANDSHAKE} and not heard:
        return {Verdict.SURVIVED, Verdict.GIVEN_UP}  # T6: a source that has not heard a byte takes it for want of room there, and comes again
    # With ready delivered xl may have said GO before anybody noticed.
    return {Verdict.SURVIVED, Verdict.GIVEN_UP} if parts & {Part.READY, Part.GO} else {Verdict.GIVEN_UP}


@dataclass
class Site:
    """Two hosts of one mode, and what a migration between them looks like on the wire."""

    mode: Mode
    books: Books
    recording: Recording
    runs: list[Run] = field(default_factory=list)
    _turn: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def proxy(self, hand: Hand) -> Proxy:
        """A relay that plays a hand."""
        with self._lock:
            self._turn += 1
            address = f"127.0.1.{1 + self._turn % _ADDRESSES}"
        port = self.books.pair.destination.port
        return Proxy(port, hand.plan, layout=self.recording.layout, on_cut=hand.on_cut, address=address)

    def migrate(self, hand: Hand, options: str = "") -> Run:
        """One migration that meets these cuts."""
        with self.proxy(hand) as proxy:
            result = self.books.start(proxy, options, wait=_PATIENCE).finish()
            run = Run(self.mode, list(hand.made), result, len(proxy.all), heard=bool(proxy.all and proxy.all[0].units(Way.DOWN)))
        if run.verdict is not Verdict.WRONG:
            self.books.forget(result.domain)
        self.runs.append(run)
        return run


def typical(books: Books) -> Recording:
    """A recording of a migration as most of them are."""
    while True:
        with Proxy(books.pair.destination.port) as proxy:
            result = books.start(proxy).finish()
            result.require(Verdict.SURVIVED)
            recording = record(proxy)
        books.forget(result.domain)
        if recording.is_typical:
            return recording


@contextmanager
def site(mode: Mode, *, last: bool = False) -> Iterator[Site]:
    """Two hosts that have met, and one migration that was recorded. ``last``: the destination does not wait long for a source that may have ended."""
    with tempfile.TemporaryDirectory(prefix="xensecure-faults-") as folder:
        stream = make_stream(Path(folder) / "stream", _STREAM)
        window = _WINDOWS[mode]
        source, destination = (f"{settings()}resume_window = {seconds}\n" for seconds in (window, min(window, _LAST_WINDOW) if last else window))
        with Pair(source_extra=source, destination_extra=destination, resume_window=None) as pair:
            books = Books(pair, stream)
            yield Site(mode, books, typical(books))


class Sweep:
    """Deals cuts to migrations until all have been made, or cannot be. ``say``: is told of every run that came out wrong."""

    def __init__(self, place: Site, *, rng: random.Random, parallel: int, say: Callable[[str], None], seconds: float = 3600.0) -> None:
        self.site, self.rng, self.parallel, self.say = place, rng, parallel, say
        self.unreached: list[Cut] = []
        self._until = time.monotonic() + seconds

    def run(self, cuts: list[Cut], *, each: int, first: bool = False, options: Callable[[], str] = lambda: "") -> None:
        """Make them all, ``each`` in one migration; those that were not reached are dealt again."""
        for _ in range(_TRIES):
            if not cuts or time.monotonic() > self._until:
                break
            self.rng.shuffle(cuts)
            hands = [Hand(cuts[at : at + each], first=first) for at in range(0, len(cuts), each)]
            with ThreadPoolExecutor(self.parallel) as pool:
                list(pool.map(self._one, hands, [options() for _ in hands]))
            cuts = [cut for hand in hands for cut in hand.left]
        self.unreached += cuts

    def _one(self, hand: Hand, options: str) -> None:
        if time.monotonic() < self._until:
            run = self.site.migrate(hand, options)
            if run.verdict is Verdict.WRONG:
                self.say(run.describe())


def sweep_mode(mode: Mode, given: argparse.Namespace, rng: random.Random) -> tables.Outcome:
    """One mode from beginning to end."""
    runs: list[Run] = []
    left: list[str] = []
    unreached = 0
    deals = {Mode.RESUMED: (_resumed, _resumed_last), Mode.GIVEN_UP: (_given_up,), Mode.OUTAGE: (_outage,)}
    for deal in deals[mode]:
        with site(mode, last=deal is _resumed_last) as place:
            sweep = Sweep(place, rng=rng, parallel=given.parallel, say=lambda words: print(words, flush=True))
            deal(sweep, given)
            runs += place.runs
            left += place.books.left_behind()
            unreached += len(sweep.unreached)
    for words in left:
        print(f"[{mode}] left behind: {words}", flush=True)
    return tables.Outcome(str(mode), tables.rows(runs), unreached, left, len(runs))


def _resumed(sweep: Sweep, given: argparse.Namespace) -> None:
    """All but what is cut at its end."""
    recording, rng = sweep.site.recording, sweep.rng
    opening = [cut for cut in small_cuts(recording, rng, [Part.OPENING]) if cut.unit and cut.unit.type == FrameType.ACCEPT and cut.count <= 32]
    small = [cut for cut in small_cuts(recording, rng, [part for part in SMALL if part not in _LAST]) if not _is_late(cut, recording)]
    sweep.run(_thinned(small + opening + handshake_cuts(recording, rng, given.random // 4), given, rng), each=_PER_MIGRATION)
    lanes = rng.choices(("", "", "-o lanes=2", "-o lanes=4"), k=1 << 12)
    sweep.run(page_cuts(recording, rng, given.random, share=0.2), each=_PAGES_PER_MIGRATION, options=lanes.pop)


def _resumed_last(sweep: Sweep, given: argparse.Namespace) -> None:
    """What is cut at its end has no second cut, and leaves a destination that waits."""
    sweep.parallel *= 4
    recording, rng = sweep.site.recording, sweep.rng
    late = [cut for cut in small_cuts(recording, rng, [Part.GO]) if _is_late(cut, recording)]
    sweep.run(_thinned(small_cuts(recording, rng, _LAST) + late, given, rng), each=1)


def _is_late(cut: Cut, recording: Recording) -> bool:
    """Whether it is in the acknowledgement of GO: the report may have come before that, and the source then ends with it."""
    return cut.unit is not None and cut.unit.type == FrameType.ACK and recording.layout.part(cut.unit) is Part.GO


def _given_up(sweep: Sweep, given: argparse.Namespace) -> None:
    recording, rng = sweep.site.recording, sweep.rng
    cuts = small_cuts(recording, rng, [*SMALL, Part.OPENING]) + handshake_cuts(recording, rng, given.random // 4)
    cuts += [replace(cut, every=True) for cut in page_cuts(recording, rng, given.random // 5, share=1.0)]
    sweep.run(_thinned(cuts, given, rng), each=1, first=True)


def _outage(sweep: Sweep, given: argparse.Namespace) -> None:
    sweep.parallel *= 4
    cuts = [replace(cut, seconds=OUTAGE_SECONDS) for cut in small_cuts(sweep.site.recording, sweep.rng, FINAL)]
    sweep.run(_thinned(cuts, given, sweep.rng), each=1)


def _thinned(cuts: list[Cut], given: argparse.Namespace, rng: random.Random) -> list[Cut]:
    return cuts if given.every == 1 else rng.sample(cuts, max(1, len(cuts) // given.every))


def main(arguments: list[str] | None = None) -> int:
    """Sweep as the command line says; 1 if anything came out wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--random", type=int, default=500, metavar="N", help="cuts in the pages (and a quarter of that in the key exchange)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one in N of the small phases' bytes only, by the seed")
    parser.add_argument("--mode", type=Mode, action="append", choices=list(Mode), help="one or more of them")
    parser.add_argument("--parallel", type=int, default=6, metavar="N", help="migrations at once; some times that where they mostly wait")
    parser.add_argument("--write-docs", action="store_true", help="put the newest table of each mode into docs/reliability.md")
    given = parser.parse_args(arguments)
    print(f"seed {given.seed}", flush=True)
    wrong = 0
    for mode in given.mode or list(Mode):
        begun = time.monotonic()
        outcome = sweep_mode(mode, given, random.Random(f"{given.seed} {mode}"))
        outcome = replace(outcome, seed=given.seed, seconds=round(time.monotonic() - begun))
        tables.keep(outcome)
        print(tables.markdown([outcome]), flush=True)
        wrong += sum(row.wrong for row in outcome.rows) + len(outcome.left)
    print(f"wrong: {wrong}")
    if given.write_docs:
        tables.write("sweep", tables.markdown(tables.kept()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
