"""Zero runs left out of DATA frames (F14 to F16): the pump against the slow twin, both ways, with whatever content and whatever damage."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.twin import frames
from xensecure.link.engine import Compression, Event, Link, Lost, Pump, PumpOptions, Side
from xensecure.proto import limits
from xensecure.proto.handshake import LinkKeys
from xensecure.proto.keyschedule import DirectionKeys

UP, DOWN = (bytes(range(32)), bytes(range(12))), (bytes(range(32, 64)), bytes(range(12, 24)))
HEADER = limits.FRAME_HEADER_LEN
OVERHEAD = HEADER + limits.FRAME_TAG_LEN
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

SEGMENTS = st.one_of(
    st.integers(1, 6000).map(bytes),
    st.binary(max_size=600),
    st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 100)).map(lambda pair: pair[0] * pair[1]),
)
CONTENTS = st.lists(SEGMENTS, min_size=1, max_size=12).map(b"".join).filter(len)


@dataclass
class End:
    """One pump on a socket whose other end is the test's, with xl's standard input a pipe."""

    pump: Pump
    line: socket.socket
    pipe: int

    def run(self, seconds: float = 0) -> Event:
        """Until nothing has been to do for so long."""
        while (event := self.pump.run(seconds)) is Event.PHASE:
            pass
        return event

    def read(self) -> bytes:
        """What is in the pipe."""
        pieces = []
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.pipe, 1 << 20):
                pieces.append(piece)
        return b"".join(pieces)


@contextlib.contextmanager
def end_of(side: Side, *, elide: bool = True, compress: Compression = Compression.OFF) -> Iterator[End]:
    """A pump of that side, connected."""
    ours, line = socket.socketpair()
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ours.settimeout(0)
    line.settimeout(0)
    source = side is Side.SOURCE
    send, receive = (UP, DOWN) if source else (DOWN, UP)
    window = (limits.WINDOW, 0, 0)
    pump = Pump(
        PumpOptions(
            side=side,
            channels=(reader if source else writer, -1, -1),
            wake=-1,
            send_windows=window if source else (0, 0, 0),
            receive_windows=(0, 0, 0) if source else window,
            keepalive=0,
            silence=0,
            elide=elide,
            compress=compress,
        )
    )
    pump.attach(Link(LinkKeys(send=DirectionKeys(*send), receive=DirectionKeys(*receive))), ours.fileno())
    try:
        yield End(pump, line, writer if source else reader)
    finally:
        pump.close()
        for descriptor in (reader, writer):
            os.close(descriptor)
        ours.close()
        line.close()


def sent_by(end: End, content: bytes) -> list[bytes]:
    """The frames in which a source's pump sends that content."""
    line, at = b"", 0
    while at < len(content) or end.pump.stats().channel_bytes[0] < len(content):
        with contextlib.suppress(BlockingIOError):
            at += os.write(end.pipe, content[at:]) if at < len(content) else 0
        end.run()
        with contextlib.suppress(BlockingIOError):
            line += end.line.recv(1 << 22)
    with contextlib.suppress(BlockingIOError):
        line += end.line.recv(1 << 22)
    found = []
    while line:
        length = OVERHEAD + int.from_bytes(line[4:8], "big")
        found.append(line[:length])
        line = line[length:]
    return found


@quick
@given(content=CONTENTS, elide=st.booleans())
def test_pump_to_twin(content: bytes, elide: bool) -> None:
    """Whatever the pump sends, the twin reads as the same bytes at the same offsets; no payload is longer than its content."""
    twin, got = frames.Direction(*UP), b""
    with end_of(Side.SOURCE, elide=elide) as end:
        for frame in sent_by(end, content):
            kind, channel, offset, piece = twin.open(frame)
            assert (kind, channel, offset) == (frames.DATA, 0, len(got))
            assert len(frame) - OVERHEAD == len(piece) if frame[2] == 0 else len(frame) - OVERHEAD < len(piece)
            assert elide or frame[2] == 0
            got += piece
        assert got == content
        assert end.pump.stats().link_sent <= len(content) + OVERHEAD * (1 + len(content) // 4096)


@quick
@given(contents=st.lists(st.tuples(CONTENTS, st.booleans()), max_size=6))
def test_twin_to_pump(contents: list[tuple[bytes, bool]]) -> None:
    """Whatever the twin sends, elided or not, and elided further than the pump would, the pump delivers as the same bytes."""
    twin, sent = frames.Direction(*UP), b""
    with end_of(Side.DESTINATION) as end:
        got = b""
        for content, elide in contents:
            packed = elide and bytes(frames.RUN_MIN) in content
            payload = frames.pack(content) if packed else content
            assert not packed or frames.unpack(payload) == content
            end.line.sendall(twin.seal(frames.DATA, 0, len(sent), payload, flags=frames.ELIDED if packed else 0))
            sent += content
            assert end.run() is Event.TIMEOUT
            got += end.read()
        assert got == sent


@st.composite
def damaged(draw: Any) -> bytes:
    """A payload with a few bytes changed, left out or doubled."""
    content = draw(CONTENTS.filter(lambda content: bytes(frames.RUN_MIN) in content))
    payload = bytearray(frames.pack(content)[: draw(st.integers(8, 60))])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(payload) - 1))
        change = draw(st.sampled_from(["set", "drop", "double"]))
        payload[at : at + 1] = {"set": bytes([draw(st.sampled_from([0, 1, 8, 64, 255]))]), "drop": b"", "double": payload[at : at + 1] * 2}[change]
        if not payload:
            break
    return bytes(payload)


@settings(quick, max_examples=300)
@given(payload=damaged())
def test_damaged_payloads(payload: bytes) -> None:
    """Well sealed but of another form than F15's: what the twin refuses is a fault to the pump, with nothing delivered; the rest both take."""
    twin = frames.Direction(*UP)
    with end_of(Side.DESTINATION) as end:
        end.line.sendall(twin.seal(frames.DATA, 0, 0, payload, flags=frames.ELIDED))
        event = end.run()
        try:
            content = frames.unpack(payload)
        except ValueError:
            assert event is Event.LOST
            assert end.pump.stats().lost is Lost.PROTOCOL
            assert end.read() == b""
        else:
            got = end.read()
            while len(got) < len(content) and end.run() is Event.TIMEOUT:
                got += end.read()
            assert got == content


def test_every_bit() -> None:
    """Every flipped bit of an elided frame is noticed by both."""
    content = b"abc" + bytes(100) + b"de" + bytes(64)
    frame = frames.Direction(*UP).seal(frames.DATA, 0, 0, frames.pack(content), flags=frames.ELIDED)
    for bit in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((InvalidTag, ValueError)):
            frames.Direction(*UP).open(bytes(flipped))
        with end_of(Side.DESTINATION) as end:
            end.line.sendall(flipped)
            end.line.shutdown(socket.SHUT_WR)
            assert end.run(1) is Event.LOST
            assert end.pump.stats().lost in {Lost.TAG, Lost.HEADER, Lost.CLOSED}
            assert end.pump.stats().channel_bytes[0] == 0
            assert end.read() == b""


def test_control_frames_are_never_elided() -> None:
    """The flag belongs to DATA: it is refused in the header of every other type, and nobody of ours seals one."""
    for kind in range(1, 13):
        header = frames.HEADER.pack(kind, 0, frames.ELIDED, 0, 8, 0)
        with end_of(Side.DESTINATION) as end:
            end.line.sendall(header + bytes(24))
            assert end.run() is Event.LOST
            assert end.pump.stats().lost is (Lost.TAG if kind == frames.DATA else Lost.HEADER)
