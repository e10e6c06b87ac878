"""What each keeper does at the moment, in memory that all of them share: so many receive a domain, so many answer a CHECK."""

from __future__ import annotations

import enum
import mmap
from pathlib import Path

from ..link import store


class Use(enum.IntEnum):
    """What a slot's keeper does."""

    FREE = 0
    BEGUN = 1
    SESSION = 2
    CHECK = 3


class Slots:
    """A byte for each keeper that can be, ``number`` of them; ``state``: the folder under whose lock keepers of one host count."""

    def __init__(self, state: Path, number: int) -> None:
        self._state = state
        self._bytes = mmap.mmap(-1, number)

    def take(self) -> Slot | None:
        """A free one, for a keeper that is about to be; None if there is none."""
        at = self._bytes.find(bytes([Use.FREE]))
        if at < 0:
            return None
        self._bytes[at] = Use.BEGUN
        return Slot(self, at)

    def put(self, at: int, use: Use) -> None:
        """Note what a slot's keeper does."""
        self._bytes[at] = use

    def begin(self, at: int, use: Use, most: int) -> bool:
        """Note that a keeper begins something that at most so many may do at once; False if they do."""
        with store.locked(self._state):  # keepers count at the same time
            if self.count(use) >= most:
                return False
            self._bytes[at] = use
            return True

    def count(self, use: Use) -> int:
        """How many keepers do that."""
        return self._bytes[:].count(use)


class Slot:
    """One keeper's place among the others."""

    def __init__(self, slots: Slots, at: int) -> None:
        self._slots = slots
        self._at = at

    def begin(self, use: Use, most: int) -> bool:
        """Begin something that at most so many keepers may do at once; False if they do."""
        return self._slots.begin(self._at, use, most)

    def count(self, use: Use) -> int:
        """How many keepers do that at the moment."""
        return self._slots.count(use)

    def free(self) -> None:
        """The keeper has gone."""
        self._slots.put(self._at, Use.FREE)
