"""A confirmed connection to a peer: the source's side of docs/protocol.md, steps C1 to C7."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..link.config import Config, HostOptions
from ..link.connection import Deadline, FrameChannel, Target, Wire, connect, frames_after, run_handshake
from ..link.engine import compiled_features, find_backend
from ..link.peers import LinkKey, Peer, Peers, wipe_keys
from ..proto import limits
from ..proto.errors import AuthenticationError, Cause, ProtocolError, RefusedError, StateError, TurnedAwayError, UsageError
from ..proto.handshake import SourceHandshake, State, source_link_keys
from ..proto.keyschedule import KeySchedule
from ..proto.messages import Feature, FrameType, Purpose, Refusal, SourceHello
from ..proto.tls import Credentials


@dataclass
class Connection:
    """A confirmed connection: its control frames, the key schedule (for PAIR and ROTATE), the key-exchange group's name, what was agreed on."""

    channel: FrameChannel
    schedule: KeySchedule
    group: str
    features: Feature


@dataclass(frozen=True)
class Route:
    """A peer, how to reach it, and for how long to try."""

    peer: Peer
    target: Target
    options: HostOptions


def find_route(
    config: Config, peers: Peers, host: str, options: HostOptions, *, why_not: Callable[[tuple[Any, ...]], str] = lambda _: ""
) -> Route:
    """Who HOST is and where it answers; StateError with what to do if this host has not met it. ``why_not``: as in ``Target``."""
    wanted = options.peer or host
    peer = peers.find(wanted)
    if peer is None and not options.peer:
        peer = next((found for address in options.address if (found := peers.find(address))), None)
    if peer is None:
        remedy = f"run 'xensecurectl invite' there and 'xensecurectl join TOKEN' here, or 'xensecurectl enroll --ssh root@{host}'"
        raise StateError(f"no link key for {wanted!r}; {remedy}")
    addresses = options.address or ((host,) if host in peer.contact.addresses else peer.contact.addresses)
    if not addresses:
        raise UsageError(f"no address is known for {peer.name}; set 'address' in [host.{host}] of {config.path}")
    target = Target(addresses=addresses, port=options.port or peer.contact.port, bind=options.bind, family=options.family, why_not=why_not)
    return Route(peer=peer, target=target, options=options)


def reread(peers: Peers, route: Route) -> Route:
    """The same route with the peer's link keys read anew, for ``reach`` wipes them; AuthenticationError if it was forgotten meanwhile."""
    peer = peers.get(route.peer.name)
    if peer is None:
        raise AuthenticationError(f"{route.peer.name} was forgotten here meanwhile")
    return Route(peer=peer, target=route.target, options=route.options)


def establish(
    *,
    credentials: Credentials,
    target: Target,
    hello: SourceHello,
    key: bytes,
    pin: bytes | None,
    names: tuple[str, ...],
    seconds: float,
    cipher: str = "auto",
) -> Connection:
    """Connect and run the modified key exchange once, under one key (32 bytes), within ``seconds``.

    ``pin``: the only one the destination may have (None: CA mode, then its certificate must carry one of ``names``). ``cipher``: as in ``Link``.
    A destination that turns us away unheard has no room for strangers just now (UNAUTHENTICATED_PER_ADDRESS_MAX): it is tried again (T6).
    """
    find_backend(cipher)  # before the other host is bothered
    deadline = Deadline(seconds)
    pause = limits.TURNED_AWAY_PAUSE_SECONDS
    while True:
        handshake = SourceHandshake(credentials=credentials, hello=hello, expected_pin=pin, accepted_names=names)
        try:
            return _confirmed(connect(target, deadline), deadline, handshake, key, cipher)
        except TurnedAwayError:
            wait = pause * random.uniform(0.5, 1.5)  # noqa: S311 - so that many who were turned away together do not come again together
            if deadline.left() <= wait:
                raise
        time.sleep(wait)
        pause = min(2 * pause, limits.TURNED_AWAY_PAUSE_MAX_SECONDS)


def _confirmed(sock: socket.socket, deadline: Deadline, handshake: SourceHandshake, key: bytes, cipher: str) -> Connection:
    """The key exchange on a socket, which is closed if it fails."""
    answerer = _answerer(sock)
    try:
        wire = Wire(sock, deadline)
        handshake.start()
        run_handshake(wire, handshake, State.WAIT_LINK_KEY)
        handshake.prove(key)
        run_handshake(wire, handshake, State.CONFIRMED)
        if handshake.schedule is None:
            raise AuthenticationError("confirmed without a key schedule", cause=Cause.MALFORMED)
        channel = frames_after(sock, wire, handshake, source_link_keys(handshake.schedule), cipher=cipher)
        return Connection(channel=channel, schedule=handshake.schedule, group=handshake.tls.group_name, features=handshake.features)
    except BaseException as error:
        sock.close()
        if isinstance(error, AuthenticationError) and error.impostor:
            raise AuthenticationError(f"SECURITY: {answerer}: {error}", impostor=True, cause=error.cause) from None
        raise


def _answerer(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:  # it has gone again
        return "a stranger"


def reach(
    config: Config, peers: Peers, credentials: Credentials, route: Route, purpose: Purpose, *, session_id: bytes = b""
) -> Connection:
    """A confirmed connection to a known peer: under its newest key, or, where the peer does not have that yet, the one before.

    Another process may renew the key meanwhile: keys that are new since ``route`` was found are tried too. ``session_id``: with JOIN.
    """
    tried: set[bytes] = set()
    peer: Peer | None = route.peer
    refused = AuthenticationError(f"{route.peer.name} was forgotten here meanwhile", cause=Cause.KEY_REPLACED)
    while peer is not None and (untried := [link_key for link_key in peer.keys if link_key.id not in tried]):
        try:
            for link_key in reversed(untried):
                tried.add(link_key.id)
                try:
                    features = _wanted_features(route.options, purpose)
                    hello = SourceHello(purpose=purpose, key_id=link_key.id, features=features, session_id=session_id)
                    connection = _attempt(config, credentials, route, hello, link_key)
                except AuthenticationError as error:
                    refused = error
                    continue
                peers.settle(peer.name, link_key.id)
                return connection
        finally:
            wipe_keys(peer)
        peer = peers.get(peer.name)
    raise refused


def _attempt(config: Config, credentials: Credentials, route: Route, hello: SourceHello, link_key: LinkKey) -> Connection:
    peer = route.peer
    return establish(
        credentials=credentials,
        target=route.target,
        hello=hello,
        key=link_key.key,
        pin=None if config.trust == "ca" else peer.pin,
        names=(peer.name, *peer.contact.addresses),
        seconds=route.options.connect_timeout,
        cipher=config.cipher,
    )


def _wanted_features(options: HostOptions, purpose: Purpose) -> Feature:
    """What to offer: no more than is wanted, so that a destination which can do less is as good a one."""
    if purpose is Purpose.MIGRATE and options.compress != "off":
        return compiled_features() & Feature.ZSTD
    return Feature.NONE


def accepted_payload(connection: Connection, most: int = limits.CONTROL_PAYLOAD_MAX) -> bytes:
    """The payload of ACCEPT, of at most ``most`` bytes; RefusedError for REFUSE, ProtocolError for anything else."""
    frame = connection.channel.receive(most)
    if frame.type is FrameType.REFUSE:
        refusal = Refusal.pull(frame.payload)
        raise RefusedError(f"the destination refuses: {refusal.text}", refusal.reason)
    if frame.type is not FrameType.ACCEPT:
        raise ProtocolError(f"{frame.type.name} where ACCEPT or REFUSE belongs")
    return frame.payload
