"""Frames between two real pumps in one process and one thread, with the wire between them in the test's hands."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, field

from tests.inmemory import Way
from xensecure.link.connection import Deadline, FrameChannel, Wire
from xensecure.link.engine import Event, Lost, Pump, PumpOptions, Side
from xensecure.proto import limits
from xensecure.proto.errors import XensecureError
from xensecure.proto.handshake import LinkKeys
from xensecure.proto.messages import Accept, FrameType, Open
from xensecure.proto.request import ReceiveRequest

DOMAIN = bytes(range(256))
ANSWER, LOG = b"domain received, ready to unpause\0", b"a line of xl's log\n"
SESSION_ID = bytes(range(16))
_WINDOW = limits.WINDOW_MIN
_TURNS_MAX = 400
_QUIET_TURNS = 5  # turns without a byte after which nothing will come of itself


class Flip:
    """Changes one bit of the byte at an offset of a direction."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._at = 0
        self.done = False

    def __call__(self, data: bytes) -> bytes:
        """What arrives."""
        place = self._offset - self._at
        self._at += len(data)
        if not 0 <= place < len(data):
            return data
        self.done = True
        return data[:place] + bytes([data[place] ^ 1 << self._offset % 8]) + data[place + 1 :]


class Cut:
    """Lets so many bytes of a direction through and no more."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = False

    def __call__(self, data: bytes) -> bytes:
        """What arrives."""
        kept = data[: self._left]
        self._left -= len(kept)
        self.done = self.done or len(kept) < len(data)
        return kept


@dataclass(frozen=True)
class SeenFrame:
    """One frame on the wire: where it starts and ends, and its clear header."""

    start: int
    end: int
    type: FrameType
    channel: int
    length: int


def frames_of(sent: bytes) -> list[SeenFrame]:
    """The frames in the bytes of one direction, as anybody can see them."""
    frames, at = [], 0
    while at < len(sent):
        length = int.from_bytes(sent[at + 4 : at + 8], "big")
        end = at + limits.FRAME_HEADER_LEN + length + limits.FRAME_TAG_LEN
        frames.append(SeenFrame(at, end, FrameType(sent[at]), sent[at + 1], length))
        at = end
    return frames


class _Proxy:
    """The wire: two socket pairs, and what is carried between them."""

    def __init__(self, up: Way, down: Way) -> None:
        self.source, self._near = socket.socketpair()
        self.destination, self._far = socket.socketpair()
        self._ways = ((self._near, self._far, up), (self._far, self._near, down))
        for sock in (self.source, self._near, self.destination, self._far):
            sock.settimeout(0)

    def move(self) -> bool:
        """Carry what there is; whether there was anything."""
        moved = False
        for start, end, way in self._ways:
            with contextlib.suppress(OSError):
                data = start.recv(1 << 20)
                for piece in way.carry(data):
                    end.sendall(piece)
                if not data:
                    end.shutdown(socket.SHUT_WR)
                moved = moved or bool(data)
        return moved

    def close(self) -> None:
        """The attacker ends it."""
        for sock in (self._near, self._far):
            sock.close()


@dataclass
class _End:
    """One pump and its descriptors."""

    pump: Pump
    sock: socket.socket
    channels: list[int]
    event: Event | None = None

    def turn(self) -> bool:
        """One turn; whether an event came."""
        if self.event is not None:
            return False
        event = self.pump.run(0)
        if event is Event.INPUT_ENDED:
            os.close(self.channels[0])
            self.channels[0] = -1
        elif event is Event.OUTPUTS_ENDED:
            self.pump.exit(0, 0)
        elif event in (Event.LOST, Event.ABORTED, Event.ENDED):
            self.event = event
            self.sock.close()
        return event is not Event.TIMEOUT

    def close(self) -> None:
        """Free the pump, close its descriptors."""
        self.pump.close()
        _close(*self.channels)


@dataclass
class Outcome:
    """How a session ended: what each end said, and what reached xl on each side."""

    source: Event | None = None
    destination: Event | None = None
    source_lost: Lost = Lost.NOT
    destination_lost: Lost = Lost.NOT
    error: XensecureError | None = None
    started: bool = False
    delivered: dict[int, bytes] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        """Whether the source would report success."""
        return self.source is Event.ENDED


def run_session(source: LinkKeys, destination: LinkKeys, up: Way, down: Way) -> Outcome:
    """OPEN and ACCEPT, a small domain up, an answer and a line of log down, the ends of all three channels and EXIT."""
    outcome = Outcome()
    with contextlib.ExitStack() as stack:
        proxy = _Proxy(up, down)
        for sock in (proxy.source, proxy.destination):
            stack.callback(sock.close)
        stack.callback(proxy.close)
        near = FrameChannel(proxy.source, Wire(proxy.source, Deadline(0)), source)
        far = FrameChannel(proxy.destination, Wire(proxy.destination, Deadline(0)), destination)
        try:
            near.send(FrameType.OPEN, Open(window1=_WINDOW, window2=_WINDOW, request=ReceiveRequest()).push())
            proxy.move()
            Open.pull(_only(far, FrameType.OPEN))
            outcome.started = True
            far.send(FrameType.ACCEPT, Accept(session_id=SESSION_ID, window0=_WINDOW).push())
            proxy.move()
            Accept.pull(_only(near, FrameType.ACCEPT))
        except XensecureError as error:
            outcome.error = error
            return outcome
        _pump(near, far, proxy, outcome, stack)
    return outcome


def _only(channel: FrameChannel, kind: FrameType) -> bytes:
    frame = channel.receive()
    assert frame.type is kind
    return frame.payload


def _pump(near: FrameChannel, far: FrameChannel, proxy: _Proxy, outcome: Outcome, stack: contextlib.ExitStack) -> None:
    pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(6)]
    ends = [
        _make_end(Side.SOURCE, near, [pipes[0][0], pipes[1][1], pipes[2][1]]),
        _make_end(Side.DESTINATION, far, [pipes[3][1], pipes[4][0], pipes[5][0]]),
    ]
    xl_in, xl_out, xl_log = pipes[0][1], pipes[4][1], pipes[5][1]
    readers = {0: pipes[3][0], 1: pipes[1][0], 2: pipes[2][0]}
    held = {xl_in, xl_out, xl_log, *readers.values()}
    stack.callback(lambda: _close(*held))
    for end in ends:
        stack.callback(end.close)
    os.write(xl_log, LOG)
    writes = [DOMAIN[:100], DOMAIN[100:101], DOMAIN[101:]]
    delivered = dict.fromkeys(readers, b"")
    quiet = 0
    for _ in range(_TURNS_MAX):
        if writes:
            os.write(xl_in, writes.pop(0))
        elif xl_in in held:
            held.discard(xl_in)
            os.close(xl_in)
        events = [end.turn() for end in ends]
        busy = proxy.move() or any(events)
        for channel, reader in readers.items():
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(reader, 1 << 16):
                    delivered[channel] += piece
        if ends[1].channels[0] < 0 and xl_out in held:
            os.write(xl_out, ANSWER)
            for descriptor in (xl_out, xl_log):
                held.discard(descriptor)
                os.close(descriptor)
        if ends[0].event and ends[1].event:
            break
        quiet = 0 if busy or writes else quiet + 1
        if quiet == _QUIET_TURNS:
            proxy.close()
    outcome.delivered = delivered
    outcome.source, outcome.destination = ends[0].event, ends[1].event
    outcome.source_lost, outcome.destination_lost = ends[0].pump.stats().lost, ends[1].pump.stats().lost


def _make_end(side: Side, channel: FrameChannel, channels: list[int]) -> _End:
    source = side is Side.SOURCE
    pump = Pump(
        PumpOptions(
            side=side,
            channels=(channels[0], channels[1], channels[2]),
            wake=-1,
            send_windows=(_WINDOW, 0, 0) if source else (0, _WINDOW, _WINDOW),
            receive_windows=(0, _WINDOW, _WINDOW) if source else (_WINDOW, 0, 0),
            keepalive=0,
            silence=0,
        )
    )
    pump.attach(channel.link, channel.sock.fileno())
    return _End(pump=pump, sock=channel.sock, channels=channels)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
