"""Meeting a host that joins, and renewing a link key: the destination's side of docs/protocol.md, section 5, run by the launcher."""

from __future__ import annotations

import hmac
import time
from dataclasses import replace

from ..link.config import Config
from ..link.keys import ADDRESS_PATTERN, NAME_PATTERN
from ..link.peers import KEYS_KEPT, Invitation, InvitationState, LinkKey, Peer, Peers
from ..proto.errors import Reason, RefusedError
from ..proto.messages import Contact, Purpose
from .judge import Verdict

# Less than the source waits for its answer. Only one of two hosts that renew with each other at once waits: the other gives way.
_WAIT_SECONDS = 5.0


def store(verdict: Verdict, peers: Peers, config: Config, address: str) -> str:
    """P4 and P5, or R2: check, store the new key durably; returns the peer's name. RefusedError if it may not be.

    The right to renew the key stays with ``peers`` until ``complete``, or until this process ends.
    """
    if verdict.hello.purpose is Purpose.PAIR:
        _check_contact(verdict, config)
        _usable_invitation(verdict, peers)
    if not peers.hold_renewal(verdict.name, _WAIT_SECONDS if config.name > verdict.name else 0.0):
        raise RefusedError("the link key is being renewed there already; try again", Reason.TOO_MANY)
    with peers.locked():
        if verdict.hello.purpose is Purpose.ROTATE:
            return _store_next(verdict, peers)
        return _store_joining(verdict, peers, address)


def complete(verdict: Verdict, peers: Peers) -> None:
    """P7: the source has stored the key too; the invitation is used up. (R4 changes nothing in the files.)"""
    peers.end_renewal()
    if verdict.hello.purpose is not Purpose.PAIR:
        return
    with peers.locked():
        invitation = peers.invitation_with_id(verdict.hello.key_id)
        if invitation is not None:
            peers.put_invitation(replace(invitation, state=InvitationState.DONE))


def _store_next(verdict: Verdict, peers: Peers) -> str:
    peer = peers.get(verdict.name)
    if peer is None:
        raise RefusedError("this host was forgotten there meanwhile; pair the hosts again", Reason.NOT_ALLOWED)
    ids = [key.id for key in peer.keys]
    if verdict.link_key_id not in ids:
        raise RefusedError("the link key was renewed meanwhile; try again", Reason.TOO_MANY)
    # The key of this very connection works; what may stand beside it does not count any more.
    working = peer.keys[ids.index(verdict.link_key_id)]
    peers.put(replace(peer, keys=(working,)).with_next_key(verdict.schedule.next_link_key(), int(time.time())))
    return peer.name


def _store_joining(verdict: Verdict, peers: Peers, address: str) -> str:
    _check_name(verdict, peers)
    known = peers.with_pin(verdict.source_pin)
    # Before the peer is stored: a crash in between leaves a claim that the same host may take up again, never a token that works twice.
    claimed = replace(_usable_invitation(verdict, peers), state=InvitationState.CLAIMED, claimed_by=verdict.source_pin)
    peers.put_invitation(claimed)
    new = LinkKey(generation=1, key=verdict.schedule.next_link_key())
    keys = (*(known.keys[:KEYS_KEPT] if known else ()), new)
    peer = Peer(contact=_reachable(verdict, peers, address), pin=verdict.source_pin, keys=keys, since=int(time.time()))
    peers.put(peer)
    peers.forget_other_names(peer)
    return peer.name


def _reachable(verdict: Verdict, peers: Peers, address: str) -> Contact:
    """What the joining host says of itself, with the address it came from if it names none.

    That address is the receiver's word, and may be that of a NAT: one that another peer has would make both ambiguous, and is left out.
    """
    contact = verdict.hello.contact
    if contact.addresses:
        return contact
    taken = any(address in peer.contact.addresses for peer in peers.all() if not hmac.compare_digest(peer.pin, verdict.source_pin))
    usable = not taken and ADDRESS_PATTERN.fullmatch(address)
    return Contact(name=contact.name, port=contact.port, addresses=(address,) if usable else ())


def _usable_invitation(verdict: Verdict, peers: Peers) -> Invitation:
    """The invitation that the source has proved to hold; RefusedError if it has been used or has expired."""
    now = int(time.time())
    invitation = peers.invitation_with_id(verdict.hello.key_id)
    if invitation is None:
        raise RefusedError("the invitation was withdrawn meanwhile; make a new one with 'xensecurectl invite'", Reason.INVITATION_EXPIRED)
    again = invitation.state is InvitationState.CLAIMED and hmac.compare_digest(invitation.claimed_by, verdict.source_pin)
    if invitation.state is InvitationState.DONE and hmac.compare_digest(invitation.claimed_by, verdict.source_pin):
        raise RefusedError("this token has been used, by this very host: there is nothing left to do", Reason.INVITATION_USED)
    if invitation.state is not InvitationState.OPEN and not again:
        raise RefusedError("this token has been used; make a new one with 'xensecurectl invite'", Reason.INVITATION_USED)
    if invitation.expiry < now:
        ago = now - invitation.expiry
        raise RefusedError(f"this token expired {ago} s ago; make a new one with 'xensecurectl invite'", Reason.INVITATION_EXPIRED)
    return invitation


def _check_contact(verdict: Verdict, config: Config) -> None:
    """What the joining host says of itself must be fit to be stored, and to be connected to."""
    contact = verdict.hello.contact
    if not NAME_PATTERN.fullmatch(contact.name):
        raise RefusedError("the joining host's name has characters that a name may not have; set another [identity] name on it", Reason.NOT_ALLOWED)
    if not contact.port or not all(ADDRESS_PATTERN.fullmatch(address) for address in contact.addresses):
        raise RefusedError("the joining host names a port or an address that cannot be one", Reason.NOT_ALLOWED)
    if contact.name.lower() == config.name.lower():
        raise RefusedError(f"both hosts call themselves {contact.name}; set another [identity] name on one of them", Reason.NOT_ALLOWED)


def _check_name(verdict: Verdict, peers: Peers) -> None:
    """Nobody takes the name or the address of another host that is known here."""
    name = verdict.hello.contact.name
    wanted = {address.lower() for address in verdict.hello.contact.addresses}
    for peer in peers.all():
        taken = {peer.name.lower()} | {address.lower() for address in peer.contact.addresses if peer.contact.port == verdict.hello.contact.port}
        if wanted & taken and not hmac.compare_digest(peer.pin, verdict.source_pin):
            raise RefusedError(f"the joining host names an address that belongs to {peer.name} there", Reason.NOT_ALLOWED)
    other = peers.find(name)
    if other is not None and not hmac.compare_digest(other.pin, verdict.source_pin):
        raise RefusedError(
            f"another host called {name} is known there; 'xensecurectl forget {other.name}' there first if it is gone", Reason.NOT_ALLOWED
        )
