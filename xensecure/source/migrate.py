"""One migration as the source sees it: what `xensecure HOST xl migrate-receive` does."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..link.config import Config, HostOptions
from ..link.connection import Deadline, peer_address
from ..link.engine import Compression, Event, Phase, Pump, PumpOptions, Side, Stats, wipe
from ..link.identity import load_credentials
from ..link.peers import Peers
from ..link.say import say
from ..proto import limits
from ..proto.domain import domain_name
from ..proto.errors import TRANSPORT_FAILURE, HookError, LinkLostError, Reason, RefusedError, XensecureError
from ..proto.messages import Accept, Exit, ExitKind, FrameType, Open, Purpose
from ..proto.request import ReceiveRequest
from .establish import Connection, accepted_payload, find_route, reach
from .hooked import MigrationHooks
from .lanes import Lanes, join_session, why_lost
from .progress import Progress
from .tuning import agreed_compression, change_limit

PROGRAM = "xensecure"
# Long enough for one frame to leave over a slow link, short enough for somebody who has asked us to stop.
_ABORT_SECONDS = 2.0

_STOPPED = "stopped by SIGTERM; the domain stays on this host"


@dataclass(frozen=True)
class Job:
    """What xl asks for: which host, which request, with which options; ``reread`` makes these anew from the configuration as it is now."""

    host: str
    request: ReceiveRequest
    options: HostOptions
    reread: Callable[[], HostOptions]


def migrate(config: Config, job: Job) -> int:
    """Carry xl's stream on descriptors 0, 1 and 2; returns the exit status: the remote xl's."""
    stop = StopSignal()
    hooks = MigrationHooks(config, host=job.host, request=job.request, program=PROGRAM)
    try:
        ended = _carry(config, job, stop, hooks)
    except Exception as error:
        hooks.after(str(error))
        raise
    hooks.after(ended.why)
    return ended.status


def _carry(config: Config, job: Job, stop: StopSignal, hooks: MigrationHooks) -> Ended:
    peers = Peers(config)
    route = find_route(config, peers, job.host, job.options)
    hooks.knows(peer=route.peer.name, address=" ".join(route.target.addresses))
    with stop.held():
        hooks.before(stop.wake)
    credentials = load_credentials(config)
    connection = reach(config, peers, credentials, route, Purpose.MIGRATE)
    wipe(connection.schedule.secret())  # the frames' keys are made; nothing else is to follow from it
    hooks.knows(address=peer_address(connection.channel.sock))
    if job.options.verbose:
        say(PROGRAM, f"connected to {route.peer.name} ({connection.group}, {connection.channel.link.backend})")
    try:
        accept = open_session(connection, job.request)
        stop.defer()
        hooks.knows(session=accept.session_id.hex())
        if job.options.verbose > 1:
            say(PROGRAM, f"session {accept.session_id.hex()}")
        compression = agreed_compression(job.options, connection.features, route.peer.name)
        details = f"{connection.group}, {connection.channel.link.backend}"
        progress = Progress(
            peer=route.peer.name,
            details=details,
            quiet=job.options.quiet,
            checkpointed=job.request.checkpointed,
            compressed=compression is not Compression.OFF,
        )
        make = functools.partial(join_session, config, credentials, route, accept.session_id)
        return _Session(connection, accept, job, stop, progress, hooks, compression, make).run()
    finally:
        connection.channel.close()


def open_session(connection: Connection, request: ReceiveRequest) -> Accept:
    """OPEN and its answer; RefusedError if the destination will not."""
    opened = Open(window1=limits.BACK_WINDOW, window2=limits.BACK_WINDOW, request=request)
    connection.channel.send(FrameType.OPEN, opened.push())
    # The destination starts xl before it answers: the time for that is the handshake's anew.
    connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
    return Accept.pull(accepted_payload(connection))


@dataclass(frozen=True)
class Ended:
    """How a session has ended that the protocol has ended: the exit status, and what went wrong in words ("" if nothing did)."""

    status: int
    why: str = ""


class StopSignal:
    """SIGTERM: ends the making of a connection at once; after ``defer`` something to be asked for, and a descriptor that wakes the pump.

    SIGINT is left to xl, which is in our process group: it ends, and so does our standard input. So does SIGHUP of a terminal that is closed; sent to
    us it asks for the configuration to be read again.
    """

    def __init__(self) -> None:
        self.asked = False
        self.hung_up = False
        self._deferred = self._held = False
        self.wake, self._end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGHUP, self._hang_up)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True
        self.ring()  # a SIGHUP that came with it may have taken its byte
        if not self._deferred:
            raise LinkLostError(_STOPPED)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """For as long as hooks run: they watch ``wake``, and must be ended before we end."""
        self._deferred = self._held = True
        try:
            yield
        except HookError:
            if not self.asked:
                raise
        finally:
            self._deferred = self._held = False
        if self.hung_up:
            self.ring()
        if self.asked:
            raise LinkLostError(_STOPPED)

    def _hang_up(self, _number: int, _frame: object) -> None:
        self.hung_up = True
        if self._held:
            self.drain()  # it is for later, and must not end the hooks

    def ring(self) -> None:
        """Make ``wake`` readable; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._end, b"\0")

    def defer(self) -> None:
        """From now on somebody looks at ``asked`` and ``hung_up`` whenever ``wake`` is readable."""
        self._deferred = True

    def drain(self) -> None:
        """Forget what woke us."""
        try:
            os.read(self.wake, 512)
        except BlockingIOError:
            return


class _Session:
    """The pump's life, from ACCEPT to EXIT."""

    def __init__(
        self,
        connection: Connection,
        accept: Accept,
        job: Job,
        stop: StopSignal,
        progress: Progress,
        hooks: MigrationHooks,
        compression: Compression,
        join: Callable[[], Connection],
    ) -> None:
        self._stop = stop
        self._hooks = hooks
        self._progress = progress
        self._reread, self._options = job.reread, job.options
        self._checkpointed = job.request.checkpointed
        window = min(accept.window0, limits.REMUS_WINDOW if job.request.checkpointed else limits.WINDOW)
        self._pump = Pump(
            PumpOptions(
                side=Side.SOURCE,
                channels=(0, 1, 2),
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
        self._lanes = Lanes(self._pump, connection, make=join, wake=stop.ring, verbose=job.options.verbose > 0)
        if not self._checkpointed:  # its window has room for two stripes
            self._lanes.start(job.options.lanes)

    def run(self) -> Ended:
        """Until the session ends."""
        try:
            while True:
                event = self._pump.run(self._progress.interval)
                if event is Event.ENDED:
                    return self._ended()
                self._handle(event)
        except XensecureError:
            self._progress.failed(self._pump.stats())
            raise
        finally:
            self._hooks.has_seen(self._pump.stats(), self._pump.head())
            self._pump.close()
            self._lanes.close()

    def _handle(self, event: Event) -> None:
        stats = self._pump.stats()
        if event is Event.PHASE:
            self._phase(stats)
        elif event is Event.LOST:
            if stats.lost.by_a_frame:
                with contextlib.suppress(XensecureError):
                    self._pump.abort(Reason.PROTOCOL, why_lost(stats.lost, 0), _ABORT_SECONDS)
            raise LinkLostError(f"link lost: {why_lost(stats.lost, stats.system_errno)}; {self._where_is_it(stats)}")
        elif event is Event.LANE_LOST:
            self._lanes.lost(stats)
        elif event is Event.ABORTED:
            reason = Reason(stats.reason) if stats.reason in Reason.__members__.values() else Reason.PROTOCOL
            raise RefusedError(f"the destination gave up: {self._pump.text()}; {self._where_is_it(stats)}", reason)
        else:
            self._stop.drain()
            if self._stop.asked:
                self._pump.abort(Reason.STOPPED, "stopped by SIGTERM at the source", _ABORT_SECONDS)
                raise LinkLostError(f"stopped by SIGTERM; {self._where_is_it(stats)}")
            self._lanes.take_new()
            self._progress.connections = self._lanes.most
            if self._stop.hung_up:
                self._stop.hung_up = False
                self._options = change_limit(self._pump, self._reread, self._options)
            self._progress.show(stats)

    def _phase(self, stats: Stats) -> None:
        if stats.phase is Phase.HEAD:
            self._progress.domain = domain_name(self._pump.head())
        elif stats.phase is Phase.REPORT and stats.report_status == 0:
            # Before xl gets the report: it then says its own last words and ends without waiting for us.
            self._progress.done(stats)

    def _ended(self) -> Ended:
        stats = self._pump.stats()
        kind, value = ExitKind(stats.exit_kind), stats.exit_value
        why = ""
        if stats.phase is not Phase.REPORT:
            why = f"xl there has ended ({Exit(kind, value).describe()}) without a report; {self._where_is_it(stats)}"
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
        if stats.phase is Phase.GO:
            return "xl had already cleared the domain to run there: look with 'xl list' on both hosts before starting it anywhere"
        return "xl had already got the destination's report"
