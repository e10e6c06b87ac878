"""A TCP relay on loopback that fails as it is told: late, slow, silent, reset, ended, half closed, refusing, out of order.

A script says for each connection, by its number, what is to happen to it; where a cut is due is found byte by byte (tests/faults/units.py).
Bounded in time and count: nothing outlives the relay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

from tests.faults.units import Layout, Part, Reader, Span, Unit, Way

CONNECTIONS_MAX = 8192
SECONDS_MAX = 900.0  # that a connection is carried
_PIECE = 1 << 18  # bytes read at once, and kept on the way
_LOOK = 0.02  # seconds between two looks at what tells nobody when it changes
_FLUSH = 1.0  # seconds for what has been written to leave before a reset takes it back
_LINGER = 10.0  # seconds that an ended connection is still read from
_REFUSE_ALL = 1 << 30
_PORTS = range(12000, 32000)  # below those that Linux gives to outgoing connections


class Kind(StrEnum):
    """What a cut does."""

    RESET = "reset"  # RST to both ends
    FIN = "fin"  # FIN to both ends, as if each had been told by the other
    HOLE = "hole"  # swallow both ways, and tell nobody
    HOLE_UP = "hole up"  # swallow what comes from the source
    HOLE_DOWN = "hole down"
    HALF = "half close"  # FIN on the way of the cut; the other way goes on
    STALL = "stall"  # hold everything for some seconds, then go on


@dataclass(frozen=True)
class Cut:
    """What happens on which way when ``count`` bytes have passed: of the unit, or of the part, or of the way.

    ``every``: to all other connections too. ``seconds``: of STALL; of the others: new connections are refused for so long.
    """

    way: Way
    count: int
    kind: Kind
    unit: Unit | None = None
    part: Part | None = None
    every: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a connection meets: ``delay`` in seconds each way, ``rate`` in bytes a second, cuts, and what it has to wait for."""

    cuts: tuple[Cut, ...] = ()
    delay: float = 0.0
    rate: float = 0.0
    hold: Callable[[], bool] | None = None  # nothing of the source's passes before this is true


PLAIN = Plan()
Script = Callable[[int], Plan]
_ANY = Layout(0, _REFUSE_ALL)  # for who asks for no part


class _Direction:
    """One way of one connection: what is under way on it, and when each piece of it is due."""

    def __init__(self, way: Way, source: socket.socket, sink: socket.socket, plan: Plan, layout: Layout) -> None:
        self.way, self.source, self.sink = way, source, sink
        self.queue: deque[tuple[float, memoryview | Cut | None]] = deque()  # None: its end
        self.queued = self.carried = 0
        self.swallow = self.read_ended = self.ended = False
        self.units: list[tuple[Unit, int]] = []
        self._plan, self._layout = plan, layout
        self._cuts = [cut for cut in plan.cuts if cut.way is way]
        self._passed: dict[Part, int] = {}
        self._reader = Reader()
        self._free = 0.0

    def take(self, data: bytes, now: float) -> None:
        """Put what came on its way, cut where it has to be."""
        if self.swallow:
            return
        known, spans = self._reader.feed(data) if data else (self._reader.rest(), [])
        while True:
            cut, at = self._find(spans)
            self._put(known[:at] if spans else known, now)
            if cut is None:
                break
            self.queue.append((self._free + self._plan.delay, cut))
            if cut.kind is not Kind.STALL:
                self.swallow = True
                return
            known, spans = known[at:], list(_behind(spans, at))
        if not data:
            self.queue.append((self._free + self._plan.delay, None))

    def _put(self, data: bytes, now: float) -> None:
        self._free = max(self._free, now) + (len(data) / self._plan.rate if self._plan.rate else 0.0)
        if data:
            self.queue.append((self._free + self._plan.delay, memoryview(data)))
            self.queued += len(data)

    def _find(self, spans: list[Span]) -> tuple[Cut | None, int]:
        """The first cut that these bytes come to, and how many of them pass before it."""
        before = 0
        for span in spans:
            part = self._layout.part(span.unit)
            passed = self._passed.get(part, 0)
            due = [(reach, cut) for cut in self._cuts if 0 < (reach := self._reach(cut, span, part, passed, before)) <= span.length]
            if due:
                reach, cut = min(due, key=lambda pair: pair[0])
                self._cuts.remove(cut)
                self._passed[part] = passed + reach
                return cut, before + reach
            self._passed[part] = passed + span.length
            before += span.length
            if span.start + span.length == span.whole:
                self.units.append((span.unit, span.whole))
        return None, before

    def _reach(self, cut: Cut, span: Span, part: Part, passed: int, before: int) -> int:
        """How many bytes of the span pass before the cut; not in it: any other number."""
        if cut.unit is not None:
            return cut.count - span.start if cut.unit == span.unit else 0
        if cut.part is not None:
            return cut.count - passed if cut.part is part else 0
        return cut.count - self.carried - self.queued - before

    def due(self) -> float | None:
        """When the next of it is due."""
        return self.queue[0][0] if self.queue else None

    @property
    def full(self) -> bool:
        """Whether no more can be taken for now."""
        return self.queued >= _PIECE + self._plan.rate * self._plan.delay


def _behind(spans: list[Span], at: int) -> Iterator[Span]:
    """What is left of spans without their first bytes."""
    for span in spans:
        if at < span.length:
            yield Span(span.unit, span.start + at, span.length - at, span.whole)
        at = max(0, at - span.length)


class Connection:
    """One connection through the relay, and the thread that carries it."""

    def __init__(self, relay: Proxy, number: int, near: socket.socket, far: socket.socket, plan: Plan) -> None:
        self.number = number
        self.over = False
        self._relay, self._plan = relay, plan
        self._up = _Direction(Way.UP, near, far, plan, relay.layout)
        self._down = _Direction(Way.DOWN, far, near, plan, relay.layout)
        self._ways = (self._up, self._down)
        self._silent: set[socket.socket] = set()
        self._until = time.monotonic() + SECONDS_MAX
        self._stalled = 0.0
        self._order: Cut | None = None
        self._lock = threading.Lock()  # nobody wakes a descriptor that is closed, or is another's by now
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for sock in (near, far):
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"connection {number}")
        self.thread.start()

    def carried(self, way: Way = Way.UP) -> int:
        """Bytes that have passed."""
        return (self._up if way is Way.UP else self._down).carried

    def units(self, way: Way) -> list[tuple[Unit, int]]:
        """The TLS records and frames that have passed whole, with their sizes."""
        return list((self._up if way is Way.UP else self._down).units)

    def cut(self, kind: Kind, seconds: float = 0.0) -> None:
        """Cut it now, wherever it is."""
        self.obey(Cut(Way.UP, 0, kind, seconds=seconds))

    def obey(self, cut: Cut) -> None:
        """Let the thread do that."""
        with self._lock:
            if not self.over:
                self._order = cut
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            self._carry()
        except OSError:
            self._reset()
        finally:
            for way in self._ways:
                way.source.close()
            with self._lock:
                self.over = True
                os.close(self._wake)

    def _carry(self) -> None:
        while not all(way.ended for way in self._ways) and time.monotonic() < self._until:
            for descriptor, events in self._poll():
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    if self._order is not None and not self._do(self._up, self._order):
                        return
                for way in self._ways:
                    if descriptor == way.source.fileno() and events & ~select.POLLOUT and not way.read_ended:
                        self._read(way)
            for way in self._ways:
                if not self._write(way):
                    return

    def _poll(self) -> list[tuple[int, int]]:
        now = time.monotonic()
        wanted: dict[int, int] = {self._wake: select.POLLIN}
        wait = self._until - now
        for way in self._ways:
            if not way.read_ended and (way.swallow or not way.full):
                wanted[way.source.fileno()] = wanted.get(way.source.fileno(), 0) | select.POLLIN
            due = way.due()
            if due is None:
                continue
            due = max(due, self._stalled)
            if due > now:
                wait = min(wait, due - now)
            elif self._held(way):
                wait = min(wait, _LOOK)
            else:
                wanted[way.sink.fileno()] = wanted.get(way.sink.fileno(), 0) | select.POLLOUT
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        return poll.poll(max(0.0, wait * 1000) + 1)

    def _held(self, way: _Direction) -> bool:
        return way.way is Way.UP and self._plan.hold is not None and not self._plan.hold()

    def _read(self, way: _Direction) -> None:
        try:
            data = way.source.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            if not way.swallow:
                raise
            data = b""
        way.read_ended = not data
        if way.swallow:
            way.ended = way.ended or (way.read_ended and not way.queue)
        way.take(data, time.monotonic())

    def _write(self, way: _Direction) -> bool:
        """Pass on what is due; False when the connection is over."""
        while way.queue and not self._held(way):
            due, item = way.queue[0]
            if max(due, self._stalled) > time.monotonic():
                return True
            if isinstance(item, memoryview):
                try:
                    done = way.sink.send(item)
                except BlockingIOError:
                    return True
                way.carried += done
                way.queued -= done
                way.queue[0] = (due, item[done:])
                if done < len(item):
                    return True
            way.queue.popleft()
            if item is None:
                way.sink.shutdown(socket.SHUT_WR)
                way.ended = True
            elif isinstance(item, Cut) and not self._do(way, item, planned=True):
                return False
        if way.swallow and way.read_ended:
            way.ended = True
        return True

    def _do(self, way: _Direction, cut: Cut, *, planned: bool = False) -> bool:
        """Make a cut; whether the connection is carried on, if only to swallow what comes."""
        if planned:
            self._relay.happened(self, cut)
        if cut.kind is Kind.STALL:
            self._stalled = time.monotonic() + cut.seconds
        elif cut.kind is Kind.RESET:
            self._reset()
            return False
        elif cut.kind is Kind.FIN:
            for each in self._ways:
                self._swallow(each)
                each.sink.shutdown(socket.SHUT_WR)
            self._until = min(self._until, time.monotonic() + _LINGER)
        elif cut.kind is Kind.HALF:
            self._swallow(way)
            way.sink.shutdown(socket.SHUT_WR)
        else:
            for each in self._ways:
                if cut.kind is Kind.HOLE or each.way.value in cut.kind.value:
                    self._swallow(each)
        return True

    def _swallow(self, way: _Direction) -> None:
        way.swallow = True
        way.queue.clear()
        way.queued = 0
        way.ended = way.read_ended

    def _reset(self) -> None:
        end = time.monotonic() + _FLUSH
        for way in self._ways:
            with contextlib.suppress(OSError):
                while _unsent(way.sink) and time.monotonic() < end:
                    time.sleep(0.001)
        for way in self._ways:
            with contextlib.suppress(OSError):
                way.sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            way.sink.close()


def _unsent(sock: socket.socket) -> int:
    number: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return number


def _listen() -> socket.socket:
    """A listening socket on a port that was asked for by its number, which it keeps when it is shut and listened on again; no outgoing one's."""
    while True:
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", random.choice(_PORTS)), backlog=64)


class Proxy:
    """Listens in the destination's place; ``script`` has a plan for each connection, ``on_cut`` is told of each planned cut, in its thread.

    ``address``: where it calls the destination from.
    """

    def __init__(
        self,
        port: int,
        script: Script = lambda _number: PLAIN,
        *,
        layout: Layout = _ANY,
        on_cut: Callable[[Cut], None] = lambda _cut: None,
        address: str = "127.0.0.1",
    ) -> None:
        self.layout = layout
        self.all: list[Connection] = []
        self.script, self.on_cut = script, on_cut
        self._target, self._address = ("127.0.0.1", port), address
        self._refuse_until = 0.0
        self._closing = False
        self._listener = _listen()
        self._listener.settimeout(0)
        self.port: int = self._listener.getsockname()[1]
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, daemon=True, name="fault proxy")
        self._thread.start()

    def refuse(self, seconds: float = float(_REFUSE_ALL)) -> None:
        """Answer new connections with RST for so long, as a host does where nobody listens."""
        self._refuse_until = time.monotonic() + seconds
        os.eventfd_write(self._wake, 1)

    def accept(self) -> None:
        """Refuse no more."""
        self.refuse(0)

    def happened(self, connection: Connection, cut: Cut) -> None:
        """A planned cut is about to be made."""
        if cut.kind is not Kind.STALL and cut.seconds:
            self.refuse(cut.seconds)
        if cut.every:
            self.cut(cut.kind, besides=connection)
        self.on_cut(cut)

    def cut(self, kind: Kind, *, besides: Connection | None = None) -> None:
        """Cut all that is there."""
        for connection in self.all:
            if connection is not besides and not connection.over:
                connection.cut(kind)

    def carried(self, way: Way = Way.UP) -> int:
        """Bytes over all connections."""
        return sum(connection.carried(way) for connection in self.all)

    def _run(self) -> None:
        listening = True
        while not self._closing:
            left = self._refuse_until - time.monotonic()
            if (left <= 0) is not listening:
                listening = left <= 0
                # Between the two the kernel answers with RST.
                self._listener.listen(64) if listening else self._listener.shutdown(socket.SHUT_RD)
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if listening:
                poll.register(self._listener, select.POLLIN)
            poll.poll(None if listening else max(0.0, left * 1000) + 1)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            if listening and not self._closing and self._refuse_until <= time.monotonic():
                with contextlib.suppress(OSError):
                    self._accept()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        number = len(self.all)
        if number >= CONNECTIONS_MAX:
            near.close()
            return
        try:
            far = socket.create_connection(self._target, timeout=5, source_address=(self._address, 0))
        except OSError:
            near.close()
            return
        self.all.append(Connection(self, number, near, far, self.script(number)))

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(10)
        self._listener.close()
        os.close(self._wake)
        self.cut(Kind.RESET)
        for connection in self.all:
            connection.thread.join(10)
