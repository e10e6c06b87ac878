"""``xensecurectl status``: what runs, and where the domains are that did not plainly arrive."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from ..link.config import Config
from ..link.domains import AWAY, INCOMING, Seen, list_domains, own_name, sight
from ..link.hooks import Role
from ..link.journal import RECENT_SECONDS, PeerWord, Record, records
from ..link.live import LiveSession, live_sessions
from ..proto.errors import SystemFailure, XensecureError
from ..proto.messages import Outcome, printable
from ..source.query import ask_outcome
from ..source.settle import keep, own_word
from .common import out
from .verdict import Case, Verdict, decide, is_final, moment, needs_word
from .verdict_table import Sure

NEEDS_OPERATOR = 1  # exit status
_LOOKS = 5

Ask = Callable[[Config, str, bytes, Outcome], Outcome]


def status(config: Config, chosen: argparse.Namespace) -> int:
    """The command; 1 if something needs the operator."""
    inquiry = Inquiry(config)
    name = own_name(chosen.domain) if chosen.domain else None
    live = [session for session in inquiry.live if name in (None, session.domain)]
    verdicts = [] if name and live else inquiry.verdicts(name)
    if chosen.json:
        out(json.dumps({"host": config.name, "live": [asdict(session) for session in live], "domains": [asdict(each) for each in verdicts]}))
    else:
        for line in [line for session in live for line in _live_lines(config, session)] + [line for each in verdicts for line in _lines(each)]:
            out(line)
        if not live and not verdicts:
            out("no migration runs on this host, and none of the last day needs anybody")
    return 0 if all(each.well for each in verdicts) else NEEDS_OPERATOR


class Inquiry:
    """Puts together what is known: journal, what runs, xl, and the other hosts. ``ask``: asks one of these."""

    def __init__(self, config: Config, ask: Ask = ask_outcome) -> None:
        self._config = config
        self._ask = ask
        self.host = config.name
        self.live, self.records = _look(config)
        self._silent: dict[str, str] = {}
        self.domains: dict[str, Seen] | str
        try:
            self.domains = list_domains(config)
        except SystemFailure as error:
            self.domains = str(error)

    def verdicts(self, name: str | None = None) -> list[Verdict]:
        """On one domain; or on all that did not plainly arrive within the last day, or that xl has under a name of the way."""
        if name is not None:
            return [self.verdict(name)]
        busy = {session.domain for session in self.live}
        newest: dict[str, Record] = {}
        for record in self.records:
            newest[record.domain or record.session] = record
        recent = time.time() - RECENT_SECONDS
        found = [record for record in newest.values() if record.last >= recent and not record.went_well]
        names = [record.domain for record in found]
        if isinstance(self.domains, dict):
            names += [own_name(each) for each in self.domains if each.endswith((AWAY, INCOMING))]
        return [self.verdict(each) for each in dict.fromkeys(names) if each and each not in busy]

    def verdict(self, name: str) -> Verdict:
        """Where that domain is."""
        record = next((record for record in reversed(self.records) if record.domain == name), None)
        return decide(
            Case(
                domain=name,
                host=self.host,
                record=record,
                seen=self.domains if isinstance(self.domains, str) else sight(self.domains, name),
                word=self._word(record) if record else None,
                same_boot=record is None or record.same_boot,
            )
        )

    def _word(self, record: Record) -> PeerWord | str | None:
        """The other host's word: the one that is in the journal, or a new one where that may have changed."""
        if not needs_word(record) or (record.peer_word is not None and is_final(record.peer_word)):
            return record.peer_word
        if record.peer not in self._silent:
            try:
                return self._asked(record)
            except XensecureError as error:
                self._silent[record.peer] = str(error)
        return self._silent[record.peer]

    def _asked(self, record: Record) -> PeerWord:
        outcome = self._ask(self._config, record.peer, bytes.fromhex(record.session), own_word(record))
        keep(self._config, record, outcome)
        return PeerWord(outcome.state.words, outcome.status, outcome.text, time.time())


def _look(config: Config) -> tuple[list[LiveSession], list[Record]]:
    """What runs, and the records of all else: read until nothing has begun or ended meanwhile, or a session that runs could pass for a dead one."""
    live = live_sessions(config.run)
    for _ in range(_LOOKS):
        found = records(config.state)
        before, live = live, live_sessions(config.run)
        running = {(session.session, session.role) for session in live}
        if running == {(session.session, session.role) for session in before}:
            break
    # The journal names a domain at once, its session about once a second.
    names = {(record.session, record.role): record.domain for record in found}
    live = [replace(session, domain=session.domain or names.get((session.session, session.role), "")) for session in live]
    return live, [record for record in found if (record.session, record.role) not in running]


# ---- for people


def _live_lines(config: Config, session: LiveSession) -> list[str]:
    ends = (config.name, session.peer) if session.role is Role.SOURCE else (session.peer, config.name)
    state = session.state if session.state == "running" else f"{session.state} since {moment(session.state_since)}"
    name, phase = printable(session.domain) or "(not named yet)", printable(session.phase) or "start"
    return [
        f"{name}: from {ends[0]} to {ends[1]}: {printable(state)}; phase {phase}",
        f"    {session.figures}",
        f"    session {session.session}, process {session.pid}",
    ]


def _lines(verdict: Verdict) -> list[str]:
    sure = "" if verdict.sure is Sure.OPEN else f" ({verdict.sure})"
    lines = [f"{printable(verdict.domain)}: {verdict.words}", f"    held by: {verdict.host}{sure}"]
    lines += [f"    {line}" for line in verdict.evidence]
    if verdict.steps:
        lines += ["    next:", *(f"        {step.host}# {step.command}" for step in verdict.steps)]
    if verdict.cases:
        lines += ["    then, if", *(f"      - {case}" for case in verdict.cases)]
    return lines
