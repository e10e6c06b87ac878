"""The token that one host prints and another joins with: docs/protocol.md, steps P1 and P2."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from . import limits
from .errors import ProtocolError, TokenError
from .messages import Contact
from .wire import Reader, push_uint

PREFIX = "xs1:"
_VERSION = 1
_CHECKSUM_LEN = 4  # bytes; a slip of the hand passes unseen once in 2^32
_MISTYPED = "the token is mistyped or cut short; copy the whole line that starts with 'xs1:'"


@dataclass(frozen=True)
class Token:
    """An invitation as it travels: when it ends (Unix seconds), the inviter's pin, the secret, and where the inviter answers."""

    expiry: int
    pin: bytes
    secret: bytes = field(repr=False)
    contact: Contact

    def encode(self) -> str:
        """The token's text, one word."""
        content = push_uint(_VERSION, 1) + push_uint(self.expiry, 8) + self.pin + self.secret + self.contact.push()
        return PREFIX + base64.b32encode(content + _checksum(content)).decode("ascii").rstrip("=").lower()

    @classmethod
    def decode(cls, text: str) -> Token:
        """Read a token; raises TokenError with what to do about it."""
        word = text.strip()
        if not word.lower().startswith(PREFIX):
            raise TokenError(f"this is no xensecure token; a token starts with '{PREFIX}' and is printed by 'xensecurectl invite'")
        try:
            packed = word[len(PREFIX) :].upper()
            data = base64.b32decode(packed + "=" * (-len(packed) % 8))
        except (binascii.Error, ValueError):
            raise TokenError(_MISTYPED) from None
        content, checksum = data[:-_CHECKSUM_LEN], data[-_CHECKSUM_LEN:]
        if _checksum(content) != checksum:
            raise TokenError(_MISTYPED)
        token = _pull(content)
        if token.encode() != word.lower():
            raise TokenError(_MISTYPED)  # padding, bits after the end, or letters that upper() takes for others: one token has one text
        return token


def _pull(content: bytes) -> Token:
    reader = Reader(content, "token")
    try:
        if reader.pull_uint(1) != _VERSION:
            raise TokenError("the token is of another version; install the same release of xensecure on both hosts")
        token = Token(
            expiry=reader.pull_uint(8),
            pin=reader.pull_bytes(limits.PIN_LEN),
            secret=reader.pull_bytes(limits.TOKEN_SECRET_LEN),
            contact=Contact.pull(reader),
        )
        reader.finish()
    except ProtocolError:
        raise TokenError(_MISTYPED) from None
    if not token.contact.addresses or not token.contact.port:
        raise TokenError("the token names no address; make one with 'xensecurectl invite --address ADDRESS'")
    return token


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECKSUM_LEN]
