"""Computes the vectors of the key schedule from docs/protocol.md alone, with nothing but the standard library.

``python tests/vectors/make_vectors.py`` prints tests/vectors/keyschedule.json; ``--write`` writes it. Nothing of xensecure is imported: the
derivations stand here a second time, so that a mistake in one place shows. The inputs are made of SHA-256 of their names: they stand for
random bytes, and everybody can see that nobody chose them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

OUTPUT = Path(__file__).with_name("keyschedule.json")
NOTE = "Made by tests/vectors/make_vectors.py --write from docs/protocol.md, steps C4 to C7, F4, P1 and P2."


def made_up(name: str, length: int) -> bytes:
    """Bytes that stand for random ones."""
    return b"".join(hashlib.sha256(f"{name} {number}".encode()).digest() for number in range(-(-length // 32)))[:length]


def extract(salt: bytes, ikm: bytes) -> bytes:
    """RFC 5869 section 2.2."""
    return hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 section 2.3, any length."""
    output = block = b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.new(prk, block + info + bytes([number]), hashlib.sha256).digest()
        output += block
    return output[:length]


def vec8(data: bytes) -> bytes:
    """``vec8(x)`` of the specification."""
    return struct.pack(">B", len(data)) + data


def vec32(data: bytes) -> bytes:
    """``vec32(x)`` of the specification."""
    return struct.pack(">I", len(data)) + data


def message(number: int, body: bytes) -> bytes:
    """``u8 type || u16 length || body``."""
    return struct.pack(">BH", number, len(body)) + body


def contact(name: str, port: int, addresses: list[str]) -> bytes:
    """``vec8(name), u16 port, u8 n, n × vec8(address)``."""
    return vec8(name.encode()) + struct.pack(">HB", port, len(addresses)) + b"".join(vec8(address.encode()) for address in addresses)


def key_id(key: bytes) -> bytes:
    """The id of a link key or invitation key (C5)."""
    return expand(key, vec8(b"xensecure/1 key id"), 16)


def exchange(name: str, key: bytes, purpose: int, who: tuple[str, int, list[str]]) -> dict[str, object]:
    """One modified key exchange: inputs, messages, and all that follows from them."""
    ekm, challenge = made_up(f"{name} ekm", 64), made_up(f"{name} challenge", 32)
    source_pin, destination_pin = made_up(f"{name} source pin", 32), made_up(f"{name} destination pin", 32)
    identity = key_id(key)
    source_hello = message(1, struct.pack(">BIB", 1, 0, purpose) + identity + contact(*who))
    destination_hello = message(2, struct.pack(">BI", 1, 0) + challenge)
    parts = (b"xensecure/1", b"source", source_pin, source_hello, b"destination", destination_pin, destination_hello, identity)
    transcript = hashlib.sha256(b"".join(vec32(part) for part in parts)).digest()
    prk = extract(key, ekm)

    def derive(label: str, length: int) -> bytes:
        return expand(prk, vec8(label.encode()) + transcript, length)

    def proof(role: str) -> bytes:
        return hmac.new(derive(f"xensecure/1 confirm {role}", 32), transcript, hashlib.sha256).digest()

    key_source = derive("xensecure/1 key source", 32)
    return {
        "name": name,
        "link_key": key.hex(),
        "ekm": ekm.hex(),
        "purpose": purpose,
        "contact": list(who),
        "challenge": challenge.hex(),
        "source_pin": source_pin.hex(),
        "destination_pin": destination_pin.hex(),
        "key_id": identity.hex(),
        "source_hello": source_hello.hex(),
        "destination_hello": destination_hello.hex(),
        "transcript": transcript.hex(),
        "prk": prk.hex(),
        "source_proof": proof("source").hex(),
        "destination_proof": proof("destination").hex(),
        "key_source": key_source.hex(),
        "iv_source": derive("xensecure/1 iv source", 12).hex(),
        "key_destination": derive("xensecure/1 key destination", 32).hex(),
        "iv_destination": derive("xensecure/1 iv destination", 12).hex(),
        "next_link_key": derive("xensecure/1 link key", 32).hex(),
        "ratcheted_key_source": expand(key_source, vec8(b"xensecure/1 ratchet"), 32).hex(),
    }


def token(name: str, expiry: int, who: tuple[str, int, list[str]]) -> dict[str, object]:
    """One token (P2) and the invitation key that verifies it (P1)."""
    pin, secret = made_up(f"{name} pin", 32), made_up(f"{name} secret", 16)
    content = struct.pack(">BQ", 1, expiry) + pin + secret + contact(*who)
    text = base64.b32encode(content + hashlib.sha256(content).digest()[:4]).decode().rstrip("=").lower()
    invitation_key = extract(b"xensecure/1 invitation", secret)
    return {
        "name": name,
        "expiry": expiry,
        "pin": pin.hex(),
        "secret": secret.hex(),
        "contact": list(who),
        "token": f"xs1:{text}",
        "invitation_key": invitation_key.hex(),
        "invitation_key_id": key_id(invitation_key).hex(),
    }


NOBODY: tuple[str, int, list[str]] = ("", 0, [])
HV1: tuple[str, int, list[str]] = ("hv1", 8003, ["192.0.2.1", "2001:db8::1"])
HV2: tuple[str, int, list[str]] = ("hv2.example.net", 8004, ["hv2.example.net"])


def vectors() -> dict[str, object]:
    """All of them."""
    invitation = extract(b"xensecure/1 invitation", made_up("token one address secret", 16))
    return {
        "note": NOTE,
        "exchanges": [
            exchange("migrate", made_up("migrate link key", 32), 1, NOBODY),
            exchange("migrate, all zero key", bytes(32), 1, NOBODY),
            exchange("migrate, all one key", b"\xff" * 32, 1, NOBODY),
            exchange("rotate", made_up("rotate link key", 32), 3, NOBODY),
            exchange("pair", invitation, 2, HV1),
            exchange("pair, name in UTF-8 and no address", made_up("pair link key", 32), 2, ("höst", 65535, [])),
        ],
        "tokens": [token("token one address", 1893456000, HV2), token("token two addresses", 1, HV1), token("token late", 2**64 - 1, HV1)],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        OUTPUT.write_text(text(), encoding="utf-8")
    else:
        sys.stdout.write(text())
