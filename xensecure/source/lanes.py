"""The connections of one session: the first, and those that are made while its stream flows already (docs/protocol.md, section 6)."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ..link.config import Config
from ..link.connection import Deadline
from ..link.engine import Lost, Pump, Stats, wipe
from ..link.peers import Peers
from ..link.say import say
from ..proto import limits
from ..proto.errors import ProtocolError, Reason, RefusedError, StateError, XensecureError
from ..proto.messages import Purpose
from ..proto.tls import Credentials
from .establish import Connection, Route, accepted_payload, reach

PROGRAM = "xensecure"
# Seconds before each further try: the destination may be busy with its start, or a firewall with us; a session of minutes gains from a late one.
_PAUSES = (1.0, 5.0, 20.0, 60.0)
_FINAL = (Reason.NOT_ALLOWED, Reason.TOO_MANY)

LOST = {
    Lost.CLOSED: "the destination closed the connection before its end",
    Lost.RESET: "the connection was reset",
    Lost.SILENCE: "nothing came from the destination any more",
    Lost.HEADER: "SECURITY: a malformed frame came: the data was changed on the way, by an attacker or by faulty hardware",
    Lost.TAG: "SECURITY: a frame's tag does not hold: the data was changed on the way, by an attacker or by faulty hardware",
    Lost.PROTOCOL: "a frame came that the protocol does not allow",
    Lost.SYSTEM: "the socket failed",
    Lost.ABORT: "given up here",
}


def why_lost(lost: Lost, error: int) -> str:
    """Why a connection was lost, in words."""
    return LOST[lost] + (f" ({os.strerror(error)})" if error else "")


def join_session(config: Config, credentials: Credentials, route: Route, session_id: bytes) -> Connection:
    """One more connection for a session (J1); RefusedError if the destination will not."""
    peers = Peers(config)
    peer = peers.get(route.peer.name)  # anew: the keys of the first connection are wiped, and may have been renewed
    if peer is None:
        raise StateError(f"{route.peer.name} was forgotten here meanwhile")
    connection = reach(config, peers, credentials, replace(route, peer=peer), Purpose.JOIN, session_id=session_id)
    wipe(connection.schedule.secret())
    try:
        connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
        if accepted_payload(connection):
            raise ProtocolError("ACCEPT with a payload where none belongs")
    except BaseException:
        connection.channel.close()
        raise
    return connection


class Lanes:
    """All connections of a session, in one pump.

    Arguments: ``first``: the one over which it was opened; ``make``: makes one more, in a thread; ``wake``: has ``take_new`` called soon;
    ``attached``: is told of each before it is used, and may forbid that (XensecureError); ``verbose``: say also what is no loss.
    """

    def __init__(
        self,
        pump: Pump,
        first: Connection,
        *,
        make: Callable[[], Connection],
        wake: Callable[[], None],
        attached: Callable[[socket.socket], None],
        verbose: bool,
    ) -> None:
        self._pump = pump
        self._make = make
        self._wake = wake
        self._attached = attached
        self._verbose = verbose
        self._made: queue.SimpleQueue[tuple[int, Connection | str]] = queue.SimpleQueue()
        self._generation = 0
        self._connections: dict[int, Connection] = {}
        self.most = 0
        self._attach(first)

    def _attach(self, connection: Connection) -> None:
        number = connection.channel.sock.fileno()
        self._attached(connection.channel.sock)
        self._pump.attach(connection.channel.link, number)
        self._connections[number] = connection
        self.most = max(self.most, len(self._connections))

    def start(self, wanted: int) -> None:
        """Have further connections made until there are ``wanted``, one after the other: a destination takes few strangers at once."""
        if wanted > 1:
            # A daemon: nobody waits for a connection that comes when all is over.
            threading.Thread(target=self._make_all, args=(wanted - 1, self._generation), name="lanes", daemon=True).start()

    def _make_all(self, count: int, generation: int) -> None:
        pauses = list(_PAUSES)
        while count and generation == self._generation:
            try:
                self._tell(generation, self._make())
                count -= 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the migration goes on without this connection
                self._tell(generation, str(error) if isinstance(error, XensecureError | OSError) else f"internal error, please report: {error!r}")
                if not pauses or (isinstance(error, RefusedError) and error.reason in _FINAL):
                    return
                time.sleep(pauses.pop(0))

    def _tell(self, generation: int, made: Connection | str) -> None:
        self._made.put((generation, made))
        self._wake()

    def take_new(self) -> None:
        """Use the connections that have been made meanwhile."""
        while not self._made.empty():
            generation, made = self._made.get()
            if generation != self._generation:  # for a link that is lost: the session goes on over none but the one that resumes it (S4)
                if isinstance(made, Connection):
                    made.channel.close()
                continue
            if isinstance(made, str):
                self._say(f"a further connection cannot be made: {made}; the migration goes on without it")
                continue
            try:
                self._attach(made)
                self._say(f"{len(self._connections)} connections")
            except XensecureError as error:
                made.channel.close()
                self._say(f"a further connection cannot be used: {error}; the migration goes on without it")

    def _say(self, line: str) -> None:
        if self._verbose:
            say(PROGRAM, line)

    def lost(self, stats: Stats, *, broken: bool) -> None:
        """One was lost while others live; ``broken``: by us, and so will they be."""
        self._connections.pop(stats.lane_socket).channel.close()
        if not broken:
            say(PROGRAM, f"one of the connections was lost: {why_lost(stats.lane_lost, stats.lane_errno)}; the migration goes on over {stats.lanes}")

    def all_lost(self) -> None:
        """The last one was lost: what is still being made is too late, and the peer shall see the end of the others."""
        self._generation += 1
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.channel.sock.shutdown(socket.SHUT_RDWR)

    def replace(self, connection: Connection) -> None:
        """Another one takes the place of all that were lost (S4)."""
        lost, self._connections = self._connections, {}
        try:
            self._attach(connection)
        except XensecureError:
            self._connections = lost
            raise
        for old in lost.values():
            old.channel.close()

    def close(self) -> None:
        """Close them all; the pump must have let go of them."""
        for connection in self._connections.values():
            connection.channel.close()
        self._connections.clear()
