"""What became of a session, by this host's journal: the answer to RESUME and QUERY (docs/protocol.md, S5 and S11)."""

from __future__ import annotations

from ..link.journal import Record
from ..proto.messages import Outcome, OutcomeState

DENIED = "denied"  # the journal's event: the source has been told that GO was not delivered; it and "go" exclude each other


def recorded_outcome(record: Record | None, peer: str) -> Outcome:
    """What the journal says of a session that no keeper has any more. One that is not this peer's is not known."""
    if record is None or not record.started or record.peer != peer:
        return Outcome(OutcomeState.UNKNOWN, text="no session of that id with this host is in the journal there")
    if not record.ended:
        return _unfinished(record)
    state = OutcomeState.named(record.state)
    return Outcome(state, _status(record) if state is OutcomeState.REPORTED else 0, record.outcome)


def _unfinished(record: Record) -> Outcome:
    """Of a session whose keeper was killed, or went down with its host."""
    why = "its keeper there was killed" if record.same_boot else "that host was restarted since"
    if record.report is not None and (record.report != 0 or record.same_boot):
        return Outcome(OutcomeState.REPORTED, _status(record), f"xl there reported status {record.report}, and {why}")
    if record.report is not None:
        return Outcome(OutcomeState.CLEARED, text=f"the domain ran there, and {why}")
    if record.checkpointed:
        return Outcome(OutcomeState.CLEARED, text=f"xl there may have started the last checkpoint, and {why}")
    if record.go:
        return Outcome(OutcomeState.CLEARED, text=f"the domain was cleared to run there, no report of xl's was seen, and {why}")
    return Outcome(OutcomeState.NOT_CLEARED, text=f"the domain was not cleared to run there, and {why}")


def _status(record: Record) -> int:
    """A byte, whatever the file has been made to say."""
    return min(max(record.report or 0, 0), 255)
