"""Asking a destination how it is, and what it would say to a domain: docs/protocol.md, section 8."""

from __future__ import annotations

import contextlib

from ..link.config import Config, HostOptions
from ..link.connection import Deadline
from ..link.engine import wipe
from ..link.peers import Peers
from ..proto import limits
from ..proto.errors import LinkLostError, ProtocolError
from ..proto.hostreport import HostReport
from ..proto.messages import FrameType, Purpose
from ..proto.tls import Credentials
from .establish import Connection, Route, accepted_payload, find_route, reach, reread

# For the question to get there, for what the destination does, and for the way back.
_ANSWER_SECONDS = limits.HANDSHAKE_SECONDS + limits.CHECK_SECONDS + limits.HANDSHAKE_SECONDS


def check_destination(config: Config, credentials: Credentials, host: str, options: HostOptions, configuration: bytes = b"") -> HostReport:
    """How the host is at this moment, by its own authenticated word; nothing is started there.

    ``host``, ``options``: as for a migration. ``configuration``: a domain's (libxl's JSON, as in the head of xl's stream), at most
    CONFIGURATION_MAX bytes; the report's ``refusal`` then says why it would be refused there. Empty: no domain is asked about.

    Raises XensecureError: the host is not known or cannot be reached; it does not know this question (ProtocolError); it says no
    (RefusedError): too many ask at once.
    """
    peers = Peers(config)
    connection = open_check(config, peers, credentials, find_route(config, peers, host, options))
    with contextlib.closing(connection.channel):
        return ask(connection, configuration)


def open_check(config: Config, peers: Peers, credentials: Credentials, route: Route) -> Connection:
    """A confirmed connection for one question (K1); the caller closes it."""
    try:
        connection = reach(config, peers, credentials, route, Purpose.CHECK)
    except LinkLostError as lost:
        raise _explained(config, peers, credentials, route, lost) from None
    wipe(connection.schedule.secret())
    return connection


def ask(connection: Connection, configuration: bytes, seconds: float = _ANSWER_SECONDS) -> HostReport:
    """The question and its answer (K1, K4), within so many seconds."""
    channel = connection.channel
    channel.wire.deadline = Deadline(seconds)
    channel.send(FrameType.OPEN, configuration)
    return HostReport.pull(accepted_payload(connection, limits.CHECK_REPORT_MAX))


def _explained(config: Config, peers: Peers, credentials: Credentials, route: Route, lost: LinkLostError) -> LinkLostError | ProtocolError:
    """Why a destination has hung up on this purpose: it is older if it takes a connection for another one, of which nothing follows (R5)."""
    try:
        connection = reach(config, peers, credentials, reread(peers, route), Purpose.ROTATE)
    except LinkLostError:
        return lost
    wipe(connection.schedule.secret())
    connection.channel.close()
    older = f"the xensecure on {route.peer.name} is older than this one, and cannot say how that host is"
    return ProtocolError(f"{older}; install the same release on both")
