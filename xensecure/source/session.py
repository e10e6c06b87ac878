"""The source's part of a session: moves xl's bytes, outlives lost links, and gives xl no word that is not the destination's (section 7)."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..link.engine import Compression, Event, Lost, Phase, Pump, PumpOptions, Side, Stats
from ..link.say import say
from ..proto import limits, xlwords
from ..proto.domain import domain_name
from ..proto.errors import TRANSPORT_FAILURE, LinkLostError, ProtocolError, Reason, RefusedError, XensecureError
from ..proto.messages import Accept, Exit, ExitKind, Outcome, OutcomeState
from .establish import Connection
from .guard import Guard
from .job import Job, StopSignal
from .lanes import Lanes, why_lost
from .progress import Progress
from .record import SourceRecord
from .resume import Resumption
from .tuning import change_limit

PROGRAM = "xensecure"
# Long enough for one frame to leave over a slow link, short enough for somebody who has asked us to stop.
_ABORT_SECONDS = 2.0
_LOOK_SECONDS = 1.0  # between two looks at the time while there is no link, and at what runs
_WORDS_SECONDS = 5.0  # for xl to take what is left for it: it waits for nothing else
_TAKEN_SECONDS = 0.02  # between two looks whether xl has taken what had come before the loss
_GO_SECONDS = 60.0  # from "ready" to GO xl renames its domain and writes: moments, but for a busy xenstored; without GO it stays suspended
_STDIN, _STDOUT = 0, 1
_STARTED = (OutcomeState.CLEARED, OutcomeState.FAILED_OVER)


@dataclass(frozen=True)
class Ended:
    """How a session has ended that the protocol has ended: the exit status, and what went wrong in words ("" if nothing did)."""

    status: int
    why: str = ""


@dataclass(frozen=True)
class Makers:
    """How further connections are made: ``join``: one more; ``resume``: one in the place of the lost ones, within so many seconds, or an answer."""

    join: Callable[[], Connection]
    resume: Callable[[float], Connection | Outcome]


class Session:
    """The pump's life, from ACCEPT to EXIT."""

    def __init__(
        self,
        connection: Connection,
        accept: Accept,
        job: Job,
        stop: StopSignal,
        progress: Progress,
        record: SourceRecord,
        compression: Compression,
        makers: Makers,
        guard: Guard,
    ) -> None:
        self._stop = stop
        self._progress = progress
        self._record = record
        self._reread, self._options = job.reread, job.options
        self._checkpointed = job.request.checkpointed
        self._makers = makers
        self._guard = guard
        self._resumption: Resumption | None = None
        self._lost_at = 0.0
        self._why = ""
        self._is_told_off = False
        self._is_forged = False
        self._outcome: Outcome | None = None
        self._taken_at_ready = 0
        self._heard_before = -1
        self._counts_from = self._linked_at = 0.0
        self.resumptions = 0
        window = min(accept.window0, limits.REMUS_WINDOW if job.request.checkpointed else limits.WINDOW)
        self._pump = Pump(
            PumpOptions(
                side=Side.SOURCE,
                channels=(_STDIN, _STDOUT, 2),
                wake=stop.wake,
                send_windows=(window, 0, 0),
                receive_windows=(0, limits.BACK_WINDOW, limits.BACK_WINDOW),
                keepalive=job.options.keepalive,
                silence=job.options.silence,
                elide=job.options.elide == "on",
                compress=compression,
                bwlimit=job.options.bwlimit,
            )
        )
        verbose = job.options.verbose > 0
        self._lanes = Lanes(self._pump, connection, make=makers.join, wake=stop.ring, attached=guard.watch, verbose=verbose)
        self._start_lanes()

    def _start_lanes(self) -> None:
        if not self._checkpointed:  # its window has room for two stripes
            self._lanes.start(self._options.lanes)

    def run(self) -> Ended:
        """Until the session ends."""
        ended: Ended | None = None
        try:
            while ended is None:
                ended = self._step(self._wait() if self._is_told_off else self._pump.run(self._patience()))
            return ended
        except XensecureError as error:
            given_back = self._give_back(str(error))
            if given_back is not None:
                return given_back
            self._progress.failed(self._pump.stats())
            raise
        finally:
            if self._resumption is not None:
                self._resumption.end()
            self._record.has_seen(self._pump.stats(), self._pump.head())
            self._pump.close()
            self._lanes.close()

    def _patience(self) -> float:
        if not self._lost_at:
            return min(self._progress.interval, _LOOK_SECONDS)
        stats = self._pump.stats()
        left = self._counts_from + self._window(stats) - time.monotonic()
        return _TAKEN_SECONDS if _is_undelivered(stats) or _is_reported(stats) else max(0.0, min(_LOOK_SECONDS, left))

    def _wait(self) -> Event:
        """In the place of a pump that has nothing to do any more."""
        select.select([self._stop.wake], [], [], _LOOK_SECONDS)
        return Event.WOKEN

    def _step(self, event: Event) -> Ended | None:
        """Handle one event; how the session has ended, if it has."""
        stats = self._pump.stats()
        if event is Event.ENDED and not _is_cleared(stats):
            return self._ended(stats)
        if event is Event.PHASE:
            self._phase(stats)
        elif event is Event.ENDED:
            self._ask("xl there has ended without a report")  # which is no report: what became of GO is for its journal to say (S8)
        elif event is Event.LOST:
            self._on_lost(stats)
        elif event is Event.ABORTED:
            return self._on_aborted(stats)
        elif event is Event.LANE_LOST:
            self._lanes.lost(stats, broken=bool(self._guard.stopped))
            self._record.lane_lost(stats, why_lost(stats.lane_lost, stats.lane_errno))
        else:
            self._stop.drain()
            if self._stop.asked:
                return self._stopped(stats)
            self._lanes.take_new()
            self._progress.connections = self._lanes.most
            if self._stop.hung_up:
                self._stop.hung_up = False
                self._options = change_limit(self._pump, self._reread, self._options)
            self._record.progress(stats, self.resumptions, reconnecting=self._resumption is not None)
            self._show(stats)
        return self._without_link(self._pump.stats()) if self._lost_at else None

    def _show(self, stats: Stats) -> None:
        shown = self._record.shown
        if shown is None:
            return
        self._progress.show(stats, shown)
        if self._stop.asks_status:
            self._stop.asks_status = False
            say(PROGRAM, shown.line)

    def _phase(self, stats: Stats) -> None:
        if stats.phase is Phase.HEAD:
            self._progress.domain = domain_name(self._pump.head())
        elif stats.phase is Phase.REPORT and stats.report_status == 0:
            # Before xl gets the report: it then says its own last words and ends without waiting for us.
            self._progress.done(stats)
        elif stats.phase is Phase.READY:
            self._taken_at_ready = stats.taken[0]
        self._record.phase(stats, self._pump.head())

    # ---- a lost link

    def _on_lost(self, stats: Stats) -> None:
        self._heed_guard(stats)
        self._why = self._guard.why_broken() or why_lost(stats.lost, stats.system_errno)
        if stats.lost is Lost.PROTOCOL and not _is_committed(stats):
            with contextlib.suppress(XensecureError):
                self._pump.abort(Reason.PROTOCOL, self._why, _ABORT_SECONDS)
            raise LinkLostError(f"link lost: {self._why}; {self._where_is_it(stats)}")
        self._lanes.all_lost()
        self._lost_at = time.monotonic()
        if _heard(stats) != self._heard_before or self._lost_at - self._linked_at >= self._options.silence:
            self._counts_from = self._lost_at
        self._start_resumption(stats)

    def _heed_guard(self, stats: Stats) -> None:
        """End what the guard has stopped, where an end leaves the domain here; else it is a lost link, which waits for the way to be as it was."""
        if self._guard.stopped and not (_is_committed(stats) or _is_reported(stats) or self._checkpointed):
            raise LinkLostError(f"{self._guard.stopped}; {self._where_is_it(stats)}")

    def _start_resumption(self, stats: Stats) -> None:
        window = self._window(stats)
        if window and not _is_reported(stats):
            self._record.lost(stats.lost, self._why)
            for_how_long = "without end" if window == limits.ENDLESS_SECONDS else f"for {window} s"
            say(PROGRAM, f"link lost: {self._why}; xl waits while a new connection is tried {for_how_long}")
            self._resumption = Resumption(self._makers.resume, wake=self._stop.ring)

    def _on_aborted(self, stats: Stats) -> Ended | None:
        """The destination gives up; what its xl makes of a GO it may already have is for its journal to say."""
        why = f"the destination gave up: {self._pump.text()}"
        reason = Reason(stats.reason) if stats.reason in Reason.__members__.values() else Reason.PROTOCOL
        if reason is Reason.NOT_CLEARED and stats.phase is Phase.GO:
            self._record.hears(Outcome(OutcomeState.NOT_CLEARED, text=why))
            return self._replay(xlwords.NOT_STARTED, why)
        if not _is_committed(stats):
            if not self._checkpointed:
                self._record.exits()  # its own word: it is not asked again
            raise RefusedError(f"{why}; {self._where_is_it(stats)}", reason)
        self._ask(why)
        return None

    def _ask(self, why: str) -> None:
        """The pump has nothing to do any more, and xl waits for an answer."""
        self._is_told_off = True
        if not self._lost_at:
            self._why = why
            self._lost_at = self._counts_from = time.monotonic()
            self._lanes.all_lost()
            self._start_resumption(self._pump.stats())

    def _window(self, stats: Stats) -> int:
        return self._options.final_window if _is_committed(stats) and not _has_no_reader(_STDOUT) else self._options.resume_window

    def _without_link(self, stats: Stats) -> Ended | None:
        """One look at what has come of the attempts, and at the time."""
        self._heed_guard(stats)
        deadline = self._counts_from + self._window(stats)
        if self._outcome is None:
            result = self._resumption.result() if self._resumption else None
            if isinstance(result, Connection):
                self._resume(result)
                return None
            self._outcome = result
        if _is_undelivered(stats) and time.monotonic() < deadline + _WORDS_SECONDS:
            return None  # what had come before the loss is xl's
        if _is_reported(stats):
            return self._reported(stats)
        if self._outcome is not None:
            return self._on_outcome(self._outcome, stats)
        if time.monotonic() >= deadline:
            return self._give_up(stats)
        return None

    def _resume(self, connection: Connection) -> None:
        seconds = time.monotonic() - self._lost_at
        try:
            self._lanes.replace(connection)
        except XensecureError:  # after an ABORT: there is an answer to wait for, and no session to resume
            connection.channel.close()
            self._resumption = Resumption(self._makers.resume, wake=self._stop.ring)
            return
        self._linked_at, self._heard_before = time.monotonic(), _heard(self._pump.stats())
        self._resumption, self._lost_at = None, 0.0
        self.resumptions += 1
        say(PROGRAM, f"connected again after {seconds:.1f} s; the migration goes on")
        self._record.resumed(self.resumptions)
        self._start_lanes()

    def _on_outcome(self, outcome: Outcome, stats: Stats) -> Ended:
        """The session is over at the destination (S9, S10)."""
        self._record.hears(outcome)
        said = f"link lost: {self._why}; the destination has ended the session ({outcome.state.words}: {outcome.text})"
        if _is_committed(stats):
            if outcome.state is OutcomeState.REPORTED:
                return self._replay(outcome.status, f"{said}, and xl there reported status {outcome.status}")
            if outcome.state is OutcomeState.NOT_CLEARED:
                return self._replay(xlwords.NOT_STARTED, said)
        elif outcome.state in _STARTED or (outcome.state is OutcomeState.REPORTED and outcome.status == 0):
            # Of a domain whose GO this host has not sent. Whoever made it start, two copies would run.
            self._is_forged = True
            raise ProtocolError(f"SECURITY: {said}; it was not cleared to run there: look with 'xl list' on both hosts")
        raise LinkLostError(f"{said}; {self._where_is_it(stats)}")

    def _give_up(self, stats: Stats) -> Ended:
        problem = self._resumption.problem if self._resumption else ""
        tried = f", no new one within {self._window(stats)} s" if self._window(stats) else ""
        said = f"link lost: {self._why}{tried}{f' ({problem})' if problem else ''}"
        raise LinkLostError(f"{said}; {self._where_is_it(stats)}")

    def _give_back(self, why: str) -> Ended | None:
        """Where all is over between "ready" and GO, or GO was not sent: take it, send it nowhere, and have xl resume its domain. None otherwise.

        An end of its pipes would leave xl with a domain that it has suspended, and can neither start there nor resume here.
        """
        with contextlib.suppress(XensecureError):  # it may be over already
            self._pump.drop()
        stats = self._pump.stats()  # of a pump that sends nothing any more
        if stats.phase is Phase.REPORT and not _is_reported(stats) and not _is_unheard(stats):
            return self._replay(stats.report_status, why)  # xl has got the status, which says that the domain does not run there, and waits for GO
        if self._checkpointed or self._is_forged or stats.phase not in (Phase.READY, Phase.GO) or _is_unheard(stats):
            return None
        had = stats.taken[0] - self._taken_at_ready
        if had >= len(xlwords.GO) and stats.channel_bytes[0] == stats.taken[0]:
            return None  # it has gone out whole
        return self._replay(xlwords.NOT_STARTED, why) if _read_go(len(xlwords.GO) - had) else None

    def _replay(self, status: int, why: str) -> Ended:
        """Give xl what it has not yet got of the destination's words (S9)."""
        stats = self._pump.stats()
        self._record.replays(status)
        if status == 0:
            self._progress.done(stats)
        else:
            say(PROGRAM, f"{why}: it does not run there, and xl resumes it here")
        _write_words(xlwords.receivers_words(status)[stats.delivered[1] :])
        if status == 0:
            return Ended(0)
        self._progress.failed(stats)
        return Ended(1, why)

    # ---- ends

    def _stopped(self, stats: Stats) -> Ended:
        if not self._lost_at and not _is_committed(stats):
            self._pump.abort(Reason.STOPPED, "stopped by SIGTERM at the source", _ABORT_SECONDS)
        raise LinkLostError(f"stopped by SIGTERM; {self._where_is_it(self._pump.stats())}")

    def _reported(self, stats: Stats) -> Ended:
        """The report is xl's, and all that it waited for; how xl there ended is not worth a new link."""
        if stats.report_status == 0:
            return Ended(0)
        self._progress.failed(stats)
        return Ended(1, f"xl there reports status {stats.report_status}")

    def _ended(self, stats: Stats) -> Ended:
        kind, value = ExitKind(stats.exit_kind), stats.exit_value
        self._record.exits()
        why = ""
        if stats.phase is not Phase.REPORT:
            why = f"xl there has ended ({Exit(kind, value).describe()}) without a report; {self._where_is_it(stats)}"
            given_back = self._give_back(why)
            if given_back is not None:
                return given_back
        elif stats.report_status != 0:
            why = f"xl there reports status {stats.report_status}"
        if why:
            self._progress.failed(stats)
        if stats.phase is not Phase.REPORT:
            say(PROGRAM, why)
        if kind is ExitKind.UNKNOWN:
            return Ended(0 if stats.report_status == 0 else TRANSPORT_FAILURE, why)
        return Ended(128 + value if kind is ExitKind.SIGNALLED else value, why)  # as shells report a signal

    def _where_is_it(self, stats: Stats) -> str:
        """What xl will do now, from how far its own protocol has come (xl_migrate.c)."""
        if self._checkpointed:
            if stats.phase < Phase.HEAD:
                return "the domain stays on this host alone"
            return "xl there takes this for the end of this host and starts its last checkpoint: see that the domain runs on one host only"
        if stats.phase < Phase.READY:
            return "the domain stays on this host"
        if stats.phase is Phase.READY:
            renamed = "if 'xl list' shows it as NAME--migratedaway, rename and resume it"
            return f"the domain was not cleared to run there, it is whole on this host; {renamed}"
        if stats.phase is Phase.GO and not _is_cleared(stats):
            return "xl's last word was not sent"
        if stats.phase is Phase.GO:
            name = self._progress.domain
            asks = f"'xensecurectl status {name}' asks {self._record.peer}"
            return f"xl had already cleared the domain to run there: {asks}, before it is started anywhere"
        return "xl had already got the destination's report"


def _is_cleared(stats: Stats) -> bool:
    """Whether GO has gone out whole, which is the last that xl says, and no report has come."""
    return stats.phase is Phase.GO and stats.channel_bytes[0] == stats.taken[0]


def _heard(stats: Stats) -> int:
    """What grows with everything new that comes from the destination."""
    return stats.delivered[0] + stats.channel_bytes[1] + stats.channel_bytes[2]


def _is_undelivered(stats: Stats) -> bool:
    return any(stats.channel_bytes[channel] > stats.delivered[channel] for channel in (1, 2))


def _is_unheard(stats: Stats) -> bool:
    """Whether xl has not got all that has come of its own protocol."""
    return stats.channel_bytes[1] > stats.delivered[1]


def _is_reported(stats: Stats) -> bool:
    """Whether xl needs nothing more: behind a report of failure it waits for GO."""
    whole = len(xlwords.receivers_words(max(stats.report_status, 0)))
    return stats.phase is Phase.REPORT and (stats.report_status == 0 or stats.channel_bytes[1] >= whole)


def _is_committed(stats: Stats) -> bool:
    """Whether xl waits for what the destination's xl alone can say: GO has gone out, and not all of the answer has come."""
    return _is_cleared(stats) or (stats.phase is Phase.REPORT and not _is_reported(stats))


def _read_go(rest: int) -> bool:
    """Whether xl says so many more bytes, the rest of GO: the only thing that it says behind the domain."""
    poll = select.poll()
    poll.register(_STDIN, select.POLLIN)
    deadline = time.monotonic() + _GO_SECONDS
    while rest > 0 and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        piece = os.read(_STDIN, rest)
        if not piece:
            return False
        rest -= len(piece)
    return rest <= 0


def _has_no_reader(descriptor: int) -> bool:
    """Whether xl has gone: nobody is left to give an answer to."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _write_words(words: bytes) -> None:
    """To xl, which reads them at once, or has gone."""
    poll = select.poll()
    poll.register(_STDOUT, select.POLLOUT)
    deadline = time.monotonic() + _WORDS_SECONDS
    while words and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        try:
            words = words[os.write(_STDOUT, words) :]
        except BlockingIOError:
            continue
        except OSError:
            return
