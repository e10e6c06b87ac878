"""The receiver's part of a session: moves xl's bytes, outlives lost links, and tells the launcher how far it has come."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from dataclasses import replace

from ..link.config import Config
from ..link.connection import Deadline, FrameChannel, Wire, frames_under, prepare
from ..link.engine import Compression, Event, Lost, Phase, Pump, PumpOptions, Side, Stats, wipe
from ..link.say import say
from ..proto import launcher, limits
from ..proto.domain import domain_memory, domain_name
from ..proto.errors import LinkLostError, ProtocolError, Reason, RefusedError, SystemFailure, XensecureError
from ..proto.launcher import Kind, Milestone, Note, Wish
from ..proto.messages import Exit, ExitKind, FrameType, Open, Refusal
from .held import sealed_file
from .packets import Packets

PROGRAM = "xensecured"
_ABORT_SECONDS = 2.0
_DRAIN_PIECE = 1 << 16  # bytes
_LOOK_SECONDS = 1.0  # how often is looked at what the pump does not tell, and progress told
_NOTED_SECONDS = 10.0  # the launcher writes one line to its disk, and may run a hook before


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
        self._checkpointed = opened.request.checkpointed
        self._wait = config.defaults.resume_window + config.defaults.silence + limits.HANDSHAKE_SECONDS if config.defaults.resume_window else 0.0
        self._lost_until = math.inf
        self._told_bytes = 0
        self._look_at = time.monotonic() + _LOOK_SECONDS
        self._sockets = {channel.sock.fileno(): channel.sock}
        self._stdin, *self._outputs = descriptors
        self._domain = ""
        self._memory = 0
        self._end: Exit | None = None
        self._grace = 0.0
        self._why = ""
        self._awaits_noted = self._launcher_left = False
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
        return max(0.0, min(self._look_at, self._grace or math.inf, self._lost_until) - time.monotonic())

    def _step(self, event: Event) -> bool:
        """Handle one event; whether to go on."""
        stats = self._pump.stats()
        if not self._handle(event, stats):
            return False
        if self._lost_until != math.inf and self._is_over(self._pump.stats()):
            self._tell(Milestone.ENDED, stats)
            return False
        return True

    def _is_over(self, stats: Stats) -> bool:
        """Without a link: whether the source has all that it needs of what xl said (S6). What xl says for people is not worth the wait."""
        reported = stats.phase is Phase.REPORT or stats.delivered[2] == stats.taken[2]
        return self._end is not None and stats.delivered[1] == stats.taken[1] and reported

    def _handle(self, event: Event, stats: Stats) -> bool:
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
            self._tell(Milestone.INPUT_ENDED, stats)
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
            head = self._pump.head()
            self._domain, self._memory = domain_name(head), domain_memory(head)
        milestone = _MILESTONES.get(stats.phase)
        if milestone is not None:
            self._tell(milestone, stats)
        if milestone is Milestone.GO:
            self._await_noted(stats)
        if stats.phase >= Phase.HEAD and self._wish is not Wish.NOTHING:
            self._show_configuration()

    def _await_noted(self, stats: Stats) -> None:
        """GO is delivered when the journal has it, and not before (S7)."""
        deadline = time.monotonic() + _NOTED_SECONDS
        self._awaits_noted = True
        while not self._launcher_left:
            packet, descriptors = self._packets.receive(max(0.0, deadline - time.monotonic()), descriptors=1)
            if packet and launcher.kind_of(packet) is Kind.NOTED:
                self._awaits_noted = False
                return
            if packet and launcher.kind_of(packet) is Kind.REFUSED:
                self._refuse(launcher.pull_refused(packet))
            self._take(packet, descriptors, stats)

    def _show_configuration(self) -> None:
        """To the launcher, which judges it or keeps it for hooks: once, and before xl gets the last of it."""
        self._wish = Wish.NOTHING
        head = self._pump.head()
        descriptor = sealed_file(head)
        try:
            with contextlib.suppress(SystemFailure):
                self._packets.send(launcher.push_configuration(len(head)), (descriptor,))
        finally:
            os.close(descriptor)

    def _on_timeout(self, stats: Stats) -> bool:
        now = time.monotonic()
        if self._grace and now >= self._grace:
            self._end_outputs()
        if now >= self._lost_until:
            self._give_up(stats)
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            if stats.channel_bytes[0] != self._told_bytes:
                self._told_bytes = stats.channel_bytes[0]
                self._tell(Milestone.PROGRESS, stats)
            if self._awaits_configuration:
                return self._await_configuration(stats, now)
        return True

    def _await_configuration(self, stats: Stats, now: float) -> bool:
        """While nothing may be delivered, the pump cannot tell of ABORT: it tells when all that had come before is delivered."""
        if stats.reason:
            return self._on_aborted(stats)
        if stats.channel_bytes[0]:
            self._first_byte = self._first_byte or now
            if now - self._first_byte > limits.CONFIGURATION_SECONDS and self._lost_until == math.inf:
                self._refuse(Refusal(Reason.NOT_ALLOWED, "no configuration of a domain has come that could be judged there"))
        return True

    def _on_aborted(self, stats: Stats) -> bool:
        self._tell(Milestone.LOST, stats, why=f"given up by the source: {self._pump.text()}")
        return False

    def _refuse(self, refusal: Refusal) -> None:
        with contextlib.suppress(XensecureError):  # the source may have gone
            self._pump.abort(refusal.reason, refusal.text, _ABORT_SECONDS)
        raise RefusedError(f"refused: {refusal.text}", refusal.reason)

    def _tell(self, milestone: Milestone, stats: Stats, why: str = "", lost: Lost | None = None) -> None:
        """``lost``: with what tells of a lost link, why in one word."""
        note = Note(
            milestone,
            domain=self._domain,
            stream_bytes=stats.channel_bytes[0],
            status=max(stats.report_status, 0) if lost is None else lost,
            why=why,
            memory=replace(stats.memory, total=self._memory),
        )
        with contextlib.suppress(SystemFailure):
            self._packets.send(note.push())

    def _from_launcher(self, stats: Stats) -> None:
        packet, descriptors = self._packets.receive(descriptors=1)
        self._take(packet, descriptors, stats)

    def _take(self, packet: bytes, descriptors: list[int], stats: Stats) -> None:
        """What the launcher says, whenever it does."""
        if not packet:
            self._launcher_gone(stats)
            return
        if launcher.kind_of(packet) is Kind.LANE:
            self._add_lane(packet, descriptors, stats)
            return
        if self._held and launcher.kind_of(packet) in (Kind.ADMITTED, Kind.REFUSED):
            self._on_verdict(packet, descriptors)
            return
        self._held = False
        self._end = launcher.pull_exited(packet)
        self._pump.exit(self._end.kind, self._end.value)
        self._grace = time.monotonic() + limits.EXIT_GRACE_SECONDS

    def _on_verdict(self, packet: bytes, descriptors: list[int]) -> None:
        """Whether the domain may come. With the yes xl's standard input comes, and takes the number that the pump writes to; xl has the head."""
        self._held = False
        if launcher.kind_of(packet) is Kind.REFUSED:
            self._refuse(launcher.pull_refused(packet))
        launcher.body(packet, Kind.ADMITTED).finish()
        self._pump.skip_head()
        for descriptor in descriptors:
            if self._stdin >= 0:
                os.dup2(descriptor, self._stdin, inheritable=False)
            os.close(descriptor)

    def _add_lane(self, packet: bytes, descriptors: list[int], stats: Stats) -> None:
        """A further connection of this session (J4), or one in the place of all that it has (S4). One that cannot be taken is closed."""
        lane = launcher.Lane.pull(packet)
        wipe(packet)
        try:
            sock = socket.socket(fileno=descriptors[0])
        except OSError as error:
            raise ProtocolError(f"a connection that is none: {error.strerror}") from None
        prepare(sock)
        try:
            if not lane.resumes and self._lost_until != math.inf:
                raise LinkLostError("the session has lost its link, and goes on over none but one that resumes it")
            if lane.resumes and self._is_over(stats):
                raise LinkLostError("the session has nothing left to say; the journal has its outcome in a moment")
            channel = frames_under(sock, Wire(sock, Deadline(0)), lane.keys, cipher=self._cipher)  # 32 bytes find room in a new socket
            channel.send(FrameType.ACCEPT)
            if lane.resumes:
                self._pump.drop()
            self._pump.attach(channel.link, sock.fileno())
        except XensecureError as error:
            sock.close()
            say(PROGRAM, f"{self.whom}: a further connection cannot be used: {error}")
            if self._pump.stats().lost is Lost.REPLACED and self._lost_until == math.inf:
                self._wait_for_source("the connection that was to take its place cannot be used")
            return
        if lane.resumes:
            self._take_over(stats)
        self._sockets[sock.fileno()] = sock

    def _take_over(self, stats: Stats) -> None:
        """A new connection is in the place of all others."""
        for old in self._sockets.values():
            old.close()
        self._sockets.clear()
        if self._lost_until == math.inf:
            self._tell(Milestone.INTERRUPTED, stats, why="the source has lost its link and made another", lost=Lost.REPLACED)
        self._lost_until = math.inf
        self._tell(Milestone.RESUMED, stats)

    def _on_lane_lost(self, stats: Stats) -> None:
        self._sockets.pop(stats.lane_socket).close()
        say(PROGRAM, f"{self.whom}: one of its connections was lost: {_LOST[stats.lane_lost]}; the session goes on over {stats.lanes}")
        self._tell(Milestone.LANE_LOST, stats, why=_LOST[stats.lane_lost], lost=stats.lane_lost)

    def _end_outputs(self) -> None:
        """A child of xl's keeps its output open: what it may still write is not waited for."""
        self._grace = 0.0
        for channel in (1, 2):
            self._pump.end_input(channel)

    def _launcher_gone(self, stats: Stats) -> None:
        """Before GO nothing is lost by giving up, and no journal would know of the domain; after it the report must get through. Checkpoints
        go on: to give up would be failover.
        """
        noted = stats.phase >= Phase.GO and not self._awaits_noted
        if self._end is None and not noted and not self._checkpointed:
            text = "the launcher there has ended; xl destroys its copy"
            with contextlib.suppress(SystemFailure):  # the source cannot be told: it sees the connection end
                self._pump.abort(Reason.LAUNCHER_LOST, text, _ABORT_SECONDS)
            self._let_xl_finish()
            raise SystemFailure("the launcher has ended; the migration was given up")
        self._launcher_left = True
        if self._end is None and not self._checkpointed:
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
        """The last link is lost (section 7)."""
        why = _LOST[stats.lost] + (f" ({os.strerror(stats.system_errno)})" if stats.lost is Lost.SYSTEM and stats.system_errno else "")
        if stats.lost is Lost.PROTOCOL and stats.phase < Phase.GO:
            with contextlib.suppress(XensecureError):
                self._pump.abort(Reason.PROTOCOL, why, _ABORT_SECONDS)
            self._tell(Milestone.LOST, stats, why=why)
            raise LinkLostError(why)
        self._wait_for_source(why)

    def _wait_for_source(self, why: str) -> None:
        for sock in self._sockets.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._why = why
        self._lost_until = time.monotonic() + self._wait
        stats = self._pump.stats()
        self._tell(Milestone.INTERRUPTED, stats, why=why, lost=stats.lost)
        say(PROGRAM, f"{self.whom}: link lost: {why}; waiting for the source for {self._wait:.0f} s")

    def _give_up(self, stats: Stats) -> None:
        if self._checkpointed and self._launcher_left:
            # Our end would be the end of xl's input, and so failover, with nobody left to fence the source off before.
            self._lost_until = math.inf
            say(PROGRAM, f"{self.whom}: source and launcher have gone, and xl waits; end process {os.getpid()} to fail over")
            return
        self._tell(Milestone.LOST, stats, why=self._why)
        raise LinkLostError(self._why)


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
