"""Which domain goes where, and when, if a host is emptied: pure, told what has ended and asked what begins next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..proto import limits

_MIB = 1 << 20


def bytes_needed(memory: int, vcpus: int) -> int:
    """What a domain takes of its destination's memory: its own (bytes) and what Xen and xl keep beside it.

    1 MiB a VCPU, 8 KiB a MiB, LIBXL_HVM_EXTRA_MEMORY: libxl__get_required_paging_memory and libxl__domain_need_memory_calculate of xen.git
    (tools/libs/light).
    """
    return memory + vcpus * _MIB + memory // 128 + 2 * _MIB


@dataclass(frozen=True)
class Guest:
    """A domain that is to go: its name, and the bytes that it needs where it goes."""

    name: str
    need: int


@dataclass(frozen=True)
class Room:
    """What a destination has to give: bytes that are free, and migrations that it takes at once."""

    host: str
    free: int
    sessions: int = limits.SESSIONS_MAX


@dataclass(frozen=True)
class Move:
    """One domain to one destination. ``before``: the other one on which it has been tried, if it has."""

    guest: Guest
    host: str
    before: str = ""


class Plan:
    """Places all guests, then says one after the other what begins.

    ``unplaced``: what fits nowhere. ``at_once``: migrations at the same time, 0: one to each destination. They are shared out evenly, so that no
    destination has more than its part: where xl balloons dom0 (autoballoon), it restores one domain after the other, and a second one only waits.
    """

    def __init__(self, guests: Sequence[Guest], rooms: Sequence[Room], *, at_once: int = 0) -> None:
        self._at_once = at_once or len(rooms)
        share = -(-self._at_once // max(1, len(rooms)))
        self._most = {room.host: min(share, room.sessions) for room in rooms}
        self._free = {room.host: room.free for room in rooms}
        # The emptiest host first spreads them out; if one then fits nowhere, the fullest first may leave it a hole that is large enough.
        orders = (_placed(guests, self._free, emptiest=True), _placed(guests, self._free, emptiest=False))
        where = max(orders, key=len)
        self.unplaced = [guest for guest in guests if guest.name not in where]
        self.waiting = [Move(guest, where[guest.name]) for guest in guests if guest.name in where]
        self.running: list[Move] = []
        for move in self.waiting:
            self._free[move.host] -= move.guest.need

    @property
    def free(self) -> Mapping[str, int]:
        """Bytes that each destination will have left."""
        return self._free

    def next(self) -> Move | None:
        """What begins now; None if nothing can."""
        if len(self.running) >= self._at_once:
            return None
        for move in self.waiting:
            if sum(other.host == move.host for other in self.running) < self._most[move.host]:
                self.waiting.remove(move)
                self.running.append(move)
                return move
        return None

    def ended(self, move: Move) -> None:
        """It is over, and the domain is not to be moved again."""
        self.running.remove(move)

    def failed(self, move: Move) -> Move | None:
        """It is over, and the domain is here as before: the move to another destination that is tried instead, once; None if there is none."""
        self.running.remove(move)
        if move.host in self._free:
            self._free[move.host] += move.guest.need
        return None if move.before else self._elsewhere(move, before=move.host)

    def lose(self, host: str) -> list[Move]:
        """That destination is gone: its waiting moves go to others; returns those for which there is no other."""
        self._free.pop(host, None)
        homeless = [move for move in self.waiting if move.host == host]
        self.waiting = [move for move in self.waiting if move.host != host]
        return [move for move in homeless if self._elsewhere(move, before=move.before) is None]

    def _elsewhere(self, move: Move, *, before: str) -> Move | None:
        others = {host: free for host, free in self._free.items() if host not in (move.host, before) and free >= move.guest.need}
        if not others:
            return None
        other = replace(move, host=max(others, key=lambda host: others[host]), before=before)
        self._free[other.host] -= other.guest.need
        self.waiting.append(other)
        return other


def _placed(guests: Iterable[Guest], free: Mapping[str, int], *, emptiest: bool) -> dict[str, str]:
    """The destination of each guest that finds one: the largest guest first, each to the emptiest (or fullest) one that has room for it."""
    left = dict(free)
    where: dict[str, str] = {}
    for guest in sorted(guests, key=lambda guest: -guest.need):
        fitting = [host for host in left if left[host] >= guest.need]
        if fitting:
            host = (max if emptiest else min)(fitting, key=lambda host: left[host])
            left[host] -= guest.need
            where[guest.name] = host
    return where
