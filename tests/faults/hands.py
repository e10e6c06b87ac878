"""Which cuts a migration meets: every byte of the small phases, and as many bytes in the pages as are asked for, dealt out by a seed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.faults.proxy import PLAIN, Cut, Kind, Plan, Proxy
from tests.faults.units import GO, Layout, Part, Unit, Way
from xensecure.proto.messages import FrameType

SMALL = (Part.BANNER, Part.CONFIGURATION, Part.READY, Part.GO, Part.REPORT, Part.ENDING)
FINAL = (Part.GO, Part.REPORT, Part.ENDING)
_SMALL = 1024  # bytes of any phase but the pages
# Of each kind so many in a hundred: those that are found by silence take seconds, and what follows them is the same.
_WEIGHTS = {Kind.RESET: 44, Kind.FIN: 32, Kind.HALF: 10, Kind.HOLE: 8, Kind.HOLE_UP: 3, Kind.HOLE_DOWN: 3}


@dataclass(frozen=True)
class Recording:
    """What passed in a migration that nothing happened to: for each way its units with their sizes, in order."""

    units: dict[Way, list[tuple[Unit, int]]]

    @property
    def layout(self) -> Layout:
        """Where the stream has what: xl writes the configuration and GO each by itself, and what is written is sent at once (F9)."""
        data = [unit.offset for unit, _ in self.units[Way.UP] if unit.type == FrameType.DATA and unit.channel == 0]
        return Layout(configuration=data[1], go=data[-1])

    @property
    def is_typical(self) -> bool:
        """Whether each of the small phases has a frame of its own: on a machine that is busy one may be read together with what follows it."""
        ways = {Part.BANNER: Way.DOWN, Part.CONFIGURATION: Way.UP, Part.READY: Way.DOWN, Part.GO: Way.UP, Part.REPORT: Way.DOWN}
        return self.size(Way.UP, Part.GO) == GO + 32 and all(0 < self.size(way, part) < _SMALL for part, way in ways.items())

    def size(self, way: Way, part: Part) -> int:
        """Bytes of a part."""
        return sum(size for unit, size in self.units[way] if self.layout.part(unit) is part)


def record(proxy: Proxy) -> Recording:
    """From the first connection of a relay."""
    return Recording({way: proxy.all[0].units(way) for way in Way})


def kinds(rng: random.Random) -> Kind:
    """One of them, by its weight."""
    return rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]


def small_cuts(recording: Recording, rng: random.Random, parts: Sequence[Part]) -> list[Cut]:
    """A cut behind every byte of these phases, in both directions."""
    layout = recording.layout
    return [
        Cut(way, count, kinds(rng), unit=unit, part=layout.part(unit))
        for way in Way
        for unit, size in dict(recording.units[way]).items()
        if layout.part(unit) in parts
        for count in range(1, size + 1)
    ]


def page_cuts(recording: Recording, rng: random.Random, number: int, *, share: float) -> list[Cut]:
    """So many cuts somewhere in the pages, within that share of them from the beginning of a connection on."""
    found = []
    for _ in range(number):
        way = rng.choice((Way.UP, Way.UP, Way.DOWN))
        count = rng.randint(1, max(1, int(recording.size(way, Part.PAGES) * share)))
        found.append(Cut(way, count, kinds(rng), part=Part.PAGES, every=rng.random() < 0.75))
    return found


def handshake_cuts(recording: Recording, rng: random.Random, number: int) -> list[Cut]:
    """So many cuts somewhere in the key exchange."""
    ways = [rng.choice(list(Way)) for _ in range(number)]
    return [Cut(way, rng.randint(1, recording.size(way, Part.HANDSHAKE)), kinds(rng), part=Part.HANDSHAKE) for way in ways]


class Hand:
    """The cuts of one migration: each connection meets the nearest that is left of every unit and part, until one of them has been made.

    ``first``: the first connection is as good as any other for them; else those of the key exchange are for the later ones. ``most``: cuts at most.
    """

    def __init__(self, cuts: Iterable[Cut], *, first: bool = False, most: int = 1 << 30) -> None:
        self.left = list(cuts)
        self.made: list[Cut] = []
        self._first, self._most = first, most
        self._lock = threading.Lock()

    def plan(self, number: int) -> Plan:
        """For a connection (Proxy's script)."""
        with self._lock:
            if len(self.made) >= self._most:
                return PLAIN
            nearest: dict[tuple[Way, Unit | None, Part | None], Cut] = {}
            for cut in self.left:
                if cut.part in (Part.HANDSHAKE, Part.OPENING) and number == 0 and not self._first:
                    continue
                key = (cut.way, cut.unit, cut.part)
                if key not in nearest or cut.count < nearest[key].count:
                    nearest[key] = cut
            return Plan(tuple(nearest.values()))

    def on_cut(self, cut: Cut) -> None:
        """It has been made."""
        with self._lock:
            if cut in self.left:
                self.left.remove(cut)
                self.made.append(cut)
