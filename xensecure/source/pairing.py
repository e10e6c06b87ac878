"""Meeting another host and renewing the link key: the source's side of docs/protocol.md, section 5."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

from ..link.config import WILDCARDS, Config
from ..link.connection import Deadline, Target
from ..link.identity import load_credentials
from ..link.keys import NAME_PATTERN
from ..link.peers import KEYS_KEPT, LinkKey, Peer, Peers
from ..proto import limits
from ..proto.errors import (
    AuthenticationError,
    Cause,
    ConnectError,
    LinkError,
    LinkLostError,
    PeerError,
    ProtocolError,
    Reason,
    RefusedError,
    StateError,
    TokenError,
    XensecureError,
)
from ..proto.keyschedule import invitation_key, key_id
from ..proto.messages import Contact, Exit, ExitKind, FrameType, Purpose, Refusal, SourceHello
from ..proto.tls import Credentials
from ..proto.token import PREFIX, Token
from .establish import Connection, accepted_payload, establish, find_route, reach

# The person may have to type a password or accept ssh's host key.
_SSH_SECONDS = 120
# Seconds for each of a token's addresses: in the first round (a host in reach answers in milliseconds), and at least in the second.
_FIRST_ROUND_SECONDS = 1.5
_SECOND_ROUND_SECONDS = 3.0
_RENEWAL_SECONDS = 15.0  # for another command, or the peer's, to end: a key exchange may take HANDSHAKE_SECONDS
_PAUSES = (0.2, 0.5, 1.0)  # seconds between attempts to renew a key that the peer is renewing itself


def join(config: Config, token: Token, *, bind: str = "", family: str = "any") -> Peer:
    """Meet the host that printed the token (P3 to P8); returns it as stored. TokenError if the token cannot be used."""
    credentials = load_credentials(config)
    if token.pin == credentials.pin:
        raise TokenError("this token was made on this very host; run 'xensecurectl join' on the other one")
    _check_contact(config, token.contact)
    peers = Peers(config)
    other = peers.find(token.contact.name)
    if other is not None and other.pin != token.pin:
        raise StateError(f"another host called {token.contact.name} is known here; 'xensecurectl forget {other.name}' first if it is gone")
    remedy = "run the same 'xensecurectl join' again: the token is not used up"
    with _renewal(peers, token.contact.name), _remedy(remedy):
        connection, address = _reach_inviter(config, credentials, token, bind=bind, family=family)
        try:
            peer = _store_joined(connection, peers, token, address)
        finally:
            connection.channel.close()
    with _remedy(f"the hosts share a link key, but one of before may still work there; run 'xensecurectl rotate {peer.name}'"):
        return _prove(config, peers, peer.name, peer.keys[-1].id)


def _check_contact(config: Config, contact: Contact) -> None:
    if not NAME_PATTERN.fullmatch(contact.name):
        raise TokenError("the token's host has a name that a host may not have; set another [identity] name there and invite again")
    if contact.name.lower() == config.name.lower():
        raise StateError(f"both hosts call themselves {contact.name}; set another [identity] name in {config.path} on one of them")


@contextlib.contextmanager
def _renewal(peers: Peers, name: str) -> Iterator[None]:
    if not peers.hold_renewal(name, _RENEWAL_SECONDS):
        raise StateError(f"another command is making a link key with {name}; wait until it has ended, and try again")
    try:
        yield
    finally:
        peers.end_renewal()


@contextlib.contextmanager
def _remedy(words: str) -> Iterator[None]:
    """A connection that breaks here leaves things in order; say how to go on."""
    try:
        yield
    except LinkLostError as error:
        raise LinkLostError(f"{error}; {words}") from None
    except RefusedError as error:
        if error.reason not in (Reason.LAUNCHER_LOST, Reason.LOCAL_FAULT):
            raise
        raise RefusedError(f"{error}; {words}", error.reason) from None
    except StateError as error:
        raise StateError(f"{error}; {words}") from None


def own_addresses(config: Config) -> tuple[str, ...]:
    """Where this host listens, as far as its configuration says; the wildcard addresses say nothing."""
    return tuple(address for address in config.listen if address not in WILDCARDS)


def _reach_inviter(config: Config, credentials: Credentials, token: Token, *, bind: str, family: str) -> tuple[Connection, str]:
    """A confirmed connection to the token's host, at whichever of its addresses it answers, and that address.

    An address may be another machine's, seen from here (that of a bridge which every host has), or nobody's: such an address costs the
    little of a first round; a second one, longer, is for a host that is merely slow.
    """
    key = invitation_key(token.secret)
    hello = SourceHello(
        purpose=Purpose.PAIR, key_id=key_id(key), contact=Contact(name=config.name, port=config.port, addresses=own_addresses(config))
    )
    failures: dict[str, XensecureError] = {}
    for seconds in (_FIRST_ROUND_SECONDS, max(_SECOND_ROUND_SECONDS, config.defaults.connect_timeout / len(token.contact.addresses))):
        for address in token.contact.addresses:
            if isinstance(failures.get(address), PeerError):
                continue  # somebody answered there, and was somebody else
            target = Target(addresses=(address,), port=token.contact.port, bind=bind, family=family)
            try:
                connection = establish(
                    credentials=credentials,
                    target=target,
                    hello=hello,
                    key=key,
                    pin=token.pin,
                    names=(),
                    seconds=seconds,
                    cipher=config.cipher,
                )
            except AuthenticationError as error:
                if not _is_somebody_else(error):
                    raise TokenError(_why_not_authenticated(token)) from None
                failures[address] = error
            except (ProtocolError, LinkError) as error:
                failures[address] = error
            else:
                connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
                return connection, address
    raise _not_reached(failures)


def _is_somebody_else(error: AuthenticationError) -> bool:
    return "another key" in str(error)


def _not_reached(failures: dict[str, XensecureError]) -> XensecureError:
    strangers = [address for address, error in failures.items() if isinstance(error, AuthenticationError)]
    if strangers:
        where = ", ".join(strangers)
        return TokenError(f"the host that answers at {where} is not the one that made this token; if it should be, invite again: its identity is new")
    if len(failures) == 1:
        return next(iter(failures.values()))
    tried = "; ".join(f"{address}: {error}" for address, error in failures.items())
    return ConnectError(f"the host that made this token answers at none of its addresses ({tried}); is xensecured running there, and the port open?")


def _why_not_authenticated(token: Token) -> str:
    name = token.contact.name
    ago = int(time.time()) - token.expiry
    if ago > 0:
        why = f"this token expired {ago} s ago by this host's clock, and {name} does not know it any more"
    else:
        again = "if its daemons have just been restarted, try again"
        why = f"{name} does not know this token: it was withdrawn, or made under another state folder ({again})"
    return f"{why}; make a new one with 'xensecurectl invite' there"


def _store_joined(connection: Connection, peers: Peers, token: Token, address: str) -> Peer:
    connection.channel.send(FrameType.OPEN)
    try:
        _require_accepted(connection)
    except RefusedError as error:
        if error.reason in (Reason.INVITATION_USED, Reason.INVITATION_EXPIRED):
            raise TokenError(str(error)) from None
        raise
    new = LinkKey(generation=1, key=connection.schedule.next_link_key())
    with peers.locked():
        # The keys that were shared before stay until the new one has worked (P5), also where that host had another name.
        known = peers.with_pin(token.pin)
        contact = replace(token.contact, addresses=(address, *(other for other in token.contact.addresses if other != address)))
        peer = Peer(contact=contact, pin=token.pin, keys=(*(known.keys[:KEYS_KEPT] if known else ()), new), since=int(time.time()))
        peers.put(peer)
        peers.forget_other_names(peer)
    _finish(connection)
    peers.settle(peer.name, new.id)
    return peer


def _require_accepted(connection: Connection) -> None:
    """ACCEPT, which says all by its type here."""
    if accepted_payload(connection):
        raise ProtocolError("ACCEPT with a payload where none belongs")


def _finish(connection: Connection) -> None:
    """END(0), and the destination's EXIT(0): both have stored the key."""
    connection.channel.send(FrameType.END)
    frame = connection.channel.receive()
    if frame.type is FrameType.REFUSE:
        refusal = Refusal.pull(frame.payload)
        raise RefusedError(f"the destination could not finish: {refusal.text}", refusal.reason)
    if frame.type is not FrameType.EXIT or Exit.pull(frame.payload) != Exit(ExitKind.EXITED, 0):
        raise ProtocolError(f"{frame.type.name} where EXIT(0) belongs")


def rotate(config: Config, host: str) -> Peer:
    """Make and prove the next generation of the link key (R1 to R5); returns the peer with it alone."""
    peers = Peers(config)
    name = find_route(config, peers, host, config.options_for(host)).peer.name
    for pause in _PAUSES:
        try:
            with _renewal(peers, name):
                return _rotate(config, peers, host)
        except RefusedError as error:
            if error.reason is not Reason.TOO_MANY:
                raise
            # The peer renews the key itself at this moment. Without the right to renew, it can do so; then we go on.
            time.sleep(pause)
    with _renewal(peers, name):
        return _rotate(config, peers, host)


def _rotate(config: Config, peers: Peers, host: str) -> Peer:
    options = config.options_for(host)
    with _remedy(f"the link key of before still works; run 'xensecurectl rotate {host}' again"):
        connection = reach(config, peers, load_credentials(config), find_route(config, peers, host, options), Purpose.ROTATE)
        try:
            connection.channel.send(FrameType.OPEN)
            _require_accepted(connection)
            new = connection.schedule.next_link_key()
            with peers.locked():
                peer = find_route(config, peers, host, options).peer
                peers.put(peer.with_next_key(new, int(time.time())))
            _finish(connection)
        finally:
            connection.channel.close()
        return _prove(config, peers, host, key_id(new))


def _prove(config: Config, peers: Peers, host: str, new: bytes) -> Peer:
    """R5: one connection under the new key; both sides drop the old ones."""
    options = config.options_for(host)
    reach(config, peers, load_credentials(config), find_route(config, peers, host, options), Purpose.ROTATE).channel.close()
    peer = find_route(config, peers, host, options).peer
    if [key.id for key in peer.keys] != [new]:
        raise AuthenticationError(
            f"{peer.name} did not take the new link key; the one before still works; run 'xensecurectl rotate {host}' again", cause=Cause.NOT_ACCEPTED
        )
    return peer


def fetch_token(destination: str, ssh_options: list[str], command: str) -> Token:
    """Have the destination make a token over ssh; raises TokenError with ssh's status if there is none in its answer.

    ``destination``: [USER@]HOST; ``ssh_options``: passed to ssh with -o; ``command``: what to run there.
    """
    words = ["ssh", *[word for option in ssh_options for word in ("-o", option)], "--", destination, command]
    try:
        done = subprocess.run(words, stdin=None, stdout=subprocess.PIPE, timeout=_SSH_SECONDS, check=False)
    except FileNotFoundError:
        raise TokenError("there is no ssh here; install openssh-client, or use 'invite' there and 'join' here") from None
    except subprocess.TimeoutExpired:
        raise TokenError(f"ssh {destination} did not end within {_SSH_SECONDS} s") from None
    lines = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.startswith(PREFIX)]
    if done.returncode != 0 or len(lines) != 1:
        raise TokenError(f"ssh {destination} {command!r} printed no token (status {done.returncode}); run it by hand to see why")
    return Token.decode(lines[0])
