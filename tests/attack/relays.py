"""What the attacker does with connections that come to him: passes them on, looks for the credential, changes it or a bit, records, cuts."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from types import TracebackType
from typing import Self

from tests.attack.places import INSTEAD, PLANT, LabError
from tests.attack.segment import ATTACKER, Family, Segment

_PIECE = 1 << 16
_HELD_BACK = len(PLANT) - 1  # bytes that may be the beginning of the credential


class Relay:
    """Listens at the attacker's, and carries each connection to the target; what it does to the first one is for classes below."""

    def __init__(self, segment: Segment, target: str, port: int, family: Family = Family.IPV4) -> None:
        self._segment = segment
        self._target = (target, port)
        self._family = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
        self.connections = 0
        self.carried = 0  # bytes from the source, over all connections
        self.read = 0  # credentials seen
        self.recorded = bytearray()  # all that the source sent over the first connection
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._over = False
        with segment.inside(ATTACKER):
            self._listener = socket.create_server(("", 0), family=self._family)
        self._listener.settimeout(0.2)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._segment.enter(ATTACKER)
        while not self._over:
            with contextlib.suppress(TimeoutError):
                near, _ = self._listener.accept()
                self._sockets.append(near)
                self.connections += 1
                self._start(self._connect, near, self.connections)

    def _connect(self, near: socket.socket, number: int) -> None:
        self._segment.enter(ATTACKER)
        with near, contextlib.suppress(OSError), socket.create_connection(self._target, timeout=10) as far:
            far.settimeout(None)
            self._sockets.append(far)
            self.carry(near, far, number)

    def carry(self, near: socket.socket, far: socket.socket, number: int) -> None:
        """Both directions, until either has ended, and the other within a second."""
        self.pump(near, far, number)

    def pump(self, near: socket.socket, far: socket.socket, number: int) -> None:
        """Carry bytes; up() and down() see them first, and say what goes on (None: cut the connection)."""
        poll = select.poll()
        open_ends = {near.fileno(): (near, far), far.fileno(): (far, near)}
        for descriptor in open_ends:
            poll.register(descriptor, select.POLLIN)
        while open_ends and not self._over:
            for descriptor, _ in poll.poll(200):
                giver, taker = open_ends[descriptor]
                data = giver.recv(_PIECE)
                if giver is near:
                    self.carried += len(data)
                    if number == 1:
                        self.recorded += data
                going = self.up(data, number) if giver is near else self.down(data, number)
                if going is None:
                    return
                if going:
                    taker.sendall(going)
                if not data:
                    poll.unregister(descriptor)
                    del open_ends[descriptor]
                    with contextlib.suppress(OSError):
                        taker.shutdown(socket.SHUT_WR)

    def up(self, data: bytes, number: int) -> bytes | None:
        """What becomes of bytes from the source; b"" is their end."""
        del number
        self.read += data.count(PLANT)
        return data

    def down(self, data: bytes, number: int) -> bytes | None:
        """What becomes of bytes from the destination."""
        del number
        return data

    def check(self) -> None:
        """LabError if nothing came to him."""
        if not self.connections or not self.carried:
            raise LabError("no connection came to the attacker")


class Rewriter(Relay):
    """Xensploit's kind: looks for the credential in what passes by, and puts another in its place."""

    def __init__(self, segment: Segment, target: str, port: int, family: Family = Family.IPV4) -> None:
        super().__init__(segment, target, port, family)
        self.changed = 0
        self._kept: dict[int, bytes] = {}

    def up(self, data: bytes, number: int) -> bytes | None:
        """Replace what is whole; keep back what may be the beginning of one."""
        text = self._kept.pop(number, b"") + data
        self.read += text.count(PLANT)
        self.changed += text.count(PLANT)
        text = text.replace(PLANT, INSTEAD)
        if data:
            size = next((size for size in range(min(_HELD_BACK, len(text)), 0, -1) if text.endswith(PLANT[:size])), 0)
            if size:
                self._kept[number] = text[-size:]
                text = text[:-size]
        return text


class Flipper(Relay):
    """Changes one bit of the first connection, well inside the domain's memory."""

    def __init__(self, segment: Segment, target: str, port: int, *, position: int, family: Family = Family.IPV4) -> None:
        super().__init__(segment, target, port, family)
        self._position = position
        self.flipped = False

    def up(self, data: bytes, number: int) -> bytes | None:
        """Change that bit when it comes by."""
        start = self.carried - len(data)
        if number == 1 and not self.flipped and start <= self._position < start + len(data):
            changed = bytearray(data)
            changed[self._position - start] ^= 1
            self.flipped = True
            return bytes(changed)
        return super().up(data, number)


class FinalCut(Relay):
    """Cuts the first connection in xl's final handshake, which shows as a small answer after silence: before GO passes, or after it.

    He needs no plaintext for that: the destination is silent until it is ready, and says one short thing then.
    """

    _QUIET = 0.6  # seconds of silence of both, behind the stream, after which the next word of the destination's is "ready"

    def __init__(self, segment: Segment, target: str, port: int, *, after_go: bool, enough: int, family: Family = Family.IPV4) -> None:
        super().__init__(segment, target, port, family)
        self._after_go = after_go
        self._enough = enough
        self._last = time.monotonic()
        self._ready = False
        self._go = False
        self.cut = False

    def up(self, data: bytes, number: int) -> bytes | None:
        """Before GO: cut instead of passing it on."""
        self._last = time.monotonic()
        if number == 1 and self._ready and data:
            self._go = True
            if not self._after_go:
                self.cut = True
                return None
        return super().up(data, number)

    def down(self, data: bytes, number: int) -> bytes | None:
        """Notice "ready"; behind GO let nothing more through."""
        quiet = time.monotonic() - self._last
        self._last = time.monotonic()
        if number == 1 and data:
            if self._go:
                self.cut = self.cut or quiet > self._QUIET / 2
                return None if self.cut else b""
            if not self._ready and self.carried >= self._enough and quiet > self._QUIET:
                self._ready = True
        return data
