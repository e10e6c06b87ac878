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

SAME_RELEASE = "install the same release on both"


def check_destination(config: Config, credentials: Credentials, host: str, options: HostOptions, configuration: bytes = b"") -> HostReport:
    """How the host is at this moment, by its own authenticated word; nothing is started there.

    ``host``, ``options``: as for a migration. ``configuration``: a domain's (libxl's JSON, as in the head of xl's stream), at most
    CONFIGURATION_MAX bytes; the report's ``refusal`` then says why it would be refused there. Empty: no domain is asked about.

    Raises XensecureError: the host is not known or cannot be reached; it does not know this question (ProtocolError); it says no
    (RefusedError): too many ask at once.
    """
    peers = Peers(config)
    route = find_route(config, peers, host, options)
    try:
        connection = open_check(config, peers, credentials, route)
    except LinkLostError:
        if is_older(config, peers, credentials, route):
            raise ProtocolError(f"{older(route.peer.name)}; {SAME_RELEASE}") from None
        raise
    with contextlib.closing(connection.channel):
        send_question(connection, configuration)
        return receive_report(connection)


def open_check(config: Config, peers: Peers, credentials: Credentials, route: Route) -> Connection:
    """A confirmed connection for one question (K1); the caller closes it. LinkLostError: the destination may be an older one."""
    connection = reach(config, peers, credentials, route, Purpose.CHECK)
    wipe(connection.schedule.secret())
    return connection


def is_older(config: Config, peers: Peers, credentials: Credentials, route: Route) -> bool:
    """Whether a destination that has hung up on this purpose takes a connection for another one, of which nothing follows (R5)."""
    try:
        connection = reach(config, peers, credentials, reread(peers, route), Purpose.ROTATE)
    except LinkLostError:
        return False
    wipe(connection.schedule.secret())
    connection.channel.close()
    return True


def older(peer: str) -> str:
    """That it is, in words."""
    return f"the xensecure on {peer} is older than this one, and cannot say how that host is"


def send_question(connection: Connection, configuration: bytes) -> None:
    """The question (K1); it may be with this host's kernel still when this returns."""
    connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
    connection.channel.send(FrameType.OPEN, configuration)


def receive_report(connection: Connection) -> HostReport:
    """The answer (K4)."""
    # For the rest of the question's way, for what the destination does, and for the way back.
    connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS + limits.CHECK_SECONDS + limits.HANDSHAKE_SECONDS)
    return HostReport.pull(accepted_payload(connection, limits.CHECK_REPORT_MAX))
