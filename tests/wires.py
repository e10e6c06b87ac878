"""The network between two hosts in a test's hands, a TCP connection at a time: carried, counted, held, cut, changed, recorded."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from types import TracebackType

from tests.pair import wait_for

_PIECE = 1 << 16


class Wire:
    """One connection: two sockets and a thread that carries bytes between them."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._ends = (near, far)
        self.up = bytearray()  # the first bytes from the source
        self.carried = 0  # bytes from the source
        self.spoil = False  # change one bit of what comes next from the source
        self.pause = 0.0  # seconds that each piece from the source takes
        self._stalled = False
        self.thread = threading.Thread(target=self._carry, daemon=True)
        self.thread.start()

    def _carry(self) -> None:
        poll = select.poll()
        other = {self._ends[0].fileno(): self._ends[1], self._ends[1].fileno(): self._ends[0]}
        own = {sock.fileno(): sock for sock in self._ends}
        for number in own:
            poll.register(number, select.POLLIN)
        with contextlib.suppress(OSError):
            while own:
                for number, _ in poll.poll():
                    data = own[number].recv(_PIECE)
                    if not data:
                        poll.unregister(number)
                        del own[number]
                        if not self._stalled:
                            other[number].shutdown(socket.SHUT_WR)
                        continue
                    if not self._stalled:
                        other[number].sendall(self._changed(data) if own[number] is self._ends[0] else data)
        self.cut()

    def _changed(self, data: bytes) -> bytes:
        time.sleep(self.pause)
        self.carried += len(data)
        if len(self.up) < _PIECE:
            self.up += data
        if not self.spoil:
            return data
        self.spoil = False
        return data[:-1] + bytes([data[-1] ^ 1])

    def stall(self) -> None:
        """Let nothing through any more, and tell nobody."""
        self._stalled = True

    def cut_near(self) -> None:
        """End it for the source alone."""
        with contextlib.suppress(OSError):
            self._ends[0].shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End it, in both directions."""
        for sock in self._ends:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Wires:
    """Listens in the destination's place and carries each connection to its port. ``all`` are the connections so far, in their order."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.all: list[Wire] = []
        self.refusing = False  # what comes is closed at once
        self.refused = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        # So that the kernel holds little on the way: a wire that is slow is then slow for its source.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.refusing:
                    self.refused += 1
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
                self.all.append(Wire(near, far))

    def cut_last(self) -> None:
        """End the newest."""
        self.all[-1].cut()

    def spoil_last(self) -> None:
        """Change a bit of what comes next over the newest from the source."""
        self.all[-1].spoil = True

    def wait(self, count: int) -> None:
        """Until there are so many."""
        wait_for(lambda: len(self.all) >= count, f"{count} connections")

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in self.all:
            wire.cut()
            wire.thread.join(10)
