"""The C engine as Python sees it: the only module that imports ``_engine``. One method a C function; statuses become exceptions.

C API: csrc/engine.h. cffi releases the GIL while a C function runs.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from .._engine import ffi, lib
from ..proto import limits
from ..proto.errors import ConfigurationError, LocalError, ProtocolError, Reason, SystemFailure
from ..proto.handshake import LinkKeys
from ..proto.keyschedule import DirectionKeys
from ..proto.messages import Feature, FrameType, printable

_MEASURED_FRAME = 512 << 10  # bytes: as long as the pump's frames
_MEASURED_FRAMES = 4  # a piece of the measurement: half a millisecond, and few are interrupted


class EngineError(LocalError):
    """The engine was used wrongly, or ran out of memory: a mistake of ours or of this host, never the peer's."""


class TamperedError(ProtocolError):
    """A frame whose tag does not hold: damaged on the way, moved, replayed or forged."""


def wipe(secret: bytes) -> None:
    """Overwrite a secret in place.

    ``bytes`` are immutable to Python, not to C: only for objects of more than one byte that nothing else refers to.
    """
    if len(secret) > 1:
        lib.xs_wipe(ffi.from_buffer(secret), len(secret))


def _check(status: int) -> int:
    if status >= 0:
        return status
    if status == lib.XS_ETAG:
        raise TamperedError("SECURITY: a frame's tag does not hold: it was damaged, moved, replayed or forged on the way")
    if status == lib.XS_EHEADER:
        raise ProtocolError("a frame's header is not one of version 1")
    if status == lib.XS_EPROTOCOL:
        raise ProtocolError("a frame that breaks the protocol's rules")
    if status == lib.XS_ENOMEM:
        raise EngineError("out of memory; free some, or lower [receive] window")
    if status == lib.XS_ESYSTEM:
        raise SystemFailure(f"the engine: {os.strerror(ffi.errno)}")
    raise EngineError(f"engine failure {status}; please report this")


def compiled_backends() -> list[str]:
    """The names of the AEAD backends that the engine was built with."""
    names: list[str] = []
    while (name := lib.xs_backend_name(len(names))) != ffi.NULL:
        names.append(_text(ffi.string(name)))
    return names


def compiled_features() -> Feature:
    """What this build can do of what two hosts have to agree on."""
    return Feature.ZSTD if lib.xs_zstd_built_in() else Feature.NONE


def find_backend(cipher: str = "auto") -> str:
    """The backend that ``[engine] cipher`` stands for on this CPU; ConfigurationError if it is not to be had."""
    name = lib.xs_backend_find(_backend_name(cipher))
    if name == ffi.NULL:
        why = "this CPU lacks the instructions it needs" if cipher in compiled_backends() else "this build of xensecure does not have it"
        raise ConfigurationError(f"[engine] cipher = {cipher!r} cannot be used here: {why}; set it to 'auto'")
    return _text(ffi.string(name))


def _backend_name(cipher: str) -> object:
    """As C takes it: NULL for the best there is."""
    return ffi.NULL if cipher == "auto" else cipher.encode()


@dataclass(frozen=True)
class Frame:
    """One opened frame."""

    type: FrameType
    channel: int
    offset: int
    payload: bytes
    flags: int = 0  # of DATA: its payload is elided (F14) or compressed (F17)


class Link:
    """The keys of one connection. ``keys`` are this end's; the C side holds its own copy, wiped when the link is freed.

    ``cipher``: the AEAD backend as ``[engine] cipher`` has it.
    """

    def __init__(self, keys: LinkKeys, *, cipher: str = "auto", ratchet_blocks: int = limits.RATCHET_BLOCKS) -> None:
        find_backend(cipher)
        raw = ffi.new("struct xs_link_keys *")
        for target, source in (
            (raw.send_key, keys.send.key),
            (raw.send_iv, keys.send.iv),
            (raw.receive_key, keys.receive.key),
            (raw.receive_iv, keys.receive.iv),
        ):
            ffi.memmove(target, source, len(source))
        link = lib.xs_link_new(_backend_name(cipher), raw, ratchet_blocks)
        lib.xs_wipe(raw, ffi.sizeof("struct xs_link_keys"))
        if link == ffi.NULL:
            raise EngineError("no AES-256-GCM to be had, or no memory")
        self._link = ffi.gc(link, lib.xs_link_free)

    @property
    def backend(self) -> str:
        """The AEAD backend's name."""
        return _text(ffi.string(lib.xs_link_backend(self._link)))

    def seal(self, kind: FrameType, payload: bytes = b"", *, channel: int = 0, offset: int = 0, flags: int = 0) -> bytes:
        """One frame, sealed; ``flags``: of DATA, what its payload is."""
        header = ffi.new("struct xs_header *", {"type": kind, "channel": channel, "flags": flags, "length": len(payload), "offset": offset})
        out = bytearray(limits.FRAME_HEADER_LEN + len(payload) + limits.FRAME_TAG_LEN)
        _check(lib.xs_link_seal(self._link, header, ffi.from_buffer(payload), ffi.from_buffer(out)))
        return bytes(out)

    def open(self, frame: bytes) -> Frame:
        """Open one whole frame; TamperedError if its tag does not hold."""
        header = ffi.new("struct xs_header *")
        out = bytearray(max(0, len(frame) - limits.FRAME_HEADER_LEN - limits.FRAME_TAG_LEN))
        if len(frame) != frame_length(frame):
            raise EngineError("open() takes one whole frame")
        _check(lib.xs_link_open(self._link, ffi.from_buffer(frame), header, ffi.from_buffer(out)))
        return Frame(FrameType(header.type), header.channel, header.offset, bytes(out), header.flags)

    def hand_over(self, take: Callable[[object], object]) -> None:
        """Give the C link to ``take``, which owns it from then on unless it raises."""
        take(self._link)
        ffi.gc(self._link, None)
        del self._link


def measure_cipher(cipher: str, seconds: float) -> float:
    """Bytes a second that one core seals here, under keys that serve for nothing else.

    The best of many short pieces, by the time that this thread had a core: what else runs on the host does not count. It takes ``seconds``.
    """
    direction = DirectionKeys(key=bytes(limits.FRAME_KEY_LEN), iv=bytes(limits.FRAME_IV_LEN))
    link = Link(LinkKeys(send=direction, receive=direction), cipher=cipher)
    header = ffi.new("struct xs_header *", {"type": FrameType.DATA, "length": _MEASURED_FRAME})
    payload = ffi.from_buffer(bytes(_MEASURED_FRAME))
    out = ffi.from_buffer(bytearray(limits.FRAME_HEADER_LEN + _MEASURED_FRAME + limits.FRAME_TAG_LEN))
    end, best = time.monotonic() + seconds, 0.0
    while not best or time.monotonic() < end:
        begun = time.thread_time()
        for _ in range(_MEASURED_FRAMES):
            _check(lib.xs_link_seal(link._link, header, payload, out))
        best = max(best, _MEASURED_FRAMES * _MEASURED_FRAME / max(time.thread_time() - begun, 1e-9))
    return best


def frame_length(start: bytes) -> int:
    """The length of the whole frame whose first 16 bytes these are; ProtocolError if F2 refuses the header."""
    header = ffi.new("struct xs_header *")
    _check(lib.xs_header_parse(ffi.from_buffer(start), header))
    return limits.FRAME_HEADER_LEN + int(header.length) + limits.FRAME_TAG_LEN


class Side(enum.IntEnum):
    """Which end a pump is."""

    SOURCE = lib.XS_SOURCE
    DESTINATION = lib.XS_DESTINATION


class Compression(enum.IntEnum):
    """Whether DATA is compressed (F17): anything but OFF where both hosts have agreed on it."""

    OFF = lib.XS_COMPRESS_OFF
    AUTO = lib.XS_COMPRESS_AUTO
    ZSTD = lib.XS_COMPRESS_ZSTD


class Event(enum.IntEnum):
    """Why ``Pump.run`` returned."""

    TIMEOUT = lib.XS_EV_TIMEOUT
    WOKEN = lib.XS_EV_WOKEN
    PHASE = lib.XS_EV_PHASE
    LOST = lib.XS_EV_LOST
    ABORTED = lib.XS_EV_ABORTED
    LANE_LOST = lib.XS_EV_LANE_LOST
    OUTPUTS_ENDED = lib.XS_EV_OUTPUTS_ENDED
    INPUT_ENDED = lib.XS_EV_INPUT_ENDED
    ENDED = lib.XS_EV_ENDED


class Phase(enum.IntEnum):
    """How far xl's own protocol has come."""

    START = lib.XS_PHASE_START
    BANNER = lib.XS_PHASE_BANNER
    HEAD = lib.XS_PHASE_HEAD
    READY = lib.XS_PHASE_READY
    GO = lib.XS_PHASE_GO
    REPORT = lib.XS_PHASE_REPORT


class Lost(enum.IntEnum):
    """Why a link was lost."""

    NOT = lib.XS_LOST_NOT
    CLOSED = lib.XS_LOST_CLOSED
    RESET = lib.XS_LOST_RESET
    SILENCE = lib.XS_LOST_SILENCE
    HEADER = lib.XS_LOST_HEADER
    TAG = lib.XS_LOST_TAG
    PROTOCOL = lib.XS_LOST_PROTOCOL
    SYSTEM = lib.XS_LOST_SYSTEM
    ABORT = lib.XS_LOST_ABORT
    REPLACED = lib.XS_LOST_REPLACED


@dataclass(frozen=True)
class Stats:
    """A snapshot of a pump's counters: bytes a channel, bytes on the sockets, phase, xl's status byte (-1: not seen), ends.

    ``taken``: what has been read from a descriptor, sent or not.
    ``lanes``: links that live; ``lane_socket``, ``lane_lost``, ``lane_errno``: which was lost last while others lived, and why (LANE_LOST).
    """

    channel_bytes: tuple[int, int, int]
    delivered: tuple[int, int, int]
    taken: tuple[int, int, int]
    link_sent: int
    link_received: int
    phase: Phase
    report_status: int
    lost: Lost
    system_errno: int
    reason: int
    exit_kind: int
    exit_value: int
    lanes: int
    lane_socket: int
    lane_lost: Lost
    lane_errno: int


@dataclass(frozen=True)
class PumpOptions:
    """What a pump needs: its side, the descriptors of the three channels, what wakes it, windows (bytes) and timers (seconds).

    ``elide``: whether zero runs are left out of what it sends (F14); ``compress``: whether it is compressed (F17), and for OFF, that nothing
    compressed is taken; ``bwlimit``: bytes a second that channel 0 may take on the line (0: no limit).
    """

    side: Side
    channels: tuple[int, int, int]
    wake: int
    send_windows: tuple[int, int, int]
    receive_windows: tuple[int, int, int]
    keepalive: float
    silence: float
    elide: bool = False
    compress: Compression = Compression.OFF
    bwlimit: int = 0


class Pump:
    """The pump of one session: moves every stream byte in C, and returns for events."""

    def __init__(self, options: PumpOptions) -> None:
        raw = ffi.new("struct xs_pump_options *")
        raw.role = options.side
        raw.channel_fd = list(options.channels)
        raw.wake_fd = options.wake
        raw.send_window = list(options.send_windows)
        raw.receive_window = list(options.receive_windows)
        raw.elide = options.elide
        raw.compress = options.compress
        raw.bwlimit = options.bwlimit
        raw.keepalive_ms = int(options.keepalive * 1000)
        raw.silence_ms = int(options.silence * 1000)
        pump = lib.xs_pump_new(raw)
        if pump == ffi.NULL:
            raise EngineError("no memory for the buffers; free some, or lower [receive] window")
        self._pump = ffi.gc(pump, lib.xs_pump_free)

    def attach(self, link: Link, socket_fd: int) -> None:
        """Give the pump a connection, one of at most LANES_MAX; the descriptor stays the caller's to close, the link does not."""
        link.hand_over(lambda raw: _check(lib.xs_pump_attach(self._pump, raw, socket_fd)))

    def drop(self) -> None:
        """The peer has given all connections up: they are lost, and the next one takes their place; EngineError where none would be taken."""
        _check(lib.xs_pump_drop(self._pump))

    def run(self, timeout: float) -> Event:
        """Move bytes until an event, or for ``timeout`` seconds (less than 0: no bound)."""
        return Event(_check(lib.xs_pump_run(self._pump, int(timeout * 1000) if timeout >= 0 else -1)))

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        raw = ffi.new("struct xs_stats *")
        lib.xs_pump_stats(self._pump, raw)
        return Stats(
            channel_bytes=(raw.channel_bytes[0], raw.channel_bytes[1], raw.channel_bytes[2]),
            delivered=(raw.delivered[0], raw.delivered[1], raw.delivered[2]),
            taken=(raw.taken[0], raw.taken[1], raw.taken[2]),
            link_sent=raw.link_sent,
            link_received=raw.link_received,
            phase=Phase(raw.phase),
            report_status=raw.report_status,
            lost=Lost(raw.lost),
            system_errno=raw.system_errno,
            reason=raw.reason,
            exit_kind=raw.exit_kind,
            exit_value=raw.exit_value,
            lanes=raw.lanes,
            lane_socket=raw.lane_socket,
            lane_lost=Lost(raw.lane_lost),
            lane_errno=raw.lane_errno,
        )

    def head(self) -> bytes:
        """The domain's configuration (JSON) as it passed; b"" before it has."""
        size = lib.xs_pump_head(self._pump, ffi.NULL, 0)
        out = bytearray(size)
        lib.xs_pump_head(self._pump, ffi.from_buffer(out), size)
        return bytes(out)

    def skip_head(self) -> None:
        """The destination's xl has been given its header and the configuration by the launcher: they count as delivered."""
        _check(lib.xs_pump_skip_head(self._pump))

    def text(self) -> str:
        """The text of the peer's ABORT."""
        out = bytearray(limits.REASON_TEXT_MAX)
        size = lib.xs_pump_text(self._pump, ffi.from_buffer(out), len(out))
        return printable(out[:size].decode("utf-8", "replace"))

    def exit(self, kind: int, value: int) -> None:
        """The destination's xl has ended; EXIT follows its output."""
        _check(lib.xs_pump_exit(self._pump, kind, value))

    def end_input(self, channel: int) -> None:
        """Take a channel's input for ended."""
        _check(lib.xs_pump_end_input(self._pump, channel))

    def limit(self, bwlimit: int) -> None:
        """Change ``bwlimit``, from the next frame on."""
        lib.xs_pump_limit(self._pump, bwlimit)

    def abort(self, reason: Reason, text: str, timeout: float) -> None:
        """Send ABORT, waiting at most ``timeout`` seconds for it to leave."""
        data = text.encode()[: limits.REASON_TEXT_MAX]
        _check(lib.xs_pump_abort(self._pump, reason, ffi.from_buffer(data), len(data), int(timeout * 1000)))

    def close(self) -> None:
        """Free the pump and its link, wiping what they hold."""
        ffi.release(self._pump)


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw
