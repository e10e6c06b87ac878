"""The key schedule of the modified key exchange: docs/protocol.md, steps C4 to C7 and P1.

Sources: RFC 5869 (HKDF), RFC 8446 section 7.5 (exporters), RFC 9257 section 4 (what an external PSK's use must bind).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from . import limits
from .wire import push_vector

EXPORTER_LABEL = b"EXPORTER-xensecure-v1"
_HASH = "sha256"
_HASH_LEN = 32  # bytes


def hkdf_extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract of RFC 5869 section 2.2 with SHA-256; returns the 32-byte PRK."""
    return hmac.digest(salt, ikm, _HASH)


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand of RFC 5869 section 2.3 for at most one hash length (32 bytes): T(1), cut to ``length``."""
    if not 0 < length <= _HASH_LEN:
        raise ValueError("one block of HKDF output is 1 to 32 bytes")
    return hmac.digest(prk, info + b"\x01", _HASH)[:length]


def key_id(link_key: bytes) -> bytes:
    """The public 16-byte id of a link key or invitation key (C5)."""
    return hkdf_expand(link_key, push_vector(b"xensecure/1 key id", 1), limits.KEY_ID_LEN)


def invitation_key(secret: bytes) -> bytes:
    """The 32-byte key that takes the link key's place while two hosts meet (P1), from a token's 16-byte secret."""
    return hkdf_extract(b"xensecure/1 invitation", secret)


@dataclass(frozen=True)
class Transcript:
    """Who takes part in a key exchange and all that was said (C4). Pins: 32 bytes; hellos: the messages with their headers."""

    source_pin: bytes
    source_hello: bytes
    destination_pin: bytes
    destination_hello: bytes
    key_id: bytes

    def digest(self) -> bytes:
        """T, 32 bytes."""
        parts = (
            b"xensecure/1",
            b"source",
            self.source_pin,
            self.source_hello,
            b"destination",
            self.destination_pin,
            self.destination_hello,
            self.key_id,
        )
        return hashlib.sha256(b"".join(push_vector(part, 4) for part in parts)).digest()


@dataclass(frozen=True)
class DirectionKeys:
    """AES-256-GCM key (32 bytes) and IV (12 bytes) of one direction of one connection."""

    key: bytes = field(repr=False)
    iv: bytes = field(repr=False)


class KeySchedule:
    """All that follows from a link key and one TLS connection (C5).

    Arguments: ``link_key`` (32 bytes), ``ekm`` (the 64-byte exporter value), ``transcript``.
    """

    def __init__(self, *, link_key: bytes, ekm: bytes, transcript: Transcript) -> None:
        self._transcript = transcript.digest()
        self._prk = hkdf_extract(link_key, ekm)

    def __repr__(self) -> str:
        return "KeySchedule(…)"

    def secret(self) -> bytes:
        """The PRK itself, for its owner to wipe when done."""
        return self._prk

    def _derive(self, label: bytes, length: int) -> bytes:
        return hkdf_expand(self._prk, push_vector(label, 1) + self._transcript, length)

    def source_proof(self) -> bytes:
        """The 32-byte MAC that the source sends first (C6)."""
        return hmac.digest(self._derive(b"xensecure/1 confirm source", limits.MAC_LEN), self._transcript, _HASH)

    def destination_proof(self) -> bytes:
        """The 32-byte MAC that the destination answers with (C7)."""
        return hmac.digest(self._derive(b"xensecure/1 confirm destination", limits.MAC_LEN), self._transcript, _HASH)

    def source_keys(self) -> DirectionKeys:
        """What the source seals its frames with."""
        return DirectionKeys(
            key=self._derive(b"xensecure/1 key source", limits.FRAME_KEY_LEN),
            iv=self._derive(b"xensecure/1 iv source", limits.FRAME_IV_LEN),
        )

    def destination_keys(self) -> DirectionKeys:
        """What the destination seals its frames with."""
        return DirectionKeys(
            key=self._derive(b"xensecure/1 key destination", limits.FRAME_KEY_LEN),
            iv=self._derive(b"xensecure/1 iv destination", limits.FRAME_IV_LEN),
        )

    def next_link_key(self) -> bytes:
        """The 32-byte link key that PAIR and ROTATE agree on (P5, R2)."""
        return self._derive(b"xensecure/1 link key", limits.LINK_KEY_LEN)


def proofs_equal(ours: bytes, theirs: bytes) -> bool:
    """Whether two proofs are the same, in constant time."""
    return hmac.compare_digest(ours, theirs)
