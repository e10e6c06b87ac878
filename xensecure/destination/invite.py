"""Making an invitation: docs/protocol.md, steps P1 and P2."""

from __future__ import annotations

import secrets
import time

from ..link.config import WILDCARDS, Config
from ..link.identity import load_credentials
from ..link.peers import Invitation, Peers
from ..proto import limits
from ..proto.errors import StateError
from ..proto.keyschedule import invitation_key
from ..proto.messages import Contact
from ..proto.token import Token

_SCOPE_GLOBAL = 0  # RT_SCOPE_UNIVERSE of rtnetlink(7): not loopback, not link-local


def make_token(config: Config, *, ttl: int, addresses: tuple[str, ...]) -> Token:
    """A fresh token that works once within ``ttl`` seconds; what verifies it is stored."""
    credentials = load_credentials(config)
    secret = secrets.token_bytes(limits.TOKEN_SECRET_LEN)
    expiry = int(time.time()) + ttl
    peers = Peers(config)
    with peers.locked():
        peers.put_invitation(Invitation(key=invitation_key(secret), expiry=expiry))
    contact = Contact(name=config.name, port=config.port, addresses=addresses[: limits.ADDRESSES_MAX])
    return Token(expiry=expiry, pin=credentials.pin, secret=secret, contact=contact)


def default_addresses(config: Config) -> tuple[str, ...]:
    """Where this host answers: the addresses of [listen], or where those are wildcards the interfaces' own."""
    named = tuple(address for address in config.listen if address not in WILDCARDS)
    found = named or _interface_addresses({6 if ":" in address else 4 for address in config.listen})
    if not found:
        raise StateError("this host has no address to put into the token; give one with --address")
    return found


def _interface_addresses(versions: set[int]) -> tuple[str, ...]:
    try:
        from pyroute2 import IPRoute
    except ImportError:
        raise StateError("python3-pyroute2 is not installed, so this host's addresses are not known; give one with --address") from None
    found = []
    with IPRoute() as routes:
        for message in routes.get_addr():
            attributes = dict(message["attrs"])
            address = attributes.get("IFA_LOCAL") or attributes.get("IFA_ADDRESS")
            version = 6 if ":" in str(address) else 4
            if message["scope"] == _SCOPE_GLOBAL and version in versions and address:
                found.append(str(address))
    return tuple(found[: limits.ADDRESSES_MAX])
