"""What this host keeps of a migration that it sends: for its journal, for whoever looks at what runs, for its hooks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from ..link.config import Config
from ..link.engine import Lost, Phase, Stats
from ..link.events import Event, Events
from ..link.journal import Journal, boot_id
from ..link.live import Live, LiveSession
from ..link.roles import Outcome as HooksOutcome
from ..link.roles import Role
from ..link.say import say
from ..proto import limits, xlwords
from ..proto.domain import domain_memory, domain_name
from ..proto.errors import AuthenticationError, RefusedError, StateError
from ..proto.messages import Outcome, OutcomeState
from ..proto.request import ReceiveRequest
from .alarms import Alarm
from .hooked import MigrationHooks

PROGRAM = "xensecure"
_EVENTS = {Phase.HEAD: "domain", Phase.READY: "ready", Phase.GO: "go", Phase.REPORT: "report"}


class SourceRecord:
    """One session's; nothing of it is needed for the domain to move, so what cannot be written is said once, and no more."""

    def __init__(self, config: Config, hooks: MigrationHooks, *, checkpointed: bool) -> None:
        self.peer = "the destination"
        self._events = Events(config, PROGRAM, Role.SOURCE)
        self._memory = 0
        self._config = config
        self._hooks = hooks
        self._checkpointed = checkpointed
        self._journal = Journal(config.state, Role.SOURCE)
        self._session = b""
        self._live: Live | None = None
        self._start = time.monotonic()
        self._complained = False
        self._stats: Stats | None = None
        self._domain = ""
        self._status = -1
        self._heard = False
        self._not_started = False
        self._losses = self._resumptions = 0

    def begin(self, session_id: bytes, peer: str, address: str, request: ReceiveRequest) -> None:
        """The session has an id."""
        self.peer, self._session = peer, session_id
        self._live = Live(self._config.run, session_id, role=Role.SOURCE, peer=peer)
        self._note("start", peer=peer, address=address, request=request.arguments(), boot=boot_id())
        self._knows()
        self._events.emit(Event.SESSION_STARTED, request=" ".join(request.arguments()))

    def _knows(self) -> None:
        facts = self._hooks.facts
        domain = facts.domain if self._domain in ("", "?") else self._domain
        self._events.knows(session=facts.session, peer=facts.peer, address=facts.address, domain=domain)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While a connection is made: whoever does not prove to be the peer is told of."""
        try:
            yield
        except AuthenticationError as error:
            self._knows()
            self._events.emit(Event.AUTHENTICATION_FAILED, cause=error.cause, why=str(error))
            raise

    def _note(self, event: str, **fields: object) -> None:
        try:
            self._journal.append(self._session, event, **fields)
        except StateError as error:
            if not self._complained:
                say(PROGRAM, f"{error}; 'xensecurectl status' will not know of this migration")
            self._complained = True

    def phase(self, stats: Stats, head: bytes) -> None:
        """There is a new phase of xl's protocol. ``head``: the domain's configuration, b"" if it has not passed."""
        event = _EVENTS.get(stats.phase)
        if event == "domain":
            self._domain, self._memory = domain_name(head), domain_memory(head)
            self._knows()
        if event == "domain":
            self._note(event, domain=self._domain)
        elif event == "report":
            self._note(event, status=stats.report_status)
        elif event:
            self._note(event, bytes=stats.taken[0])
        if event:
            status = stats.report_status if event == "report" else ""
            self._events.emit(Event.PHASE, phase=event, bytes=stats.taken[0], status=status)

    @property
    def shown(self) -> LiveSession | None:
        """What others see of it; None before there is a session."""
        return self._live.shown if self._live else None

    def progress(self, stats: Stats, resumptions: int, *, reconnecting: bool) -> None:
        """For whoever looks."""
        if self._live is not None:
            self._live.update(
                replace(stats.memory, total=self._memory),
                domain=self._domain,
                phase=_EVENTS.get(stats.phase, stats.phase.name.lower()),
                bytes=stats.channel_bytes[0],
                resumptions=resumptions,
                state="reconnecting" if reconnecting else "running",
            )

    def alarm(self, alarm: Alarm) -> None:
        """The neighbour guard has found something: by its thread."""
        cause = alarm.kind.name.lower()
        self._events.emit(Event.NEIGHBOUR_ALARM, cause=cause, interface=alarm.interface, was=alarm.was, now=alarm.now)

    def lane_lost(self, stats: Stats, why: str) -> None:
        """One connection of several is lost."""
        self._events.emit(Event.LANE_LOST, cause=stats.lane_lost.name.lower(), why=why)

    def lost(self, lost: Lost, why: str) -> None:
        """The link is lost, and another is looked for."""
        self._losses += 1
        self._events.emit(Event.LINK_LOST, cause=lost.name.lower(), why=why)
        if self._losses <= limits.INTERRUPTIONS_MAX:
            self._note("interrupted", why=why)

    def resumed(self, times: int) -> None:
        """There is another."""
        self._resumptions = times
        self._events.emit(Event.LINK_RESUMED, resumptions=times)
        if self._losses <= limits.INTERRUPTIONS_MAX:
            self._note("resumed")

    def hears(self, outcome: Outcome) -> None:
        """The destination's own word on how the session has ended."""
        self._heard = True
        self._note("peer", state=outcome.state.words, status=outcome.status, text=outcome.text)

    def exits(self) -> None:
        """The session was ended by the destination's EXIT, or by its ABORT before GO."""
        self._heard = True

    def replays(self, status: int) -> None:
        """That status is given to xl, and has not come over a link of the session."""
        self._status = status
        self._not_started = status == xlwords.NOT_STARTED

    def has_seen(self, stats: Stats, head: bytes) -> None:
        """The last word before the pump is closed."""
        self._stats = stats
        if self._status < 0:
            self._status = stats.report_status
        self._hooks.has_seen(stats, head, self._status)

    def end(self, why: str, error: Exception | None = None) -> None:
        """All is over. ``why``: what went wrong, in words; ``error``: with which it has ended, if it has."""
        if self._session and self._stats is not None:
            state = self._state(self._stats)
            self._note(
                "end",
                domain=self._domain,
                outcome=why or "moved",
                state=state.words,
                status=self._status if state is OutcomeState.REPORTED else 0,
                heard=self._heard or self._stats.report_status >= 0,
                bytes=self._stats.channel_bytes[0],
                seconds=round(time.monotonic() - self._start, 1),
                resumptions=self._resumptions,
            )
        if self._live is not None:
            self._live.close()
        self._tell_end(why, error)

    def _tell_end(self, why: str, error: Exception | None) -> None:
        self._knows()
        if isinstance(error, RefusedError):
            self._events.emit(Event.REFUSED, cause=error.reason.name.lower(), why=why)
        outcome, seconds = self._hooks.outcome, time.monotonic() - self._start
        sent = self._stats.channel_bytes[0] if self._stats else 0
        self._events.emit(
            Event.SESSION_ENDED,
            outcome=outcome.label,
            state=self._state(self._stats).words if self._stats else "",
            why=why,
            bytes=sent,
            seconds=round(seconds, 3),
            rate=round(sent / seconds),
            resumptions=self._resumptions,
            passes=self._stats.memory.number if self._stats else 0,
        )
        if outcome is HooksOutcome.UNKNOWN:
            self._events.emit(Event.OUTCOME_UNKNOWN, why=why)

    def _state(self, stats: Stats) -> OutcomeState:
        if self._checkpointed and stats.phase >= Phase.HEAD:
            return OutcomeState.UNKNOWN
        if self._status >= 0:
            return OutcomeState.NOT_CLEARED if self._not_started else OutcomeState.REPORTED
        return OutcomeState.CLEARED if stats.phase is Phase.GO else OutcomeState.NOT_CLEARED
