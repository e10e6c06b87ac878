"""Which host holds a domain, on what evidence, and what sets it right: a pure function of what is known, by the table of :mod:`verdict_table`."""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import dataclass

from ..link import journal
from ..link.domains import AWAY, INCOMING, Seen, Sightings
from ..link.hooks import Role
from ..link.journal import PeerWord, Record
from ..proto.messages import printable
from .verdict_table import ALONE, DESTINATION, NOT_OVER, SOURCE, Fate, Picture, Place, Row, Sure

# A domain's name is its sender's word. Another than these could be taken for an option where it stands in a command line.
_SAFE_NAME = re.compile(r"[^\W-]", re.ASCII)
UNKNOWN_HOST = "unknown"
_STATES = {
    journal.UNKNOWN: "it does not know what became of it",
    journal.GOING_ON: "it is not over there",
    journal.REPORTED: "xl there reported status {}",
    journal.NOT_CLEARED: "the domain has not run there",
    journal.CLEARED: "the domain was cleared to run there, and what xl made of it is not known",
    journal.FAILED_OVER: "it has started the last checkpoint",
}


@dataclass(frozen=True)
class Step:
    """One command to type, and on which host."""

    host: str
    command: str


@dataclass(frozen=True)
class Case:
    """All that is known of one domain. ``seen``: it in this host's ``xl list``, or why there is none; ``word``: the other host's, or why it
    could not be had; None: nobody was asked.
    """

    domain: str
    host: str
    record: Record | None
    seen: Sightings | str
    word: PeerWord | str | None = None
    same_boot: bool = True

    @property
    def peer(self) -> str:
        """The other host."""
        return (self.record.peer if self.record else "") or "the other host"


@dataclass(frozen=True)
class Verdict:
    """Where the domain is.

    ``host`` that holds it, or "unknown"; ``evidence``: a line each; ``steps``: what to type; ``cases``: what each thing that may be seen then
    means; ``well``: nobody has to do anything; ``may_resume``: what is suspended here has not run at the destination.
    """

    domain: str
    host: str
    sure: Sure
    words: str
    evidence: tuple[str, ...]
    steps: tuple[Step, ...]
    cases: tuple[str, ...]
    well: bool
    may_resume: bool


def decide(case: Case) -> Verdict:
    """The verdict."""
    picture = picture_of(case)
    fate = fate_of(case, picture)
    row = _row(case, fate, picture)
    typed = shlex.quote(printable(case.domain))
    shown = {"name": printable(case.domain) or "the domain", "host": case.host, "peer": case.peer}
    nameable = is_safe_name(case.domain)
    steps = [Step(host, text.format(name=typed)) for host, texts in ((case.peer, row.there), (case.host, row.here)) for text in texts]
    return Verdict(
        domain=case.domain,
        host={Place.HERE: case.host, Place.THERE: case.peer, Place.UNKNOWN: UNKNOWN_HOST}[row.place],
        sure=row.sure,
        words=row.words.format(**shown),
        evidence=tuple(_evidence(case)),
        steps=tuple(steps) if nameable else (),
        cases=tuple(text.format(**{**shown, "name": typed}) for text in row.cases) if nameable else (),
        well=row.well,
        may_resume=fate is Fate.NOT_STARTED and picture in (Picture.AWAY, Picture.SUSPENDED) and case.record is not None and _is_source(case.record),
    )


def _row(case: Case, fate: Fate, picture: Picture) -> Row:
    if case.record is None:
        return ALONE[picture]
    if fate is Fate.GOING_ON:
        return NOT_OVER
    return (SOURCE if _is_source(case.record) else DESTINATION)[fate, picture]


def _is_source(record: Record) -> bool:
    return record.role is Role.SOURCE


def is_safe_name(name: str) -> bool:
    """Whether a domain's name can be typed where a command takes one."""
    return bool(_SAFE_NAME.match(name))


# ---- what is seen here


_ALONE_UNDER_ITS_NAME = {Seen.RUNNING: Picture.RUNS, Seen.PAUSED: Picture.PAUSED, Seen.SUSPENDED: Picture.SUSPENDED, Seen.ENDED: Picture.ENDED}


def picture_of(case: Case) -> Picture:
    """This host's ``xl list`` in one word."""
    if isinstance(case.seen, str):
        return Picture.UNSEEN
    own, incoming, away = case.seen.own, case.seen.incoming, case.seen.away
    there = [state for state in (own, incoming, away) if state is not Seen.ABSENT]
    if not there:
        return Picture.NOTHING if case.same_boot else Picture.RESTARTED
    if own is Seen.RUNNING and incoming is Seen.ABSENT and away is not Seen.ABSENT:
        return Picture.RUNS_BESIDE_AWAY
    if len(there) > 1:
        return Picture.SEVERAL
    if incoming is not Seen.ABSENT:
        return Picture.INCOMING
    if away is not Seen.ABSENT:
        return Picture.AWAY if away is Seen.SUSPENDED else Picture.AWAY_OTHERWISE
    if own is Seen.PAUSED and case.record is not None and not _is_source(case.record) and "-p" in case.record.request:
        return Picture.PAUSED_AS_ASKED
    return _ALONE_UNDER_ITS_NAME[own]


# ---- what became of it at the destination


def needs_word(record: Record) -> bool:
    """Whether this host's own record leaves open what the destination made of the domain, so that it has to be asked."""
    return _is_source(record) and _own_fate(record) in (Fate.UNDECIDED, Fate.GOING_ON)


def is_final(word: PeerWord) -> bool:
    """Whether the other host's word will not change any more."""
    return _from_state(word.state, word.status) not in (Fate.UNDECIDED, Fate.GOING_ON)


def fate_of(case: Case, picture: Picture) -> Fate:
    """What the destination's xl made of the domain, by this host's record and the other host's word."""
    record = case.record
    if record is None:
        return Fate.NO_SESSION
    fate = _own_fate(record)
    if fate is Fate.UNDECIDED and _is_source(record):
        if isinstance(case.word, PeerWord):
            fate = _from_state(case.word.state, case.word.status)
        if fate is Fate.UNDECIDED and _was_kept(case, record, picture):
            return Fate.KEPT
    return fate


def _was_kept(case: Case, record: Record, picture: Picture) -> bool:
    """Killed before xl let go: xl renames a domain to NAME--migratedaway before it says GO (xl_migrate.c), and this one has its name."""
    begun = record.go or record.report is not None or record.ended or record.checkpointed
    return not begun and case.same_boot and picture in (Picture.RUNS, Picture.PAUSED)


def _own_fate(record: Record) -> Fate:
    if record.ended:
        return _from_state(record.state, record.report)
    if record.report is not None:
        return _from_state(journal.REPORTED, record.report)
    # The destination writes that GO has come before xl gets it (S7); the source may have been killed between the two. Under Remus there is no GO.
    if _is_source(record) or record.go or record.checkpointed:
        return Fate.UNDECIDED
    return Fate.NOT_STARTED


def _from_state(state: str, status: int | None) -> Fate:
    if state == journal.REPORTED and status is not None:
        return Fate.STARTED if status == 0 else Fate.NOT_STARTED
    fates = {journal.NOT_CLEARED: Fate.NOT_STARTED, journal.FAILED_OVER: Fate.FAILED_OVER, journal.GOING_ON: Fate.GOING_ON}
    return fates.get(state, Fate.UNDECIDED)


# ---- evidence


def _evidence(case: Case) -> list[str]:
    lines = [_journal_line(case)]
    if not case.same_boot:
        lines.append(f"{case.host} has been restarted since that session began")
    lines.append(f"xl list on {case.host}: {_seen_line(case)}")
    if isinstance(case.word, PeerWord):
        state = _STATES.get(case.word.state, printable(case.word.state)).format(case.word.status)
        text = f" ({printable(case.word.text)})" if case.word.text else ""
        lines.append(f"{case.peer} says, asked {moment(case.word.time)}: {state}{text}")
    elif case.word:
        lines.append(f"{case.peer} cannot be asked: {printable(case.word)}")
    if not is_safe_name(case.domain):
        lines.append("its name is none to be typed: use its id from 'xl list'")
    return lines


def _journal_line(case: Case) -> str:
    record = case.record
    if record is None:
        return f"journal of {case.host}: no session of it"
    way = f"to {case.peer}" if _is_source(record) else f"from {case.peer}"
    line = f"journal of {case.host}: session {record.session} {way}, begun {moment(record.started)}"
    if record.ended:
        return f"{line}, ended {moment(record.ended)}: {printable(record.outcome) or record.state}"
    steps = [*(["GO"] if record.go else ["ready"] if record.ready else []), *([f"report {record.report}"] if record.report is not None else [])]
    return f"{line}, has no end; last seen {moment(record.last)}{', after ' if steps else ''}{', '.join(steps)}"


def _seen_line(case: Case) -> str:
    if isinstance(case.seen, str):
        return printable(case.seen)
    names = (("", case.seen.own), (INCOMING, case.seen.incoming), (AWAY, case.seen.away))
    return ", ".join(f"{printable(case.domain)}{suffix} {state}" for suffix, state in names if state is not Seen.ABSENT) or "nothing of it"


def moment(seconds: float) -> str:
    """A point in time as people here read it, with the offset from UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds)) if seconds else "at a time unknown"
