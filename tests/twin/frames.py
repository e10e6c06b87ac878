"""A slow twin of the engine's frames, written from docs/protocol.md section 4 (F1 to F4, F14, F15, F17, F18) alone.

It shares nothing with csrc/: AES-GCM is that of the package "cryptography", HKDF-Expand is spelt out with hmac,
Zstandard is the command zstd.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HEADER = struct.Struct(">BBBBIQ")
"""F1: type, channel, flags, zero, payload length, stream offset."""

DATA = 4
ELIDED = 0x01
COMPRESSED = 0x04
PIECE = struct.Struct(">II")
"""F14: zeros, literals."""

RUN_MIN = 64
CONTENT_MAX = 1 << 20
TAG_LEN = 16
RATCHET_INFO = bytes([len(b"xensecure/1 ratchet")]) + b"xensecure/1 ratchet"
"""F4: vec8 of the label."""


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 section 2.3 with SHA-256."""
    output = block = b""
    counter = 1
    while len(output) < length:
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        output += block
        counter += 1
    return output[:length]


def pack(content: bytes) -> bytes:
    """F14: the payload that leaves every run out that may be left out; for content that has one."""
    runs = [(run.start(), run.end()) for run in re.finditer(rb"\0{%d,}" % RUN_MIN, content)]
    if runs[0][0] > 0:
        runs.insert(0, (0, 0))  # what stands before the first run
    ends = [start for start, _ in runs[1:]] + [len(content)]
    return b"".join(PIECE.pack(end - start, until - end) + content[end:until] for (start, end), until in zip(runs, ends, strict=True))


def unpack(payload: bytes) -> bytes:
    """The content that a payload stands for; ValueError for any form but the one of F15."""
    content, at, first = b"", 0, True
    while at < len(payload):
        if len(payload) - at < PIECE.size:
            raise ValueError("a piece is cut")
        zeros, literals = PIECE.unpack_from(payload, at)
        text = payload[at + PIECE.size :][:literals]
        at += PIECE.size + literals
        last = at == len(payload)
        if len(text) != literals or len(content) + zeros + literals > CONTENT_MAX:
            raise ValueError("a length that cannot be")
        if zeros < RUN_MIN and not (first and zeros == 0):
            raise ValueError("a short run")
        if not literals and not last:
            raise ValueError("two runs in a row")
        if text and ((zeros and text[0] == 0) or (not last and text[-1] == 0)):
            raise ValueError("a run that is not whole")
        content += bytes(zeros) + text
        first = False
    if len(content) <= len(payload):
        raise ValueError("nothing is elided")
    return content


def _zstd(data: bytes, *options: str) -> bytes:
    """What zstd makes of some bytes; ValueError if it will not. They are in a file, so that it knows their number."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        done = subprocess.run(["zstd", "-qc", *options, file.name], capture_output=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace"))
    return done.stdout


def compress(content: bytes, level: int = 1) -> bytes:
    """F17: the payload that stands for content."""
    return _zstd(content, f"-{level}", "--no-check")


def content_length(payload: bytes) -> int:
    """How long the content is that a compressed payload says it stands for; ValueError for any first bytes but those of F18."""
    width, base, least = {0x20: (1, 0, 0), 0x60: (2, 256, 256), 0xA0: (4, 0, 65792)}.get(payload[4] if len(payload) >= 9 else 0, (0, 0, 0))
    length = int.from_bytes(payload[5 : 5 + width], "little") + base
    if payload[:4] != bytes.fromhex("28b52ffd") or not width or not max(least, len(payload) + 1) <= length <= CONTENT_MAX:
        raise ValueError("not a compressed frame's first bytes")
    return length


def decompress(payload: bytes) -> bytes:
    """The content that a compressed payload stands for; ValueError if it stands for none of the length that it says."""
    length = content_length(payload)
    content = _zstd(payload, "-d", "--no-pass-through")
    if len(content) != length:
        raise ValueError("another length than it says")
    return content


@dataclass
class Direction:
    """One direction of a link."""

    key: bytes
    iv: bytes
    ratchet_blocks: int = 2**32
    counter: int = 0
    blocks: int = 0
    ratchets: int = field(default=0, init=False)

    def _next(self, length: int) -> bytes:
        """F4, then F3: ratchet if the frame would pass the limit, count it, and give its nonce."""
        blocks = -(-length // 16) + 3
        if self.blocks + blocks > self.ratchet_blocks:
            self.key = hkdf_expand(self.key, RATCHET_INFO, 32)
            self.blocks = 0
            self.ratchets += 1
        self.blocks += blocks
        mask = bytes(4) + self.counter.to_bytes(8, "big")
        self.counter += 1
        return bytes(a ^ b for a, b in zip(self.iv, mask, strict=True))

    def seal(self, kind: int, channel: int, offset: int, payload: bytes, *, flags: int = 0) -> bytes:
        """The frame's bytes: header, encrypted payload, tag."""
        header = HEADER.pack(kind, channel, flags, 0, len(payload), offset)
        nonce = self._next(len(payload))
        return header + AESGCM(self.key).encrypt(nonce, payload, header)

    def open(self, frame: bytes) -> tuple[int, int, int, bytes]:
        """(type, channel, offset, content) of a frame; raises cryptography's InvalidTag, or ValueError."""
        header = frame[: HEADER.size]
        kind, channel, flags, zero, length, offset = HEADER.unpack(header)
        allowed = {0, ELIDED} | ({COMPRESSED} if channel == 0 else set()) if kind == DATA else {0}
        if flags not in allowed or zero or len(frame) != HEADER.size + length + TAG_LEN:
            raise ValueError("not a frame of version 1")
        nonce = self._next(length)  # first: it may change the key
        payload = AESGCM(self.key).decrypt(nonce, frame[HEADER.size :], header)
        return kind, channel, offset, {0: bytes, ELIDED: unpack, COMPRESSED: decompress}[flags](payload)
