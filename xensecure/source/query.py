"""Asking the destination what became of a session: docs/protocol.md, step S11."""

from __future__ import annotations

from ..link.config import Config, HostOptions
from ..link.connection import Deadline
from ..link.engine import Frame, wipe
from ..link.identity import load_credentials
from ..link.peers import Peers
from ..proto import limits
from ..proto.errors import ProtocolError, RefusedError
from ..proto.messages import FrameType, Outcome, Purpose, Refusal
from .establish import find_route, reach


def ask_outcome(config: Config, host: str, session_id: bytes, word: Outcome, *, options: HostOptions | None = None) -> Outcome:
    """What the peer knows of a session; ``word``: what this host knows. XensecureError if the peer cannot be asked.

    ``options``: how to reach it, if not as the configuration says.
    """
    peers = Peers(config)
    route = find_route(config, peers, host, options or config.options_for(host))
    connection = reach(config, peers, load_credentials(config), route, Purpose.QUERY, session_id=session_id)
    wipe(connection.schedule.secret())
    try:
        connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
        connection.channel.send(FrameType.OUTCOME, word.push())
        return outcome_in(connection.channel.receive())
    finally:
        connection.channel.close()


def outcome_in(frame: Frame) -> Outcome:
    """The outcome in the only frame of a link that is for nothing else; RefusedError for REFUSE, ProtocolError for anything else."""
    if frame.type is FrameType.REFUSE:
        refusal = Refusal.pull(frame.payload)
        raise RefusedError(f"the destination refuses: {refusal.text}", refusal.reason)
    if frame.type is not FrameType.OUTCOME:
        raise ProtocolError(f"{frame.type.name} where OUTCOME belongs")
    return Outcome.pull(frame.payload)
