"""A slow twin of the engine's frames, written from docs/protocol.md section 4 (F1 to F4) alone.

It shares nothing with csrc/: AES-GCM is that of the package "cryptography", HKDF-Expand is spelt out with hmac.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HEADER = struct.Struct(">BBBBIQ")
"""F1: type, channel, flags, zero, payload length, stream offset."""

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

    def seal(self, kind: int, channel: int, offset: int, payload: bytes) -> bytes:
        """The frame's bytes: header, encrypted payload, tag."""
        header = HEADER.pack(kind, channel, 0, 0, len(payload), offset)
        nonce = self._next(len(payload))
        return header + AESGCM(self.key).encrypt(nonce, payload, header)

    def open(self, frame: bytes) -> tuple[int, int, int, bytes]:
        """(type, channel, offset, payload) of a frame; raises cryptography's InvalidTag."""
        header = frame[: HEADER.size]
        kind, channel, flags, zero, length, offset = HEADER.unpack(header)
        if flags or zero or len(frame) != HEADER.size + length + TAG_LEN:
            raise ValueError("not a frame of version 1")
        nonce = self._next(length)  # first: it may change the key
        return kind, channel, offset, AESGCM(self.key).decrypt(nonce, frame[HEADER.size :], header)
