"""A new link for a session that has lost its own: the source's side of docs/protocol.md, steps S2 to S5."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace

from ..link.config import Config, HostOptions
from ..link.connection import Deadline
from ..link.engine import wipe
from ..link.peers import Peers
from ..proto import limits
from ..proto.errors import XensecureError
from ..proto.messages import FrameType, Outcome, OutcomeState, Purpose
from ..proto.tls import Credentials
from .establish import Connection, find_route, reach
from .guard import Guard
from .query import ask_outcome, outcome_in


def resume_session(
    config: Config, credentials: Credentials, host: str, options: HostOptions, guard: Guard, session_id: bytes
) -> Connection | Outcome:
    """One attempt: a link over which the session goes on, or what became of it."""
    if guard.is_suspicious():  # a link that may not be used would only keep the destination waiting for another
        return ask_outcome(config, host, session_id, Outcome(OutcomeState.GOING_ON), options=options)
    peers = Peers(config)  # anew: its addresses and keys may have changed
    route = find_route(config, peers, host, options, why_not=guard.why_not)
    connection = reach(config, peers, credentials, route, Purpose.RESUME, session_id=session_id)
    wipe(connection.schedule.secret())
    try:
        connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
        frame = connection.channel.receive()
        if frame.type is FrameType.ACCEPT and not frame.payload:
            guard.watch(connection.channel.sock)
            return connection
        outcome = outcome_in(frame)
    except BaseException:
        connection.channel.close()
        raise
    connection.channel.close()
    return outcome


class Resumption:
    """Attempts, in a thread, until there is a link or an answer.

    Arguments: ``attempt``: makes one, with the seconds that it may take; ``wake``: is called when ``result`` has something. ``problem``: why the last
    attempt came to nothing, in words.
    """

    def __init__(self, attempt: Callable[[float], Connection | Outcome], *, wake: Callable[[], None]) -> None:
        self.problem = ""
        self._attempt = attempt
        self._wake = wake
        self._results: queue.SimpleQueue[Connection | Outcome] = queue.SimpleQueue()
        self._over = threading.Event()
        threading.Thread(target=self._run, name="resumption", daemon=True).start()

    def _run(self) -> None:
        pause, seconds = limits.RESUME_PAUSE_SECONDS, limits.RESUME_ATTEMPT_SECONDS
        while not self._over.is_set():
            try:
                result = self._attempt(seconds)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt may go better
                self.problem = str(error) if isinstance(error, XensecureError | OSError) else f"internal error, please report: {error!r}"
            else:
                if isinstance(result, Connection) or result.state is not OutcomeState.GOING_ON:
                    self._results.put(result)
                    self._wake()
                    return
                self.problem = f"the destination says: {result.text}"
            seconds += limits.RESUME_ATTEMPT_SECONDS  # a host that has just come up is slow
            self._over.wait(pause)
            pause = min(2 * pause, limits.RESUME_PAUSE_MAX_SECONDS)

    def result(self) -> Connection | Outcome | None:
        """What has come of it, once; None while there is nothing."""
        try:
            return self._results.get_nowait()
        except queue.Empty:
            return None

    def end(self) -> None:
        """Nobody waits for it any more."""
        self._over.set()
        result = self.result()
        if isinstance(result, Connection):
            result.channel.close()


def shortened(options: HostOptions, seconds: float) -> HostOptions:
    """For one attempt of several: no more time than that."""
    return replace(options, connect_timeout=int(min(options.connect_timeout, seconds)))
