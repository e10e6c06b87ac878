"""One launcher process for one receiver: judges its source, and does what that came for.

It is forked for each receiver, so that a restart of the launcher disturbs no session, and no two sessions share a process.
"""

from __future__ import annotations

import contextlib
import os
import secrets

from ..link import hooks as points
from ..link.config import Config
from ..link.engine import wipe
from ..link.events import Event, Events
from ..link.hooks import Facts, Role
from ..link.journal import Journal, boot_id, entries, find
from ..link.peers import Peers
from ..link.say import say
from ..proto import launcher, limits
from ..proto.errors import AuthenticationError, Cause, ProtocolError, Reason, RefusedError, StateError
from ..proto.handshake import destination_link_keys
from ..proto.launcher import Kind
from ..proto.messages import OF_A_SESSION, Outcome, OutcomeState, Purpose
from ..proto.request import ReceiveRequest
from . import pairing, xl
from .admission import admit_peer
from .check import report_on
from .held import read_sealed
from .hooked import SessionHooks
from .judge import Verdict, judge
from .lanes import Visit, is_going_on
from .outcome import DENIED, recorded_outcome
from .packets import Packets
from .session import Session
from .slots import Slot, Use

PROGRAM = "xensecure-launcher"
# A pairing's three messages follow one another; only a source that has stopped makes us wait.
_PAIRING_SECONDS = 30.0


class Keeper:
    """Serves one receiver. ``slot``: its place among the keepers."""

    def __init__(self, packets: Packets, *, config: Config, own_pin: bytes, slot: Slot) -> None:
        self._packets = packets
        self._config = config
        self._own_pin = own_pin
        self._slot = slot
        self._peers = Peers(config)
        self._address = "unknown"
        self._events = Events(config, PROGRAM, Role.DESTINATION)
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
        if verdict.hello.purpose in OF_A_SESSION:
            self._of_a_session(verdict)
            return
        self._confirm(verdict)
        if verdict.hello.purpose is Purpose.CHECK:
            self._check(verdict.name)
            return
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
            self._events.emit(Event.REFUSED, cause=refusal.reason.name.lower(), why=str(refusal))
            if self._hooks is not None:
                self._hooks.over(points.Outcome.FAILED, str(refusal))

    def _authenticate(self, packet: bytes, challenge: bytes) -> Verdict | None:
        message = launcher.Authenticate.pull(packet)
        self._address = message.address
        self._events.knows(address=message.address)
        try:
            verdict = judge(message.request, challenge=challenge, own_pin=self._own_pin, peers=self._peers, config=self._config)
        except AuthenticationError as error:
            say(PROGRAM, f"SECURITY: authentication from {message.address} failed: {error}")
            self._packets.send(launcher.push_refused(Reason.PROTOCOL, ""))
            self._events.emit(Event.AUTHENTICATION_FAILED, cause=error.cause, why=str(error))  # last: the refusal takes as long whatever the cause
            return None
        self._events.knows(peer=verdict.name)
        if verdict.peer is not None and not self._settle(verdict):
            say(PROGRAM, f"{verdict.name} ({message.address}): its link key was replaced at this very moment; it may try again")
            self._packets.send(launcher.push_refused(Reason.PROTOCOL, ""))
            self._events.emit(Event.AUTHENTICATION_FAILED, cause=Cause.KEY_REPLACED, why="its link key was replaced at this very moment")
            return None
        return verdict

    def _confirm(self, verdict: Verdict) -> None:
        """Say yes: the proof and this connection's keys."""
        answer = launcher.Authenticated(
            proof=verdict.schedule.destination_proof(), keys=destination_link_keys(verdict.schedule), peer=verdict.name
        ).push()
        self._packets.send(answer)
        wipe(answer)
        if verdict.hello.purpose in (Purpose.MIGRATE, Purpose.CHECK):
            wipe(verdict.schedule.secret())

    def _of_a_session(self, verdict: Verdict) -> None:
        try:
            if verdict.hello.purpose is Purpose.QUERY:
                self._answer(verdict)
            else:
                self._join(verdict)
        finally:
            wipe(verdict.schedule.secret())

    def _join(self, verdict: Verdict) -> None:
        """A connection for a session that another keeper has: to that one, with its keys; or a no, which the receiver seals."""
        session_id = verdict.hello.session_id
        resumes = verdict.hello.purpose is Purpose.RESUME
        try:
            with contextlib.closing(Visit(self._config.run, session_id)) as visit:
                visit.ask(verdict.name, resumes=resumes)
                self._hand_over(verdict, visit, resumes=resumes)
        except RefusedError as refusal:
            self._confirm(verdict)
            if resumes:
                outcome = self._outcome(verdict)
                say(PROGRAM, f"{verdict.name} ({self._address}): session {session_id.hex()} cannot be resumed: {outcome.state.words}, {outcome.text}")
                self._packets.send(launcher.push_outcome(outcome))
                return
            say(PROGRAM, f"{verdict.name} ({self._address}): a further connection for session {session_id.hex()} was refused: {refusal}")
            self._packets.send(launcher.push_refused(refusal.reason, str(refusal)))
            self._events.emit(Event.REFUSED, session=session_id.hex(), cause=refusal.reason.name.lower(), why=str(refusal))

    def _outcome(self, verdict: Verdict) -> Outcome:
        """What became of the session that the source names."""
        session_id = verdict.hello.session_id
        going_on = is_going_on(self._config.run, session_id)  # first: what has ended by then is in the journal
        record = find(self._config.state, session_id, Role.DESTINATION)
        outcome = recorded_outcome(record, verdict.name)
        if outcome.state is OutcomeState.UNKNOWN:
            return outcome
        if going_on:
            return Outcome(OutcomeState.GOING_ON, text="xl there has not ended yet")
        if outcome.state is OutcomeState.NOT_CLEARED and record is not None and not record.ended:
            return self._denied(session_id, outcome)
        return outcome

    def _denied(self, session_id: bytes, outcome: Outcome) -> Outcome:
        """That GO was not delivered is said once it cannot be any more: a keeper of whom nobody knows finds the journal's word against it (S7)."""
        try:
            denied = any(entry["event"] == DENIED for entry in entries(self._config.state, session_id))
            if denied or Journal(self._config.state, Role.DESTINATION).append_unless(session_id, DENIED, "go"):
                return outcome
        except StateError as error:
            return Outcome(OutcomeState.GOING_ON, text=f"what became of it cannot be settled now: {error}")
        return Outcome(OutcomeState.GOING_ON, text="the domain has just been cleared to run there")

    def _answer(self, verdict: Verdict) -> None:
        """QUERY (S11): keep the source's word, and give ours."""
        self._confirm(verdict)
        packet, _ = self._packets.receive(limits.HANDSHAKE_SECONDS)
        if not packet:
            return  # the source went away
        word = launcher.pull_outcome(packet)
        outcome = self._outcome(verdict)
        if outcome.state is not OutcomeState.UNKNOWN and word.state is not OutcomeState.GOING_ON:
            self._keep(verdict.hello.session_id, word)
        self._packets.send(launcher.push_outcome(outcome))

    def _check(self, peer: str) -> None:
        """CHECK (K2, K3): how this host is, and what it would say to a domain."""
        packet, descriptors = self._packets.receive(limits.CHECK_SECONDS, descriptors=1)
        try:
            if not packet:
                return  # the source went away
            if not self._slot.begin(Use.CHECK, limits.CHECKS_MAX):
                busy = f"{limits.CHECKS_MAX} hosts are being told at this moment how that one is; ask again"
                self._packets.send(launcher.push_refused(Reason.TOO_MANY, busy))
                return
            head = read_sealed(descriptors, launcher.pull_configuration(packet))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._packets.send(launcher.push_report(report_on(self._config, peer, self._slot.count(Use.SESSION), head)))

    def _keep(self, session_id: bytes, word: Outcome) -> None:
        """The source's word, in the journal; a peer can say it as often as it likes, and a disk is finite."""
        said = sum(entry["event"] == "peer" for entry in entries(self._config.state, session_id))
        if said < limits.PEER_WORDS_MAX:
            with contextlib.suppress(StateError):  # a full disk costs the note, not the answer
                journal = Journal(self._config.state, Role.DESTINATION)
                journal.append(session_id, "peer", state=word.state.words, status=word.status, text=word.text)

    def _hand_over(self, verdict: Verdict, visit: Visit, *, resumes: bool) -> None:
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
            lane = launcher.Lane(keys, resumes).push()
            visit.give(lane, descriptors[0])
            for secret in (lane, keys.send.key, keys.send.iv, keys.receive.key, keys.receive.iv):
                wipe(secret)
            session = verdict.hello.session_id.hex()
            if resumes:
                say(PROGRAM, f"{verdict.name} ({self._address}): a new connection resumes session {session}")
            else:
                say(PROGRAM, f"{verdict.name} ({self._address}): one more connection for session {session}")
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
        paired = verdict.hello.purpose is Purpose.PAIR
        say(PROGRAM, f"{'paired with' if paired else 'renewed the link key with'} {name} ({self._address})")
        self._events.emit(Event.PAIRED if paired else Event.ROTATED)

    def _serve(self, request: ReceiveRequest, verdict: Verdict) -> None:
        if not self._slot.begin(Use.SESSION, self._config.sessions):
            raise RefusedError(f"{self._config.sessions} migrations are arriving there already; try again later", Reason.TOO_MANY)
        admit_peer(self._config, verdict.name)
        session_id = secrets.token_bytes(limits.SESSION_ID_LEN)
        self._events.knows(session=session_id.hex())
        hooks = self._make_hooks(request, verdict, session_id)
        journal = Journal(self._config.state, Role.DESTINATION)
        try:
            journal.append(session_id, "start", peer=verdict.name, address=self._address, request=request.arguments(), boot=boot_id())
        except StateError as error:
            raise RefusedError(f"the journal there cannot be written ({error}); what is not recorded is not received", Reason.LOCAL_FAULT) from None
        self._hooks = hooks
        try:
            receive = xl.start_receive(request, self._config)
        except RefusedError as refusal:
            with contextlib.suppress(StateError):
                end = {"outcome": f"failed: {refusal}", "xl": "not started", "state": OutcomeState.NOT_CLEARED.words, "status": 0}
                journal.append(session_id, "end", domain="", **end)
            self._events.emit(Event.SESSION_ENDED, outcome=points.Outcome.FAILED.label, state=OutcomeState.NOT_CLEARED.words, why=str(refusal))
            raise
        say(PROGRAM, f"{verdict.name} ({self._address}) sends a domain; session {session_id.hex()}")
        session = Session(self._packets, receive, request, self._config, journal, session_id, hooks, verdict.name, self._events)
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
