"""One way of a connection read along: TLS records first, then frames (docs/protocol.md, sections 2 and 4), by what stands on them in clear.

A place on the wire is then "byte 20 of the frame that carries channel 1 from its offset 54 on": the same place in every run, however the bytes before
it were cut into frames and whatever came of a connection before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from xensecure.proto import limits
from xensecure.proto.messages import FrameType

BANNER, READY, REPORT = 54, 54 + 34, 54 + 34 + 40  # where each of them ends on channel 1 (csrc/xlphase.h)
GO = 44  # bytes, the last ones of channel 0
_TLS = range(20, 24)  # first bytes of TLS records (RFC 8446 section 5.1); frame types are smaller
_RECORD_HEADER = 5
_FRAMED = limits.FRAME_HEADER_LEN + limits.FRAME_TAG_LEN


class Way(StrEnum):
    """A direction of a connection."""

    UP = "up"  # from the source
    DOWN = "down"


class Part(StrEnum):
    """What a byte of the wire belongs to, in the order of a migration."""

    HANDSHAKE = "handshake"
    OPENING = "opening"  # OPEN and ACCEPT
    BANNER = "banner"
    CONFIGURATION = "configuration"
    PAGES = "pages"
    READY = "ready"
    GO = "GO"
    REPORT = "report"
    ENDING = "end"  # END, EXIT
    OTHER = "other"  # KEEPALIVE, ABORT, OUTCOME


@dataclass(frozen=True, order=True)
class Unit:
    """A TLS record (type 0) or a frame: what its header says."""

    type: int
    channel: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Span:
    """Bytes next to each other of one unit: ``start`` to ``start + length`` of its ``whole`` bytes."""

    unit: Unit
    start: int
    length: int
    whole: int


@dataclass(frozen=True)
class Layout:
    """Where on channel 0 the domain's configuration ends, and where GO begins."""

    configuration: int
    go: int

    def part(self, unit: Unit) -> Part:
        """What a unit belongs to. An acknowledgement belongs to what it acknowledges."""
        if unit.type == 0:
            return Part.HANDSHAKE
        kind = FrameType(unit.type)
        if kind in (FrameType.OPEN, FrameType.ACCEPT, FrameType.REFUSE):
            return Part.OPENING
        if kind in (FrameType.END, FrameType.EXIT):
            return Part.ENDING
        if kind not in (FrameType.DATA, FrameType.ACK) or unit.channel > 1:
            return Part.OTHER
        # The last byte that an acknowledgement is for, the first byte that DATA carries.
        at = unit.offset - (kind is FrameType.ACK)
        if unit.channel == 0:
            return Part.CONFIGURATION if at < self.configuration else Part.PAGES if at < self.go else Part.GO
        return Part.BANNER if at < BANNER else Part.READY if at < READY else Part.REPORT


class Reader:
    """Takes one way's bytes as they come, and says what they are. Less than a header is kept until the rest of it has come."""

    def __init__(self) -> None:
        self._kept = b""
        self._unit = Unit(0)
        self._whole = self._done = 0

    def feed(self, data: bytes) -> tuple[bytes, list[Span]]:
        """The bytes that are known now, and what they are."""
        data = self._kept + data
        spans = list(self._spans(data))
        known = sum(span.length for span in spans)
        self._kept = data[known:]
        return data[:known], spans

    def rest(self) -> bytes:
        """What is kept, of a header that will not be whole any more."""
        rest, self._kept = self._kept, b""
        return rest

    def _spans(self, data: bytes) -> Iterator[Span]:
        at = 0
        while at < len(data):
            if self._done == self._whole and not self._head(data[at : at + limits.FRAME_HEADER_LEN]):
                return
            length = min(self._whole - self._done, len(data) - at)
            yield Span(self._unit, self._done, length, self._whole)
            self._done += length
            at += length

    def _head(self, head: bytes) -> bool:
        """Begin a unit; False if its header is not all there."""
        if head[0] in _TLS:
            if len(head) < _RECORD_HEADER:
                return False
            self._unit, self._whole = Unit(0), _RECORD_HEADER + int.from_bytes(head[3:5], "big")
        else:
            if len(head) < limits.FRAME_HEADER_LEN:
                return False
            self._unit = Unit(head[0], head[1], int.from_bytes(head[8:16], "big"))
            self._whole = _FRAMED + int.from_bytes(head[4:8], "big")
        self._done = 0
        return True
