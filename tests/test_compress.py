"""Compressed DATA frames (F17, F18): the pump against the slow twin, both ways, with whatever content and whatever damage."""

from __future__ import annotations

import shutil
import socket
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_elide import CONTENTS, OVERHEAD, UP, end_of, sent_by
from tests.twin import frames
from xensecure.link.engine import Compression, Event, Lost, Side, compiled_features
from xensecure.proto.messages import Feature

pytestmark = [
    pytest.mark.skipif(Feature.ZSTD not in compiled_features(), reason="the engine was built without libzstd"),
    pytest.mark.skipif(shutil.which("zstd") is None, reason="the twin needs the command zstd"),
]
# The twin starts a process a frame.
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
TEXT = b"The quick brown fox jumps over the lazy dog; " * 40


@quick
@given(content=CONTENTS, compress=st.sampled_from(Compression), elide=st.booleans())
def test_pump_to_twin(content: bytes, compress: Compression, elide: bool) -> None:
    """Whatever the pump sends, the twin reads as the same bytes at the same offsets; a compressed payload is the shorter one, by a sixteenth."""
    twin, got = frames.Direction(*UP), b""
    with end_of(Side.SOURCE, elide=elide, compress=compress) as end:
        for frame in sent_by(end, content):
            kind, channel, offset, piece = twin.open(frame)
            assert (kind, channel, offset) == (frames.DATA, 0, len(got))
            if frame[2] == frames.COMPRESSED:
                assert compress is not Compression.OFF
                assert len(frame) - OVERHEAD <= len(piece) * 15 // 16 + 1
            got += piece
        assert got == content


def test_text_is_compressed() -> None:
    """Content that shrinks goes as compressed frames, the short piece of it that is left excepted."""
    with end_of(Side.SOURCE, compress=Compression.ZSTD) as end:
        sent = sent_by(end, TEXT * 100)
    assert {frame[2] for frame in sent if len(frame) > 600} <= {frames.COMPRESSED}
    assert sum(map(len, sent)) < len(TEXT * 100) / 10


@quick
@given(contents=st.lists(st.tuples(CONTENTS, st.sampled_from([0, frames.ELIDED, frames.COMPRESSED]), st.sampled_from([1, 3, 19])), max_size=5))
def test_twin_to_pump(contents: list[tuple[bytes, int, int]]) -> None:
    """Whatever kinds of frames the twin sends, compressed harder than the pump would, the pump delivers as the same bytes."""
    twin, sent, got = frames.Direction(*UP), b"", b""
    with end_of(Side.DESTINATION, compress=Compression.ZSTD) as end:
        for content, wanted, level in contents:
            payload, flags = content, 0
            if wanted == frames.ELIDED and bytes(frames.RUN_MIN) in content:
                payload, flags = frames.pack(content), frames.ELIDED
            elif wanted == frames.COMPRESSED and len(packed := frames.compress(content, level)) < len(content):
                payload, flags = packed, frames.COMPRESSED
            end.line.sendall(twin.seal(frames.DATA, 0, len(sent), payload, flags=flags))
            sent += content
            assert end.run() is Event.TIMEOUT
            got += end.read()
        assert got == sent


@st.composite
def damaged(draw: Any) -> bytes:
    """A payload with a few bytes changed, left out or doubled."""
    content = draw(CONTENTS) + TEXT
    payload = bytearray(frames.compress(content))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, min(len(payload) - 1, draw(st.sampled_from([12, 1 << 20])))))
        payload[at : at + 1] = draw(st.one_of(st.binary(min_size=1, max_size=1), st.just(b""), st.just(bytes(payload[at : at + 1]) * 2)))
    return bytes(payload[: draw(st.one_of(st.just(len(payload)), st.integers(1, len(payload))))])


@settings(quick, max_examples=120)
@given(payload=damaged())
def test_damaged_payloads(payload: bytes) -> None:
    """Well sealed but of another form than F18's: what the twin refuses is a fault to the pump, with nothing delivered; the rest both take."""
    with end_of(Side.DESTINATION, compress=Compression.ZSTD) as end:
        end.line.sendall(frames.Direction(*UP).seal(frames.DATA, 0, 0, payload, flags=frames.COMPRESSED))
        event = end.run()
        try:
            content = frames.decompress(payload)
        except ValueError:
            assert event is Event.LOST
            assert end.pump.stats().lost is Lost.PROTOCOL
            assert end.pump.stats().channel_bytes[0] == 0
            assert end.read() == b""
        else:
            assert event is Event.TIMEOUT
            assert end.read() == content


def test_every_bit() -> None:
    """Every flipped bit of a compressed frame is noticed by both."""
    frame = frames.Direction(*UP).seal(frames.DATA, 0, 0, frames.compress(TEXT), flags=frames.COMPRESSED)
    for bit in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((InvalidTag, ValueError)):
            frames.Direction(*UP).open(bytes(flipped))
        with end_of(Side.DESTINATION, compress=Compression.ZSTD) as end:
            end.line.sendall(flipped)
            end.line.shutdown(socket.SHUT_WR)
            assert end.run(1) is Event.LOST
            assert end.pump.stats().lost in {Lost.TAG, Lost.HEADER, Lost.CLOSED}
            assert end.pump.stats().channel_bytes[0] == 0


def test_nobody_has_agreed() -> None:
    """A compressed frame is a fault where compression was not agreed on, and a forbidden header with any other type or channel."""
    with end_of(Side.DESTINATION) as end:
        end.line.sendall(frames.Direction(*UP).seal(frames.DATA, 0, 0, frames.compress(TEXT), flags=frames.COMPRESSED))
        assert end.run() is Event.LOST
        assert end.pump.stats().lost is Lost.PROTOCOL
    for kind in range(1, 13):
        for channel in range(3):
            with end_of(Side.DESTINATION, compress=Compression.ZSTD) as end:
                end.line.sendall(frames.HEADER.pack(kind, channel, frames.COMPRESSED, 0, 8, 0) + bytes(24))
                assert end.run() is Event.LOST
                assert end.pump.stats().lost is (Lost.TAG if (kind, channel) == (frames.DATA, 0) else Lost.HEADER)
