"""The receiver: one connection from its first byte to its last, by a process that has no link key and no privilege."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..link.config import Config
from ..link.connection import Deadline, FrameChannel, Wire, frames_after, frames_under, peer_address, prepare, require_nothing_behind, run_handshake
from ..link.engine import Compression, Event, Lost, Phase, Pump, PumpOptions, Side, Stats, compiled_features, find_backend, wipe
from ..link.say import say
from ..proto import launcher, limits
from ..proto.domain import domain_name
from ..proto.errors import AuthenticationError, LinkLostError, ProtocolError, Reason, RefusedError, SystemFailure, XensecureError
from ..proto.handshake import DestinationHandshake, State
from ..proto.launcher import Kind, Milestone, Note, Wish
from ..proto.messages import Accept, Exit, ExitKind, Feature, FrameType, Open, Purpose, Refusal
from ..proto.tls import Credentials
from .hooked import sealed_file
from .packets import Packets

PROGRAM = "xensecured"
# The launcher answers from memory and a few small files; xl's start is a fork and exec.
_LAUNCHER_SECONDS = 10.0
_ABORT_SECONDS = 2.0
_DRAIN_PIECE = 1 << 16  # bytes
_LOOK_SECONDS = 1.0  # how often is looked at what the pump does not tell while nothing may be delivered


def connect_launcher(path: Path) -> Packets:
    """A connection to the launcher; SystemFailure if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise SystemFailure(f"{path}: {error.strerror}; is xensecure-launcher running, and [receive] user right?") from None
    return Packets(sock)


class Receiver:
    """Serves one connection; ``sock`` is connected and non-blocking. ``on_authenticated`` is called when the source has proved itself."""

    def __init__(self, sock: socket.socket, *, config: Config, credentials: Credentials) -> None:
        self._sock = sock
        self._config = config
        self._handshake = DestinationHandshake(credentials=credentials, features=compiled_features())
        self._address = peer_address(sock)
        self.peer = ""
        self.on_authenticated: Callable[[], None] = lambda: None

    def run(self) -> None:
        """The key exchange, then what the source came for. Raises what went wrong, for one line in the log."""
        find_backend(self._config.cipher)
        wire = Wire(self._sock, Deadline(limits.HANDSHAKE_SECONDS))
        run_handshake(wire, self._handshake, State.WAIT_CHALLENGE)
        with contextlib.closing(connect_launcher(self._config.launcher_socket)) as packets:
            channel = self._authenticate(wire, packets)
            self.on_authenticated()
            if channel is None:
                return  # it is the session's now that it was made for
            if self._handshake.source_hello.purpose is Purpose.MIGRATE:
                self._migrate(channel, packets)
            elif self._handshake.source_hello.purpose is Purpose.JOIN:
                packet, _ = packets.receive(_LAUNCHER_SECONDS)
                self._refuse(packet, channel)
            else:
                self._pair(channel, packets)

    def _authenticate(self, wire: Wire, packets: Packets) -> FrameChannel | None:
        """The key exchange to its end; None for a connection that was given up to another session's receiver (J4)."""
        challenge, _ = packets.receive(_LAUNCHER_SECONDS)
        if not challenge:
            raise SystemFailure("the launcher closed its socket at once; its log says why")
        self._handshake.challenge(launcher.pull_challenge(challenge))
        run_handshake(wire, self._handshake, State.WAIT_VERDICT)
        packets.send(launcher.Authenticate(request=self._handshake.request(), address=self._address).push())
        packet, _ = packets.receive(_LAUNCHER_SECONDS)
        if not packet or launcher.kind_of(packet) is Kind.REFUSED:
            # Said to the network by closing the connection, whatever the reason (C7); the launcher's log has it.
            raise AuthenticationError("authentication failed; the launcher's log says why")
        answer = launcher.Claimed.pull(packet) if launcher.kind_of(packet) is Kind.CLAIMED else launcher.Authenticated.pull(packet)
        wipe(packet)
        self.peer = answer.peer
        self._handshake.accept(answer.proof)
        wire.send(self._handshake.data_to_send())
        if isinstance(answer, launcher.Claimed):
            require_nothing_behind(self._handshake)
            packets.send(launcher.push_empty(Kind.SURRENDER), (self._sock.fileno(),))
            return None
        return frames_after(self._sock, wire, self._handshake, answer.keys, cipher=self._config.cipher)

    def _expect(self, packet: bytes, kind: Kind, channel: FrameChannel) -> None:
        """The launcher's answer must be ``kind``; its refusal goes to the source and is raised."""
        if not packet or launcher.kind_of(packet) is not kind:
            self._refuse(packet, channel)

    def _refuse(self, packet: bytes, channel: FrameChannel) -> NoReturn:
        """Say the launcher's no to the source."""
        refusal = launcher.pull_refused(packet) if packet else Refusal(Reason.LAUNCHER_LOST, "the launcher there has ended; its log says why")
        channel.send(FrameType.REFUSE, refusal.push())
        raise RefusedError(f"refused: {refusal.text}", refusal.reason)

    def _pair(self, channel: FrameChannel, packets: Packets) -> None:
        """PAIR and ROTATE: the launcher stores, we pass it on (section 5)."""
        if self._receive_empty(channel, FrameType.OPEN) is None:
            return  # the proof of a new link key is all it came for (R5)
        packets.send(launcher.push_empty(Kind.STORE))
        packet, _ = packets.receive(_LAUNCHER_SECONDS)
        self._expect(packet, Kind.STORED, channel)
        channel.send(FrameType.ACCEPT)
        if self._receive_empty(channel, FrameType.END) is None:
            raise ProtocolError(f"{self.peer} went away before it had stored the link key")
        packets.send(launcher.push_empty(Kind.DONE))
        packet, _ = packets.receive(_LAUNCHER_SECONDS)
        self._expect(packet, Kind.COMPLETED, channel)
        channel.send(FrameType.EXIT, Exit(ExitKind.EXITED, 0).push())

    def _receive_empty(self, channel: FrameChannel, kind: FrameType) -> bytes | None:
        """As ``_receive_frame``, for frames that say all by their type."""
        payload = self._receive_frame(channel, kind)
        if payload:
            raise ProtocolError(f"{kind.name} with {len(payload)} bytes of payload")
        return payload

    def _receive_frame(self, channel: FrameChannel, kind: FrameType) -> bytes | None:
        """The payload of the next frame, which must be ``kind``; None if the source closes instead."""
        try:
            frame = channel.receive()
        except LinkLostError:
            return None
        if frame.type is not kind:
            raise ProtocolError(f"{frame.type.name} where {kind.name} belongs")
        return frame.payload

    def _migrate(self, channel: FrameChannel, packets: Packets) -> None:
        payload = self._receive_frame(channel, FrameType.OPEN)
        if payload is None:
            raise LinkLostError(f"{self.peer} went away before it said what it wants")
        opened = Open.pull(payload)
        packets.send(launcher.push_start(opened.request))
        packet, descriptors = packets.receive(_LAUNCHER_SECONDS, descriptors=3)
        self._expect(packet, Kind.STARTED, channel)
        if len(descriptors) != 3:
            raise SystemFailure("the launcher sent no pipes; restart it with the same release")
        window = limits.REMUS_WINDOW if opened.request.checkpointed else self._config.window
        started = launcher.Started.pull(packet)
        accept = Accept(session_id=started.session_id, window0=window)
        channel.send(FrameType.ACCEPT, accept.push())
        compress = Compression.ZSTD if Feature.ZSTD in self._handshake.features else Compression.OFF
        ends = (descriptors[0], descriptors[1], descriptors[2])
        relay = Relay(channel, packets, opened, started.wish, window, ends, self._config, compress)
        relay.whom = f"{self.peer} ({self._address})"
        relay.run()


class Relay:
    """A session in the pump's hands: passes on what the launcher says of xl, and tells it how far the stream has come."""

    def __init__(
        self,
        channel: FrameChannel,
        packets: Packets,
        opened: Open,
        wish: Wish,
        window: int,
        descriptors: tuple[int, int, int],
        config: Config,
        compress: Compression,
    ) -> None:
        self.whom = "unknown"
        self._packets = packets
        self._wish = wish
        self._held = wish is Wish.ASKED  # the launcher has xl's standard input
        self._first_byte = 0.0
        self._cipher = config.cipher
        self._sockets = {channel.sock.fileno(): channel.sock}
        self._stdin, *self._outputs = descriptors
        self._domain = ""
        self._end: Exit | None = None
        self._grace = 0.0
        options = config.defaults
        self._pump = Pump(
            PumpOptions(
                side=Side.DESTINATION,
                channels=descriptors,
                wake=packets.fileno(),
                send_windows=(0, min(opened.window1, limits.BACK_WINDOW), min(opened.window2, limits.BACK_WINDOW)),
                receive_windows=(window, 0, 0),
                keepalive=options.keepalive,
                silence=options.silence,
                compress=compress,
            )
        )
        self._pump.attach(channel.link, channel.sock.fileno())

    def run(self) -> None:
        """Until the session has ended, well or not."""
        try:
            while self._step(self._pump.run(self._patience())):
                pass
        finally:
            self._pump.close()

    @property
    def _awaits_configuration(self) -> bool:
        return self._held and self._wish is not Wish.NOTHING

    def _patience(self) -> float:
        if self._awaits_configuration:
            return _LOOK_SECONDS
        return max(0.0, self._grace - time.monotonic()) if self._grace else -1.0

    def _step(self, event: Event) -> bool:
        """Handle one event; whether to go on."""
        stats = self._pump.stats()
        if event is Event.PHASE:
            self._on_phase(stats)
        elif event is Event.WOKEN:
            self._from_launcher(stats)
        elif event is Event.TIMEOUT:
            return self._on_timeout(stats)
        elif event is Event.OUTPUTS_ENDED:
            self._grace = 0.0
        elif event is Event.INPUT_ENDED:
            self._close_stdin()
        elif event is Event.ENDED:
            self._tell(Milestone.ENDED, stats)
            return False
        elif event is Event.ABORTED:
            return self._on_aborted(stats)
        elif event is Event.LANE_LOST:
            self._on_lane_lost(stats)
        elif event is Event.LOST:
            self._on_lost(stats)
        return True

    def _on_phase(self, stats: Stats) -> None:
        if stats.phase is Phase.HEAD:
            self._domain = domain_name(self._pump.head())
        milestone = _MILESTONES.get(stats.phase)
        if milestone is not None:
            self._tell(milestone, stats)
        if stats.phase >= Phase.HEAD and self._wish is not Wish.NOTHING:
            self._show_configuration()

    def _show_configuration(self) -> None:
        """To the launcher, for its hooks: once, and before xl gets the last of it."""
        self._wish = Wish.NOTHING
        head = self._pump.head()
        descriptor = sealed_file(head)
        try:
            with contextlib.suppress(SystemFailure):
                self._packets.send(launcher.push_configuration(len(head)), (descriptor,))
        finally:
            os.close(descriptor)

    def _on_timeout(self, stats: Stats) -> bool:
        """While nothing may be delivered, the pump cannot tell of a lost link: it tells when all that had come before is delivered."""
        if not self._awaits_configuration:
            self._end_outputs()
        elif stats.lost is not Lost.NOT:
            self._on_lost(stats)
        elif stats.reason:
            return self._on_aborted(stats)
        elif stats.channel_bytes[0]:
            now = time.monotonic()
            self._first_byte = self._first_byte or now
            if now - self._first_byte > limits.CONFIGURATION_SECONDS:
                self._refuse(Refusal(Reason.NOT_ALLOWED, "no configuration of a domain has come that the hooks there could be asked about"))
        return True

    def _on_aborted(self, stats: Stats) -> bool:
        self._tell(Milestone.LOST, stats, why=f"given up by the source: {self._pump.text()}")
        return False

    def _refuse(self, refusal: Refusal) -> None:
        with contextlib.suppress(XensecureError):  # the source may have gone
            self._pump.abort(refusal.reason, refusal.text, _ABORT_SECONDS)
        raise RefusedError(f"refused: {refusal.text}", refusal.reason)

    def _tell(self, milestone: Milestone, stats: Stats, why: str = "") -> None:
        note = Note(milestone, domain=self._domain, stream_bytes=stats.channel_bytes[0], status=max(stats.report_status, 0), why=why)
        with contextlib.suppress(SystemFailure):
            self._packets.send(note.push())

    def _from_launcher(self, stats: Stats) -> None:
        packet, descriptors = self._packets.receive(descriptors=1)
        if not packet:
            self._launcher_gone(stats)
            return
        if launcher.kind_of(packet) is Kind.LANE:
            self._add_lane(packet, descriptors)
            return
        if self._held and launcher.kind_of(packet) in (Kind.ADMITTED, Kind.REFUSED):
            self._on_verdict(packet, descriptors)
            return
        self._held = False
        self._end = launcher.pull_exited(packet)
        self._pump.exit(self._end.kind, self._end.value)
        self._grace = time.monotonic() + limits.EXIT_GRACE_SECONDS

    def _on_verdict(self, packet: bytes, descriptors: list[int]) -> None:
        """What the hooks say. With their yes xl's standard input comes, and takes the number that the pump writes to."""
        self._held = False
        if launcher.kind_of(packet) is Kind.REFUSED:
            self._refuse(launcher.pull_refused(packet))
        launcher.body(packet, Kind.ADMITTED).finish()
        for descriptor in descriptors:
            if self._stdin >= 0:
                os.dup2(descriptor, self._stdin, inheritable=False)
            os.close(descriptor)

    def _add_lane(self, packet: bytes, descriptors: list[int]) -> None:
        """A further connection of this session (J4). One that cannot be taken is closed, and the session goes on without it."""
        keys = launcher.pull_lane(packet)
        wipe(packet)
        sock = socket.socket(fileno=descriptors[0])
        prepare(sock)
        try:
            channel = frames_under(sock, Wire(sock, Deadline(0)), keys, cipher=self._cipher)  # 32 bytes find room in a new socket
            channel.send(FrameType.ACCEPT)
            self._pump.attach(channel.link, sock.fileno())
        except XensecureError as error:
            sock.close()
            say(PROGRAM, f"{self.whom}: a further connection cannot be used: {error}")
        else:
            self._sockets[sock.fileno()] = sock

    def _on_lane_lost(self, stats: Stats) -> None:
        self._sockets.pop(stats.lane_socket).close()
        say(PROGRAM, f"{self.whom}: one of its connections was lost: {_LOST[stats.lane_lost]}; the session goes on over {stats.lanes}")

    def _end_outputs(self) -> None:
        """A child of xl's keeps its output open: what it may still write is not waited for."""
        self._grace = 0.0
        for channel in (1, 2):
            self._pump.end_input(channel)

    def _launcher_gone(self, stats: Stats) -> None:
        """Before GO nothing is lost by giving up, and no journal would know of the domain; after it the report must get through."""
        if self._end is None and stats.phase < Phase.GO:
            text = "the launcher there has ended; xl destroys its copy"
            with contextlib.suppress(SystemFailure):  # the source cannot be told: it sees the connection end
                self._pump.abort(Reason.LAUNCHER_LOST, text, _ABORT_SECONDS)
            self._let_xl_finish()
            raise SystemFailure("the launcher has ended; the migration was given up")
        if self._end is None:
            self._pump.exit(ExitKind.UNKNOWN, 0)
        # The socket stays readable for ever now; a pipe that nobody writes to takes its number, so that it wakes the pump no more.
        quiet, _end = os.pipe2(os.O_CLOEXEC)
        os.dup2(quiet, self._packets.fileno(), inheritable=False)
        os.close(quiet)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def _let_xl_finish(self) -> None:
        """In the launcher's place: end xl's input and read its output to the end, so that it destroys its copy and does not die of its report."""
        self._close_stdin()
        poll = select.poll()
        for descriptor in self._outputs:
            poll.register(descriptor, select.POLLIN)
        left = len(self._outputs)
        while left:
            for descriptor, _ in poll.poll():
                if not os.read(descriptor, _DRAIN_PIECE):
                    poll.unregister(descriptor)
                    left -= 1

    def _on_lost(self, stats: Stats) -> None:
        why = _LOST[stats.lost]
        self._tell(Milestone.LOST, stats, why=why)
        if stats.lost.by_a_frame:
            with contextlib.suppress(XensecureError):
                self._pump.abort(Reason.PROTOCOL, why, _ABORT_SECONDS)
        raise LinkLostError(why)


_MILESTONES = {Phase.HEAD: Milestone.DOMAIN, Phase.READY: Milestone.READY, Phase.GO: Milestone.GO, Phase.REPORT: Milestone.REPORT}

_LOST = {
    Lost.CLOSED: "the source closed the connection before the end",
    Lost.RESET: "the connection was reset",
    Lost.SILENCE: "nothing came from the source any more",
    Lost.HEADER: "SECURITY: a malformed frame came: the data was changed on the way, by an attacker or by faulty hardware",
    Lost.TAG: "SECURITY: a frame's tag does not hold: the data was changed on the way, by an attacker or by faulty hardware",
    Lost.PROTOCOL: "a frame came that the protocol does not allow",
    Lost.SYSTEM: "the socket failed",
    Lost.ABORT: "given up here",
}
