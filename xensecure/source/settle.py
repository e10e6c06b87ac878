"""Sessions of before that ended without the destination's word: it is asked for when that host has just been reached (S11)."""

from __future__ import annotations

import contextlib

from ..link.config import Config
from ..link.events import Event, Events
from ..link.hooks import Role
from ..link.journal import GOING_ON, Journal, Record, records
from ..link.live import live_sessions
from ..link.say import say
from ..proto.errors import StateError, XensecureError
from ..proto.messages import Outcome, OutcomeState
from .query import ask_outcome

PROGRAM = "xensecure"
_MOST = 4  # the newest, at a connection each: who asks has moved a domain, and others may wait for his end


def settle(config: Config, peer: str) -> None:
    """Ask, and keep the answers in the journal. What cannot be asked now is asked the next time."""
    with contextlib.suppress(XensecureError):
        running = {shown.session for shown in live_sessions(config.run)}
        unsettled = [record for record in records(config.state) if _is_open(record, peer) and record.session not in running]
        for record in unsettled[-_MOST:]:
            answer = ask_outcome(config, peer, bytes.fromhex(record.session), own_word(record))
            if answer.state is not OutcomeState.GOING_ON:
                keep(config, record, answer)
                events = Events(config, PROGRAM, Role.SOURCE)
                events.knows(session=record.session, peer=peer, address=record.address, domain=record.domain)
                events.emit(Event.OUTCOME_SETTLED, state=answer.state.words, status=answer.status, why=answer.text)
                say(PROGRAM, f"{peer} says of {record.domain or 'a domain'} that was sent before: {answer.state.words}: {answer.text}")


def _is_open(record: Record, peer: str) -> bool:
    return record.role is Role.SOURCE and record.peer == peer and not record.heard and record.peer_word is None


def own_word(record: Record) -> Outcome:
    """What this host, as the source, tells the other of a session."""
    if record.state == GOING_ON:  # it was killed
        return Outcome(OutcomeState.CLEARED if record.go else OutcomeState.UNKNOWN, text="xensecure was killed there")
    state = OutcomeState.named(record.state)
    return Outcome(state, (record.report or 0) & 255 if state is OutcomeState.REPORTED else 0, record.outcome)


def keep(config: Config, record: Record, answer: Outcome) -> None:
    """The destination's word, in this host's journal; a full disk costs the note, not the answer."""
    with contextlib.suppress(StateError):
        journal = Journal(config.state, Role.SOURCE)
        journal.append(bytes.fromhex(record.session), "peer", state=answer.state.words, status=answer.status, text=answer.text)
