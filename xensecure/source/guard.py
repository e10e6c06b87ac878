"""The neighbour guard: watches the way to the destination for as long as a session lasts, and says, or stops, what alarms.py finds suspicious.

A thread waits for word from the kernel; nothing of it is on the way of a byte. With ``neighbour = "refuse"`` an alarm breaks the session's
connections there and then, and what they had not yet sent is discarded.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..link.config import HostOptions
from ..link.connection import discard
from ..link.neighbours import Change, Endpoints, Neighbour, Watcher, Way, endpoints_of, find_way, is_installed, neighbours, plain_address
from ..link.say import say
from ..proto import limits
from ..proto.errors import ConfigurationError, ConnectError, XensecureError
from .alarms import Alarm, First, Known, Seen, describe, is_certain, judge, remember

PROGRAM = "xensecure"
_MISSING = "python3-pyroute2 is not installed"


@dataclass
class _Watched:
    """Connections to one address, what was first known of the way there, and what is suspicious of it now. ``ends``: the newest connection's."""

    ends: Endpoints
    socks: list[socket.socket] = field(default_factory=list)
    way: Way | None = None
    first: First = field(default_factory=First)
    alarms: tuple[Alarm, ...] = ()
    told: bool = False  # whether somebody has been told of alarms, and not yet that they are over

    def lives(self) -> bool:
        self.socks = [sock for sock in self.socks if sock.fileno() >= 0]
        return bool(self.socks)


class Guard:
    """Watches the connections of one session.

    Arguments: ``options``: ``neighbour``, ``interface``, ``bind`` and ``verbose`` count; ``wake``: is called, from another thread, when ``stopped``
    is set; ``tell``: is told of every alarm that is said. ``stopped``: with "refuse", why nothing more may be sent, in words. ConfigurationError
    where it is to refuse, and cannot watch.
    """

    def __init__(self, options: HostOptions, *, wake: Callable[[], None], tell: Callable[[Alarm], None] = lambda _: None) -> None:
        self.stopped = ""
        self._mode, self._bind, self._verbose = options.neighbour, options.bind, options.verbose > 0
        self._refuses = options.neighbour == "refuse"
        self._known = Known(interface=options.interface)
        self._wake, self._tell = wake, tell
        self._lock = threading.RLock()
        self._watched: dict[str, _Watched] = {}
        self._table: dict[tuple[int, str], Neighbour] = {}
        self._said: dict[Alarm, float] = {}
        self._alarmed_at = -limits.GUARD_STEADY_SECONDS
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if self._refuses and not is_installed():
            raise ConfigurationError(f'neighbour = "refuse" cannot be kept: {_MISSING}; install it, or set neighbour = "report"')

    def knows(self, addresses: tuple[str, ...]) -> None:
        """The peer is known by these addresses (or names, which play no part)."""
        found = set()
        for address in addresses:
            with contextlib.suppress(ValueError):
                found.add(plain_address(address))
        self._known = Known(self._known.interface, frozenset(found))

    def why_not(self, where: tuple[Any, ...]) -> str:
        """Why a socket address must not be connected to; "" if it may."""
        if not self._refuses or not self._known.interface:
            return ""
        ends = Endpoints.towards(where, self._bind)
        alarms = [] if ends.is_local else judge(First(), Seen(ends, find_way(ends)), self._known)
        for alarm in alarms:
            self._alarm(alarm)
        return alarms[-1].text if alarms else ""

    def watch(self, sock: socket.socket) -> None:
        """Watch a connection, from before the first byte of the domain is sent over it.

        ConnectError, with "refuse", if nothing may be sent over it.
        """
        ends = endpoints_of(sock) if self._mode != "off" else None
        if ends is None or ends.is_local:
            return
        with self._lock:
            watched = self._watched.setdefault(ends.peer, _Watched(ends))
            watched.ends = ends
            if sock not in watched.socks:
                watched.socks.append(sock)
            if self._refuses:
                self._read_table()
                self._look(watched)
                if watched.alarms:
                    watched.socks.remove(sock)
                    raise ConnectError(f"{_said(watched.alarms[-1])}; nothing is sent over this connection")
            if self._thread is None or (self._refuses and not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="neighbour guard", daemon=True)
                self._thread.start()
        self._ring()

    def is_suspicious(self) -> bool:
        """Whether, with "refuse", nothing may be sent just now: where a forger and the true host answer in turn, a moment's peace is none."""
        if not self._refuses:
            return False
        with self._lock:
            is_fresh = time.monotonic() - self._alarmed_at < limits.GUARD_STEADY_SECONDS
            return is_fresh or any(watched.alarms for watched in self._current())

    def why_broken(self) -> str:
        """Why connections were broken, once; "" if they were not."""
        why, self.stopped = self.stopped, ""
        return why

    def end(self) -> None:
        """Watch no more; but a first look has been taken, however short the session was."""
        self._is_over = True
        self._ring()
        if self._thread is not None:
            self._thread.join(limits.GUARD_END_SECONDS)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._bell, 1)

    # ---- the thread

    def _run(self) -> None:
        try:
            if not is_installed():
                raise ConfigurationError(f'{_MISSING}; install it, or set neighbour = "off"')
            with Watcher() as watcher:
                self._heed(Change(overrun=True))  # the tables as they are, once word of all changes to them comes
                self._wait(watcher)
        except Exception as error:  # noqa: BLE001 - whatever it is, the migration goes on, unless it must not unwatched
            words = str(error) if isinstance(error, XensecureError) else f"internal error, please report: {error!r}"
            say(PROGRAM, f"neighbour guard: the way to the destination is not watched: {words}")
            if self._refuses:
                with self._lock:
                    self._stop(f"the neighbour guard has ended: {words}")

    def _wait(self, watcher: Watcher) -> None:
        poll = select.poll()
        for descriptor in (watcher.fileno(), self._bell):
            poll.register(descriptor, select.POLLIN)
        while not self._is_over:
            is_time = not poll.poll(limits.GUARD_LOOK_SECONDS * 1000)
            change = watcher.read()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
                is_time = True
            change.ways |= is_time
            self._heed(change)

    def _heed(self, change: Change) -> None:
        with self._lock:
            for entry in change.neighbours:  # one by one: what is forged for a moment counts
                self._keep(entry)
                for watched in self._current():
                    if self._concerns(entry, watched):
                        self._look(watched, anew=False)
            if change.overrun:
                self._read_table()
            if change.ways or change.overrun:
                for watched in self._current():
                    self._look(watched)

    def _keep(self, entry: Neighbour) -> None:
        """As the kernel does: what is gone, or was never found, is not kept, or a sprayer of addresses could make the table as long as he likes."""
        if entry.hardware:
            self._table[entry.interface, entry.address] = entry
        else:
            self._table.pop((entry.interface, entry.address), None)

    def _concerns(self, entry: Neighbour, watched: _Watched) -> bool:
        """Whether an entry can change what is thought of a way: it is the next hop's, or has its hardware address, or there are alarms to end."""
        way = watched.way
        if way is None or way.interface != entry.interface:
            return False
        hop = self._table.get((way.interface, way.hop))
        return bool(watched.alarms) or entry.address == way.hop or (hop is not None and entry.hardware == hop.hardware)

    def _current(self) -> list[_Watched]:
        """What connections live on; while none does, what they have lived on."""
        every = list(self._watched.values())
        return [watched for watched in every if watched.lives()] or every

    def _read_table(self) -> None:
        self._table = {}
        for entry in neighbours():
            self._keep(entry)

    # ---- the verdict

    def _look(self, watched: _Watched, *, anew: bool = True) -> None:
        """Judge a way, and say what is new about it; ``anew``: look first which way it is."""
        if anew:
            watched.way = find_way(watched.ends)
        index = watched.way.interface if watched.way else 0
        seen = Seen(watched.ends, watched.way, tuple(entry for entry in self._table.values() if entry.interface == index))
        before, watched.first = watched.first, remember(watched.first, seen)
        if self._verbose and watched.first != before:
            say(PROGRAM, f"neighbour guard: {describe(watched.first, watched.ends)}")
        alarms = tuple(judge(watched.first, seen, self._known))
        if not alarms and not is_certain(watched.first, seen):
            return
        if alarms or watched.alarms:
            self._alarmed_at = time.monotonic()
        new = [alarm for alarm in alarms if alarm not in watched.alarms]
        watched.alarms = alarms
        if new and self._refuses:
            self._stop(_said(alarms[-1]))  # before it is said: whoever reads that may be slow
        for alarm in new:
            watched.told |= self._alarm(alarm)
        if watched.told and not alarms:
            watched.told = False
            say(PROGRAM, f"neighbour guard: the way to {watched.ends.peer} is as it was")

    def _alarm(self, alarm: Alarm) -> bool:
        """Say an alarm: the one place where one is said. Whether it was, for it may have been a moment ago."""
        now = time.monotonic()
        if now - self._said.get(alarm, -limits.GUARD_REPEAT_SECONDS) < limits.GUARD_REPEAT_SECONDS:
            return False
        self._said[alarm] = now
        say(PROGRAM, _said(alarm))
        self._tell(alarm)
        return True

    def _stop(self, why: str) -> None:
        """Let nothing more leave."""
        self.stopped = self.stopped or why
        for watched in self._watched.values():
            for sock in watched.socks:
                discard(sock)
        self._wake()


def _said(alarm: Alarm) -> str:
    return f"SECURITY: neighbour guard: {alarm.text}"
