"""One launcher process for one receiver: judges its source, starts its xl, watches both, keeps the journal.

It is forked for each receiver, so that a restart of the launcher disturbs no session, and no two sessions share a process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
from collections.abc import Callable

from ..link.config import Config
from ..link.engine import wipe
from ..link.hooks import Facts, Outcome, Role
from ..link.journal import Journal
from ..link.peers import Peers
from ..link.say import say
from ..proto import launcher, limits
from ..proto.errors import AuthenticationError, ProtocolError, Reason, RefusedError, StateError, SystemFailure
from ..proto.handshake import destination_link_keys
from ..proto.launcher import Kind, Milestone, Note, Wish
from ..proto.messages import Exit, ExitKind, Purpose
from ..proto.request import ReceiveRequest
from . import pairing, xl
from .hooked import Plug, SessionHooks, read_sealed
from .judge import Verdict, judge
from .lanes import Door, Visit
from .packets import Packets

PROGRAM = "xensecure-launcher"
# A pairing's three messages follow one another; only a source that has stopped makes us wait.
_PAIRING_SECONDS = 30.0
_DRAIN_PIECE = 1 << 16  # bytes
# xl's last words to the source (xl_migrate.c, migrate_receive): the status byte follows. 0: the domain runs here.
_REPORT = b"my copy unpause results are as follows\0"


class Keeper:
    """Serves one receiver. ``take_slot`` says whether one more session may run."""

    def __init__(self, packets: Packets, *, config: Config, own_pin: bytes, take_slot: Callable[[], bool]) -> None:
        self._packets = packets
        self._config = config
        self._own_pin = own_pin
        self._take_slot = take_slot
        self._peers = Peers(config)
        self._address = "unknown"
        self._hooks: SessionHooks | None = None

    def run(self) -> None:
        """From CHALLENGE to the end of the session."""
        challenge = secrets.token_bytes(limits.CHALLENGE_LEN)
        self._packets.send(launcher.push_challenge(challenge))
        packet, _ = self._packets.receive(limits.HANDSHAKE_SECONDS)
        if not packet:
            return  # the source went away, or was no source
        verdict = self._authenticate(packet, challenge)
        if verdict is None:
            return
        if verdict.hello.purpose is Purpose.JOIN:
            self._join(verdict)
            return
        self._confirm(verdict)
        packet, _ = self._packets.receive(limits.HANDSHAKE_SECONDS)
        if not packet:
            return  # a proof of a new link key, and nothing more (R5)
        try:
            if verdict.hello.purpose is Purpose.MIGRATE:
                self._serve(launcher.pull_start(packet), verdict)
            else:
                self._pair(packet, verdict)
        except RefusedError as refusal:
            say(PROGRAM, f"{verdict.name} ({self._address}): refused: {refusal}")
            self._packets.send(launcher.push_refused(refusal.reason, str(refusal)))
            if self._hooks is not None:
                self._hooks.over(Outcome.FAILED, str(refusal))

    def _authenticate(self, packet: bytes, challenge: bytes) -> Verdict | None:
        message = launcher.Authenticate.pull(packet)
        self._address = message.address
        try:
            verdict = judge(message.request, challenge=challenge, own_pin=self._own_pin, peers=self._peers, config=self._config)
        except AuthenticationError as error:
            say(PROGRAM, f"SECURITY: authentication from {message.address} failed: {error}")
            self._packets.send(launcher.push_refused(Reason.PROTOCOL, ""))
            return None
        if verdict.peer is not None and not self._settle(verdict):
            say(PROGRAM, f"{verdict.name} ({message.address}): its link key was replaced at this very moment; it may try again")
            self._packets.send(launcher.push_refused(Reason.PROTOCOL, ""))
            return None
        return verdict

    def _confirm(self, verdict: Verdict) -> None:
        """Say yes: the proof and this connection's keys."""
        answer = launcher.Authenticated(
            proof=verdict.schedule.destination_proof(), keys=destination_link_keys(verdict.schedule), peer=verdict.name
        ).push()
        self._packets.send(answer)
        wipe(answer)
        if verdict.hello.purpose is Purpose.MIGRATE:
            wipe(verdict.schedule.secret())

    def _join(self, verdict: Verdict) -> None:
        """A further connection of a session that another keeper has: to that one, with its keys; or a refusal, which the receiver seals."""
        session_id = verdict.hello.session_id
        try:
            with contextlib.closing(Visit(self._config.run, session_id)) as visit:
                visit.ask(verdict.name)
                self._hand_over(verdict, visit)
        except RefusedError as refusal:
            self._confirm(verdict)
            say(PROGRAM, f"{verdict.name} ({self._address}): a further connection for session {session_id.hex()} was refused: {refusal}")
            self._packets.send(launcher.push_refused(refusal.reason, str(refusal)))
        finally:
            wipe(verdict.schedule.secret())

    def _hand_over(self, verdict: Verdict, visit: Visit) -> None:
        """Let the receiver prove us to the source and give the connection up; then pass it on."""
        self._packets.send(launcher.Claimed(proof=verdict.schedule.destination_proof(), peer=verdict.name).push())
        packet, descriptors = self._packets.receive(limits.HANDSHAKE_SECONDS, descriptors=1)
        try:
            if not packet:
                return  # the source went away
            launcher.body(packet, Kind.SURRENDER).finish()
            if len(descriptors) != 1:
                raise ProtocolError("SURRENDER without a connection")
            keys = destination_link_keys(verdict.schedule)
            lane = launcher.push_lane(keys)
            visit.give(lane, descriptors[0])
            for secret in (lane, keys.send.key, keys.send.iv, keys.receive.key, keys.receive.iv):
                wipe(secret)
            say(PROGRAM, f"{verdict.name} ({self._address}): one more connection for session {verdict.hello.session_id.hex()}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _settle(self, verdict: Verdict) -> bool:
        """Drop the keys older than the proved one, before the source hears of it and drops them too; False if that one is gone meanwhile."""
        if self._peers.settle(verdict.name, verdict.link_key_id):
            say(PROGRAM, f"{verdict.name}: its new link key has worked; the old one is gone")
        peer = self._peers.get(verdict.name)
        return peer is not None and verdict.link_key_id in [key.id for key in peer.keys]

    def _pair(self, packet: bytes, verdict: Verdict) -> None:
        launcher.body(packet, Kind.STORE).finish()
        try:
            name = pairing.store(verdict, self._peers, self._config, self._address)
        except StateError as error:
            raise RefusedError(f"the link key cannot be stored there ({error})", Reason.LOCAL_FAULT) from None
        wipe(verdict.schedule.secret())
        self._packets.send(launcher.push_empty(Kind.STORED))
        packet, _ = self._packets.receive(_PAIRING_SECONDS)
        if not packet:
            say(PROGRAM, f"{name} ({self._address}) went away while a link key was being made; it may run the same command again")
            return
        launcher.body(packet, Kind.DONE).finish()
        pairing.complete(verdict, self._peers)
        self._packets.send(launcher.push_empty(Kind.COMPLETED))
        what = "paired with" if verdict.hello.purpose is Purpose.PAIR else "renewed the link key with"
        say(PROGRAM, f"{what} {name} ({self._address})")

    def _serve(self, request: ReceiveRequest, verdict: Verdict) -> None:
        if not self._take_slot():
            raise RefusedError(f"{self._config.sessions} migrations are arriving there already; try again later", Reason.TOO_MANY)
        session_id = secrets.token_bytes(limits.SESSION_ID_LEN)
        hooks = self._make_hooks(request, verdict, session_id)
        journal = Journal(self._config.state, Role.DESTINATION)
        try:
            journal.append(session_id, "start", peer=verdict.name, address=self._address, request=request.arguments())
        except StateError as error:
            raise RefusedError(f"the journal there cannot be written ({error}); what is not recorded is not received", Reason.LOCAL_FAULT) from None
        self._hooks = hooks
        try:
            receive = xl.start_receive(request, self._config)
        except RefusedError as refusal:
            with contextlib.suppress(StateError):
                journal.append(session_id, "end", domain="", outcome=f"failed: {refusal}", xl="not started")
            raise
        say(PROGRAM, f"{verdict.name} ({self._address}) sends a domain; session {session_id.hex()}")
        session = _Session(self._packets, receive, request, self._config, journal, session_id, hooks, verdict.name)
        say(PROGRAM, f"{verdict.name}: {session.run()}")
        session.tell_hooks()

    def _make_hooks(self, request: ReceiveRequest, verdict: Verdict, session_id: bytes) -> SessionHooks:
        facts = Facts(
            role=Role.DESTINATION,
            host=self._config.name,
            peer=verdict.name,
            address=self._address,
            session=session_id.hex(),
            request=tuple(request.arguments()),
        )
        return SessionHooks(self._config, facts, PROGRAM)


class _Session:
    """One ``xl migrate-receive`` and the receiver that feeds it, until both have ended."""

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
    ) -> None:
        self._packets = packets
        self._receive = receive
        self._request = request
        self._config = config
        self._journal = journal
        self._id = session_id
        self._hooks = hooks
        self._refused = False
        self._plug: Plug | None = None
        self._domain = ""
        self._bytes = 0
        self._report: int | None = None
        self._went = Milestone.DOMAIN
        self._heard: set[Milestone] = set()
        self._lost = ""
        self._end: Exit | None = None
        self._last_words = b""
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        give = self._give_lane
        self._door = Door(session_id, peer=peer, most=config.lanes - 1, give=give, watch=self._watch, unwatch=self._unwatch)

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
        self._door.open(self._config.run)  # before the source knows the session's id
        self._hand_over()
        process = os.pidfd_open(self._receive.process.pid)
        # In this order: what the receiver has said before xl's end is heard before it.
        self._watch(self._packets.fileno(), self._from_receiver)
        self._watch(process, lambda: self._xl_ended(process))
        while self._end is None or self._receiver_there:
            for descriptor, _ in self._poll.poll():
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler()
        # A child of xl's may keep its output open for ever: what xl itself has written is in the pipe by now, and fits one piece.
        if self._receive.stdout in self._handlers:
            self._drain(self._receive.stdout)
        return self._outcome()

    def _hand_over(self) -> None:
        """Give the receiver xl's pipes; of its standard input only what stands in its place, where hooks have to say yes first."""
        stdin, *outputs = self._receive.descriptors()
        if self._hooks.wish is Wish.ASKED:
            self._plug = Plug()
            stdin = self._plug.fileno()
        with contextlib.suppress(SystemFailure):  # a receiver that has gone meanwhile is seen by the session
            self._packets.send(launcher.Started(self._id, self._hooks.wish).push(), (stdin, *outputs))
        if self._plug is None:
            self._receive.forget_stdin()

    @property
    def _receiver_there(self) -> bool:
        return self._packets.fileno() >= 0

    def _from_receiver(self) -> None:
        try:
            packet, descriptors = self._packets.receive(descriptors=0 if self._hooks.wish is Wish.NOTHING else 1)
            if packet:
                self._take(packet, descriptors)
            else:
                self._receiver_gone("the receiver ended")
        except (ProtocolError, SystemFailure) as error:
            say(PROGRAM, f"SECURITY: the receiver of session {self._id.hex()} sent nonsense: {error}")
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
        """What the hooks are to see, once a session; with their yes the receiver gets xl's standard input, with their no xl sees its end."""
        if self._hooks.wish is Wish.NOTHING:
            raise ProtocolError("CONFIGURATION that nobody has asked for, or the second one")
        head = read_sealed(descriptors, launcher.pull_configuration(packet))
        try:
            self._hooks.show(head)
        except RefusedError as refusal:
            self._refuse(refusal)
            return
        if self._plug is not None:
            with contextlib.suppress(SystemFailure):
                self._packets.send(launcher.push_empty(Kind.ADMITTED), (self._receive.stdin,))
            self._receive.forget_stdin()

    def _refuse(self, refusal: RefusedError) -> None:
        self._refused = True
        self._lost = str(refusal)
        self._record("refused", by="launcher", why=self._lost)
        self._receive.forget_stdin()
        with contextlib.suppress(SystemFailure):
            self._packets.send(launcher.push_refused(refusal.reason, self._lost))

    def _note(self, note: Note) -> None:
        if note.milestone in self._heard:
            raise ProtocolError(f"{note.milestone.name} twice")  # each is a line in the journal, and a disk is finite
        self._heard.add(note.milestone)
        if note.milestone not in (Milestone.LOST, Milestone.ENDED):
            self._went = max(self._went, note.milestone)
        if note.domain:
            self._domain = note.domain
        self._bytes = max(self._bytes, note.stream_bytes)
        fields: dict[str, object] = {"by": "receiver", "bytes": note.stream_bytes}
        if note.milestone is Milestone.DOMAIN:
            fields["domain"] = note.domain
        elif note.milestone is Milestone.REPORT:
            self._report = note.status
            fields["status"] = note.status
        elif note.milestone is Milestone.LOST:
            self._lost = self._lost or note.why
            fields["why"] = note.why
        self._record(note.milestone.name.lower(), **fields)

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
        self._receive.forget_stdin()  # where hooks have not been asked yet
        self._door.close()
        if self._end is None and not self._lost:
            self._lost = why
            self._record(Milestone.LOST.name.lower(), by="launcher", why=why)
        for descriptor in (self._receive.stdout, self._receive.stderr):
            os.set_blocking(descriptor, False)
            self._watch(descriptor, lambda descriptor=descriptor: self._drain(descriptor))  # type: ignore[misc]

    def _drain(self, descriptor: int) -> None:
        with contextlib.suppress(BlockingIOError):
            piece = os.read(descriptor, _DRAIN_PIECE)
            if not piece:
                self._unwatch(descriptor)
            elif descriptor == self._receive.stdout:
                self._look_for_report(piece)

    def _look_for_report(self, piece: bytes) -> None:
        """What xl reports when the source cannot hear it any more is known here alone."""
        self._last_words = (self._last_words + piece)[-_DRAIN_PIECE:]
        _, found, status = self._last_words.partition(_REPORT)
        if found and status and self._report is None:
            self._report = status[0]
            self._record(Milestone.REPORT.name.lower(), by="launcher", status=self._report)

    def _hear_out(self) -> None:
        """Take what the receiver has already said: it named the domain before xl heard of it."""
        pending = select.poll()
        if self._receiver_there:
            pending.register(self._packets.fileno(), select.POLLIN)
        while self._receiver_there and pending.poll(0):
            self._from_receiver()

    def _xl_ended(self, process: int) -> None:
        self._hear_out()
        self._unwatch(process)
        os.close(process)
        if self._plug is not None:
            self._plug.pull()
        xl.kill_helpers(self._receive)
        self._end = Exit.from_returncode(self._receive.process.wait())
        if self._receive.process.returncode < 0:
            say(PROGRAM, xl.tidy_up(self._end, self._domain, self._config, started=self._went >= Milestone.GO))
        with contextlib.suppress(SystemFailure):
            self._packets.send(launcher.push_exited(self._end))

    def _outcome(self) -> str:
        outcome, why = self._judge()
        words = "arrived" if outcome is Outcome.SUCCESS else f"{outcome}: {why}"
        end = self._end.describe() if self._end else "xl's end was not seen"
        self._record("end", domain=self._domain, outcome=words, xl=end)
        return f"domain {self._domain or '?'} {words} ({end}); session {self._id.hex()}"

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

    def tell_hooks(self) -> None:
        """Run what the operator wants to be run when all is over."""
        outcome, why = self._judge()
        self._hooks.over(outcome, why, domain=self._domain, stream_bytes=self._bytes)
