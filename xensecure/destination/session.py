"""One session at the destination, as the launcher has it: an ``xl migrate-receive``, the receiver that feeds it, the journal, the hooks."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from ..link.config import Config
from ..link.engine import Lost
from ..link.events import Event, Events
from ..link.hooks import Outcome, Role
from ..link.journal import Journal
from ..link.live import Live
from ..link.say import say
from ..proto import launcher, limits, xlwords
from ..proto.errors import HookError, ProtocolError, Reason, RefusedError, StateError, SystemFailure
from ..proto.launcher import Kind, Milestone, Note, Wish
from ..proto.messages import Exit, ExitKind, OutcomeState
from ..proto.policy import PolicyRefusedError
from ..proto.request import ReceiveRequest
from . import xl
from .admission import Admission
from .held import Plug, read_sealed
from .hooked import SessionHooks
from .lanes import Door
from .lastwords import PIECE, LastWords
from .outcome import DENIED
from .packets import Packets

PROGRAM = "xensecure-launcher"
_HEAD_SECONDS = 10.0  # for xl to take its header and the configuration, which it reads at once: as CONFIGURATION_SECONDS
_WHY_MAX = 200  # characters of a receiver's reason: ours are shorter, and the space set aside in the journal is finite
_FENCE_SECONDS = 10.0  # from a fence that failed to the next try: six lines a minute in the log for an operator to see


class Session:
    """Until xl and the receiver have both ended."""

    def __init__(
        self,
        packets: Packets,
        receive: xl.Receive,
        request: ReceiveRequest,
        config: Config,
        journal: Journal,
        session_id: bytes,
        hooks: SessionHooks,
        peer: str,
        events: Events,
    ) -> None:
        self._packets = packets
        self._receive = receive
        self._request = request
        self._config = config
        self._journal = journal
        self._id = session_id
        self._hooks = hooks
        self._live = Live(config.run, session_id, role=Role.DESTINATION, peer=peer)
        self._admission = Admission(config, peer, hooks, self._live)
        self._events = events
        self._passes = 0
        self._refused = False
        self._plug: Plug | None = None
        self._domain = ""
        self._bytes = 0
        self._report: int | None = None
        self._went = Milestone.DOMAIN
        self._heard: set[Milestone] = set()
        self._lost = ""
        self._start = time.monotonic()
        self._interruptions = self._resumptions = self._lanes_lost = 0
        self._end: Exit | None = None
        self._fence_at = math.inf
        self._last_words = LastWords()
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        give = self._give_lane
        self._door = Door(session_id, peer=peer, most=config.lanes - 1, give=give, watch=self._watch, unwatch=self._unwatch)
        signal.signal(signal.SIGUSR1, lambda _number, _frame: say(PROGRAM, self._live.shown.line))
        events.emit(Event.SESSION_STARTED, request=" ".join(request.arguments()))

    def _give_lane(self, packet: bytes, descriptor: int) -> None:
        self._packets.send(packet, (descriptor,))

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._poll.register(descriptor, select.POLLIN)
        self._handlers[descriptor] = handler

    def _unwatch(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._handlers[descriptor]

    def run(self) -> str:
        """Hand xl's pipes over, watch until xl and the receiver have ended; returns the outcome in words, which stands in the journal too."""
        try:
            self._door.open(self._config.run)  # before the source knows the session's id
            self._hand_over()
        except StateError as error:
            self._refuse(RefusedError(f"{error}: a session that could not be resumed is not begun", Reason.LOCAL_FAULT))
        process = os.pidfd_open(self._receive.process.pid)
        # In this order: what the receiver has said before xl's end is heard before it.
        self._watch(self._packets.fileno(), self._from_receiver)
        self._watch(process, lambda: self._xl_ended(process))
        while self._end is None or self._receiver_there:
            for descriptor, _ in self._poll.poll(self._patience()):
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler()
            if time.monotonic() >= self._fence_at:
                self._end_input()
        # A child of xl's may keep its output open for ever: what xl itself has written is in the pipe by now, and fits one piece.
        if self._receive.stdout in self._handlers:
            self._drain(self._receive.stdout)
        if self._went >= Milestone.GO and self._end is not None and self._end.kind is ExitKind.EXITED:
            self._report_seen(self._last_words.rest())
        outcome = self._outcome()
        self._door.close()
        self._live.close()
        self._tell_end()
        return outcome

    def _patience(self) -> float | None:
        """What poll is to wait: ms."""
        return None if self._fence_at == math.inf else max(0.0, self._fence_at - time.monotonic()) * 1000

    def _hand_over(self) -> None:
        """Give the receiver xl's pipes; of its standard input only what stands in its place, where the domain has to be judged first."""
        stdin, *outputs = self._receive.descriptors()
        if self._admission.wish is Wish.ASKED:
            self._plug = Plug()
            stdin = self._plug.fileno()
        with contextlib.suppress(SystemFailure):  # a receiver that has gone meanwhile is seen by the session
            self._packets.send(launcher.Started(self._id, self._admission.wish).push(), (stdin, *outputs))
        if self._plug is None:
            self._leave_stdin()

    def _leave_stdin(self) -> None:
        """To the receiver, alone, so that xl sees the end when that ends; but not where every end means failover, and is ours to give."""
        if not self._request.checkpointed:
            self._receive.forget_stdin()

    def _end_input(self) -> None:
        """Have xl see the end of its input. With Remus that means failover: not before the source is fenced off."""
        if self._receive.stdin < 0:
            return
        if self._request.checkpointed and not self._refused and self._went_on:
            try:
                self._hooks.fence(self._lost or "the source ended its checkpoints", self._domain)
            except HookError as error:
                say(PROGRAM, f"session {self._id.hex()}: {error}; no failover before the source is fenced off, next try in {_FENCE_SECONDS:.0f} s")
                self._fence_at = time.monotonic() + _FENCE_SECONDS
                return
        self._fence_at = math.inf
        self._receive.forget_stdin()

    @property
    def _went_on(self) -> bool:
        """Whether a domain has come at all."""
        return Milestone.DOMAIN in self._heard

    @property
    def _receiver_there(self) -> bool:
        return self._packets.fileno() >= 0

    def _from_receiver(self) -> None:
        try:
            packet, descriptors = self._packets.receive(descriptors=0 if self._admission.wish is Wish.NOTHING else 1)
            if packet:
                self._take(packet, descriptors)
            else:
                self._receiver_gone("the receiver ended")
        except (ProtocolError, SystemFailure) as error:
            say(PROGRAM, f"SECURITY: the receiver of session {self._id.hex()} sent nonsense: {error}")
            self._events.emit(Event.RECEIVER_MISBEHAVED, why=f"sent nonsense: {error}")
            self._receiver_gone("the receiver sent nonsense")

    def _take(self, packet: bytes, descriptors: list[int]) -> None:
        try:
            if launcher.kind_of(packet) is Kind.CONFIGURATION:
                self._configuration(packet, descriptors)
            elif descriptors:
                raise ProtocolError("a descriptor with a packet that has none")
            else:
                self._note(Note.pull(packet))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _configuration(self, packet: bytes, descriptors: list[int]) -> None:
        """What policy and hooks are to see, once a session; with their yes xl gets it from here, so that nobody can give it another, and the
        receiver gets xl's standard input; with their no xl sees its end.
        """
        if self._admission.wish is Wish.NOTHING:
            raise ProtocolError("CONFIGURATION that nobody has asked for, or the second one")
        head = read_sealed(descriptors, launcher.pull_configuration(packet))
        try:
            self._admission.decide(head)
            if self._plug is not None:
                self._receive.feed(xlwords.stream_head(head), _HEAD_SECONDS)
        except RefusedError as refusal:
            self._refuse(refusal)
            return
        if self._plug is not None:
            with contextlib.suppress(SystemFailure):
                self._packets.send(launcher.push_empty(Kind.ADMITTED), (self._receive.stdin,))
            self._leave_stdin()

    def _refuse(self, refusal: RefusedError) -> None:
        self._refused = True
        self._lost = str(refusal)
        self._live.update(promised=0)
        self._record("refused", by="launcher", why=self._lost)
        if isinstance(refusal, PolicyRefusedError):
            self._events.emit(Event.POLICY_REFUSED, key=refusal.key, value=refusal.value, rule=refusal.rule)
        else:
            self._events.emit(Event.REFUSED, cause=refusal.reason.name.lower(), why=self._lost)
        self._receive.forget_stdin()
        with contextlib.suppress(SystemFailure):
            self._packets.send(launcher.push_refused(refusal.reason, self._lost))

    def _note(self, note: Note) -> None:
        note = replace(note, why=note.why[:_WHY_MAX])
        self._bytes = max(self._bytes, note.stream_bytes)
        if note.domain:
            self._domain = note.domain
            self._events.knows(domain=note.domain)
        self._passes = note.memory.number
        if note.milestone in (Milestone.INTERRUPTED, Milestone.RESUMED):
            self._interrupted(note)
        elif note.milestone is Milestone.LANE_LOST:
            self._lane_lost(note)
        elif note.milestone is Milestone.INPUT_ENDED:
            self._end_input()
        elif note.milestone is not Milestone.PROGRESS:
            self._reached(note)
        self._live.update(
            note.memory,
            domain=self._admission.domain(self._domain) or self._domain,  # as judged: memory has been promised to it by that name
            phase=self._went.name.lower(),
            bytes=self._bytes,
            resumptions=self._resumptions,
            state="reconnecting" if self._interruptions > self._resumptions else "running",
        )

    def _interrupted(self, note: Note) -> None:
        """The link was lost, or is there again."""
        interrupted = note.milestone is Milestone.INTERRUPTED
        self._interruptions += interrupted
        self._resumptions += not interrupted
        if max(self._interruptions, self._resumptions) > limits.INTERRUPTIONS_MAX:
            return  # a receiver that was taken over must not fill log and journal
        if interrupted:
            say(PROGRAM, f"session {self._id.hex()}: its link is lost ({note.why}); waiting for the source")
            self._events.emit(Event.LINK_LOST, cause=_cause(note), why=note.why)
        else:
            say(PROGRAM, f"session {self._id.hex()}: goes on over a new link")
            self._events.emit(Event.LINK_RESUMED, resumptions=self._resumptions)
        self._record(note.milestone.name.lower(), by="receiver", bytes=note.stream_bytes, why=note.why)

    def _lane_lost(self, note: Note) -> None:
        self._lanes_lost += 1
        if self._lanes_lost <= limits.INTERRUPTIONS_MAX:
            self._events.emit(Event.LANE_LOST, cause=_cause(note), why=note.why)

    def _reached(self, note: Note) -> None:
        if note.milestone in self._heard:
            raise ProtocolError(f"{note.milestone.name} twice")  # each is a line in the journal, and a disk is finite
        self._heard.add(note.milestone)
        if note.milestone <= Milestone.REPORT:
            self._went = max(self._went, note.milestone)
        fields: dict[str, object] = {"by": "receiver", "bytes": note.stream_bytes}
        if note.milestone is Milestone.DOMAIN:
            fields["domain"] = note.domain
        elif note.milestone is Milestone.REPORT:
            self._report = note.status
            fields["status"] = note.status
        elif note.milestone is Milestone.LOST:
            self._lost = self._lost or note.why
            fields["why"] = note.why
        if note.milestone is Milestone.GO:
            self._note_go(fields)
        else:
            self._record(note.milestone.name.lower(), **fields)
        if note.milestone <= min(self._went, Milestone.REPORT):  # last: xl waits for GO; and not of one that is not delivered
            status = note.status if note.milestone is Milestone.REPORT else ""
            self._events.emit(Event.PHASE, phase=note.milestone.name.lower(), bytes=note.stream_bytes, status=status)

    def _note_go(self, fields: dict[str, object]) -> None:
        """Write it down, and let the receiver deliver it then; or end the session: what the journal has not, xl must not get (S7)."""
        has_ended = self._receive.process.poll() is not None  # then it will never read GO: no copy of the domain runs here
        try:
            if not has_ended and self._journal.append_unless(self._id, "go", DENIED, **fields):
                with contextlib.suppress(SystemFailure):
                    self._packets.send(launcher.push_empty(Kind.NOTED))
                return
            why = "xl there had ended before GO came" if has_ended else "the source has been told that the domain was not cleared to run here"
        except StateError as error:
            why = f"the journal there cannot be written ({error}), and what is not recorded is not started"
        self._went = Milestone.READY
        self._refuse(RefusedError(why, Reason.NOT_CLEARED))

    def _record(self, event: str, **fields: object) -> None:
        try:
            self._journal.append(self._id, event, **fields)
        except StateError as error:
            # A domain on its way is worth more than the note of it.
            say(PROGRAM, f"session {self._id.hex()}: {event} is not in the journal: {error}")

    def _receiver_gone(self, why: str) -> None:
        """The receiver has ended, and with it xl's standard input.

        xl's output must be read to the end all the same, or xl dies of it before it has destroyed its copy of the domain (xl_migrate.c
        writes its report first).
        """
        self._unwatch(self._packets.fileno())
        self._packets.close()
        self._door.take_no_more()
        if self._end is None and not self._lost:
            self._lost = why
            self._record(Milestone.LOST.name.lower(), by="launcher", why=why)
        self._end_input()
        for descriptor in (self._receive.stdout, self._receive.stderr):
            os.set_blocking(descriptor, False)
            self._watch(descriptor, lambda descriptor=descriptor: self._drain(descriptor))  # type: ignore[misc]

    def _drain(self, descriptor: int) -> None:
        with contextlib.suppress(BlockingIOError):
            piece = os.read(descriptor, PIECE)
            if not piece:
                self._unwatch(descriptor)
            elif descriptor == self._receive.stdout:
                self._report_seen(self._last_words.add(piece))

    def _report_seen(self, status: int | None) -> None:
        if status is not None and self._report is None:
            self._report = status
            self._record(Milestone.REPORT.name.lower(), by="launcher", status=status)

    def _hear_out(self) -> None:
        """Take what the receiver has already said: it named the domain before xl heard of it."""
        pending = select.poll()
        if self._receiver_there:
            pending.register(self._packets.fileno(), select.POLLIN)
        while self._receiver_there and pending.poll(0):
            self._from_receiver()

    def _xl_ended(self, process: int) -> None:
        self._hear_out()
        self._live.update(promised=0)
        self._unwatch(process)
        os.close(process)
        if self._plug is not None:
            self._plug.pull()
        self._receive.forget_stdin()
        xl.kill_helpers(self._receive)
        self._end = Exit.from_returncode(self._receive.process.wait())
        if self._receive.process.returncode < 0:
            domain = self._admission.domain(self._domain)
            done = xl.tidy_up(self._end, domain, self._config, started=self._went >= Milestone.GO)
            say(PROGRAM, done)
            self._events.emit(Event.XL_KILLED, why=done)
        with contextlib.suppress(SystemFailure):
            self._packets.send(launcher.push_exited(self._end))

    def _outcome(self) -> str:
        outcome, why = self._judge()
        words = "arrived" if outcome is Outcome.SUCCESS else f"{outcome}: {why}"
        end = self._end.describe() if self._end else "xl's end was not seen"
        state, status = self._state(outcome)
        self._record(
            "end",
            domain=self._domain,
            outcome=words,
            xl=end,
            state=state.words,
            status=status,
            bytes=self._bytes,
            seconds=round(time.monotonic() - self._start, 1),
            resumptions=self._resumptions,
        )
        return f"domain {self._domain or '?'} {words} ({end}); session {self._id.hex()}"

    def _tell_end(self) -> None:
        outcome, why = self._judge()
        seconds = time.monotonic() - self._start
        self._events.emit(
            Event.SESSION_ENDED,
            outcome=outcome.label,
            state=self._state(outcome)[0].words,
            why=why,
            bytes=self._bytes,
            seconds=round(seconds, 3),
            rate=round(self._bytes / seconds),
            resumptions=self._resumptions,
            passes=self._passes,
        )
        if outcome is Outcome.UNKNOWN:
            self._events.emit(Event.OUTCOME_UNKNOWN, why=why)

    def _judge(self) -> tuple[Outcome, str]:
        """How it has ended, and why not well."""
        killed = self._end is not None and self._end.kind is not ExitKind.EXITED
        why = self._lost or ("xl was killed" if killed else "xl gave up")
        if self._report == 0 and not killed:
            return Outcome.SUCCESS, ""
        if self._report == 0:
            # A receiver that was taken over can say that the report has passed.
            return Outcome.UNKNOWN, f"{why}, and its report of success came by the receiver's word; look with 'xl list' on both hosts"
        if self._request.checkpointed and not self._refused and self._end == Exit(ExitKind.EXITED, 0):
            # Without a report, by design: xl_migrate.c takes every end of the checkpoints for the end of the source.
            return Outcome.FAILED_OVER, f"{self._lost or 'the source ended'}, and xl started the last checkpoint here"
        if self._report is not None:
            return Outcome.FAILED, self._lost or f"xl reported status {self._report}"
        if self._went >= Milestone.GO:
            return Outcome.UNKNOWN, f"{why} after the source had cleared the domain to run here; look with 'xl list' on both hosts"
        return Outcome.FAILED, why

    def _state(self, outcome: Outcome) -> tuple[OutcomeState, int]:
        """As the source may ask for it (section 7)."""
        if outcome is Outcome.FAILED_OVER:
            return OutcomeState.FAILED_OVER, 0
        if self._report is not None and (self._report != 0 or outcome is Outcome.SUCCESS):
            return OutcomeState.REPORTED, self._report
        return OutcomeState.CLEARED if outcome is Outcome.UNKNOWN else OutcomeState.NOT_CLEARED, 0

    def tell_hooks(self) -> None:
        """Run what the operator wants to be run when all is over."""
        outcome, why = self._judge()
        self._hooks.over(outcome, why, domain=self._domain, stream_bytes=self._bytes)


def _cause(note: Note) -> str:
    """Why a link was lost, in one word, by the receiver's."""
    return Lost(note.status).name.lower() if note.status in Lost.__members__.values() else "unknown"
