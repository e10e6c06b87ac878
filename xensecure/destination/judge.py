"""The launcher's verdict on a source: docs/protocol.md, steps C6 to C8. The only code at the destination that touches a link key."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

from ..link.config import Config
from ..link.engine import wipe
from ..link.peers import Invitation, Peer, Peers
from ..proto import limits
from ..proto.errors import AuthenticationError, Cause, PeerError
from ..proto.handshake import AuthenticationRequest, require_name
from ..proto.keyschedule import KeySchedule, proofs_equal
from ..proto.messages import DestinationHello, Purpose, SourceHello

_WORDS = {
    Cause.WRONG_CHALLENGE: "the receiver answered with another challenge",
    Cause.IDENTITY_CHANGED: "this host's identity has changed; restart xensecured and xensecure-launcher",
    Cause.UNKNOWN_KEY: "unknown key id",
    Cause.WRONG_PROOF: "wrong proof: another link key, or a man in the middle",
    Cause.WRONG_TLS_KEY: "the TLS key is not the one this peer was paired with",
    Cause.WRONG_CERTIFICATE: "the certificate does not name the peer",
}


@dataclass(frozen=True)
class Verdict:
    """A source that has proved itself: what it said, the key schedule, and the peer (or, with PAIR, the invitation) behind it."""

    hello: SourceHello
    schedule: KeySchedule
    source_pin: bytes
    peer: Peer | None
    link_key_id: bytes
    invitation: Invitation | None

    @property
    def name(self) -> str:
        """The source's name: the known peer's, or what a joining host calls itself."""
        return self.peer.name if self.peer else self.hello.contact.name


@dataclass(frozen=True)
class _Candidate:
    """What a key id leads to; ``key`` is random where it leads nowhere."""

    key: bytes
    peer: Peer | None
    invitation: Invitation | None


def judge(request: AuthenticationRequest, *, challenge: bytes, own_pin: bytes, peers: Peers, config: Config) -> Verdict:
    """Check everything, always all of it, then say yes or raise AuthenticationError.

    The error's text is for this host's log only; nothing of it may reach the network.
    """
    try:
        hello = SourceHello.pull(request.source_hello)
        answer = DestinationHello.pull(request.destination_hello, offered=hello.features)
        transcript = request.transcript()
    except PeerError as error:
        raise AuthenticationError(f"the receiver passed on a malformed hello: {error}", cause=Cause.MALFORMED) from None
    candidate = _lookup(hello, peers)
    schedule = KeySchedule(link_key=candidate.key, ekm=request.ekm, transcript=transcript)
    wipe(candidate.key)
    problems = {
        Cause.WRONG_CHALLENGE: not hmac.compare_digest(answer.challenge, challenge),
        Cause.IDENTITY_CHANGED: not hmac.compare_digest(request.destination_pin, own_pin),
        Cause.UNKNOWN_KEY: candidate.peer is None and candidate.invitation is None,
        Cause.WRONG_PROOF: not proofs_equal(schedule.source_proof(), request.proof),
        Cause.WRONG_TLS_KEY: not _pin_is_known(candidate.peer, request, config),
        Cause.WRONG_CERTIFICATE: not _certificate_names(candidate, hello, request, config),
    }
    found = [cause for cause, holds in problems.items() if holds]
    if found:
        raise AuthenticationError(_WORDS[found[0]], cause=found[0])
    return Verdict(
        hello=hello,
        schedule=schedule,
        source_pin=request.source_pin,
        peer=candidate.peer,
        link_key_id=hello.key_id,
        invitation=candidate.invitation,
    )


def _lookup(hello: SourceHello, peers: Peers) -> _Candidate:
    if hello.purpose is Purpose.PAIR:
        invitation = peers.invitation_with_id(hello.key_id)
        if invitation is not None:
            return _Candidate(key=invitation.key, peer=None, invitation=invitation)
    else:
        found = peers.with_key(hello.key_id)
        if found is not None:
            return _Candidate(key=found[1].key, peer=found[0], invitation=None)
    return _Candidate(key=secrets.token_bytes(limits.LINK_KEY_LEN), peer=None, invitation=None)


def _pin_is_known(peer: Peer | None, request: AuthenticationRequest, config: Config) -> bool:
    # Compared also where no peer is known: the same work whatever the key id was (C6).
    known = hmac.compare_digest(peer.pin if peer else request.source_pin, request.source_pin)
    return known or config.trust == "ca"


def _certificate_names(candidate: _Candidate, hello: SourceHello, request: AuthenticationRequest, config: Config) -> bool:
    if config.trust != "ca":
        return True
    # Of a host that joins only the name counts: its addresses are its own word.
    known = candidate.peer
    accepted = (known.contact.name, *known.contact.addresses) if known else (hello.contact.name,)
    try:
        require_name(request.names, accepted)
    except AuthenticationError:
        return False
    return True


