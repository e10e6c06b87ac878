"""One migration as the source sees it: what `xensecure HOST xl migrate-receive` does."""

from __future__ import annotations

import functools

from ..link.config import Config
from ..link.connection import Deadline, peer_address
from ..link.engine import Compression, wipe
from ..link.identity import load_credentials
from ..link.peers import Peers
from ..link.say import say
from ..proto import limits
from ..proto.errors import XensecureError
from ..proto.messages import Accept, FrameType, Open, Outcome, Purpose
from ..proto.request import ReceiveRequest
from ..proto.tls import Credentials
from .establish import Connection, Route, accepted_payload, find_route, reach
from .guard import Guard
from .hooked import MigrationHooks
from .job import Job, StopSignal
from .lanes import join_session
from .progress import Progress
from .record import SourceRecord
from .resume import resume_session, shortened
from .session import Ended, Makers, Session
from .settle import settle
from .tuning import agreed_compression

PROGRAM = "xensecure"


def migrate(config: Config, job: Job) -> int:
    """Carry xl's stream on descriptors 0, 1 and 2; returns the exit status: the remote xl's."""
    stop = StopSignal()
    hooks = MigrationHooks(config, host=job.host, request=job.request, program=PROGRAM)
    record = SourceRecord(config, hooks, checkpointed=job.request.checkpointed)
    try:
        ended = _carry(config, job, stop, hooks, record)
    except Exception as error:
        record.end(str(error), error)
        hooks.after(str(error))
        raise
    record.end(ended.why)
    hooks.after(ended.why)
    if ended.status == 0:
        settle(config, record.peer)
    return ended.status


def _carry(config: Config, job: Job, stop: StopSignal, hooks: MigrationHooks, record: SourceRecord) -> Ended:
    guard = Guard(job.options, wake=stop.ring, tell=record.alarm)
    peers = Peers(config)
    route = find_route(config, peers, job.host, job.options, why_not=guard.why_not)
    guard.knows((*route.peer.contact.addresses, *route.target.addresses))
    hooks.knows(peer=route.peer.name, address=" ".join(route.target.addresses))
    with stop.held():
        hooks.before(stop.wake)
    credentials = load_credentials(config)
    with record.watching():
        connection = reach(config, peers, credentials, route, Purpose.MIGRATE)
    wipe(connection.schedule.secret())  # the frames' keys are made; nothing else is to follow from it
    hooks.knows(address=peer_address(connection.channel.sock))
    if job.options.verbose:
        say(PROGRAM, f"connected to {route.peer.name} ({connection.group}, {connection.channel.link.backend})")
    try:
        guard.watch(connection.channel.sock)
        accept = open_session(connection, job.request)
        stop.defer()
        hooks.knows(session=accept.session_id.hex())
        record.begin(accept.session_id, route.peer.name, peer_address(connection.channel.sock), job.request)
        if job.options.verbose > 1:
            say(PROGRAM, f"session {accept.session_id.hex()}")
        compression = agreed_compression(job.options, connection.features, route.peer.name)
        details = f"{connection.group}, {connection.channel.link.backend}"
        progress = Progress(
            peer=route.peer.name,
            details=details,
            quiet=job.options.quiet,
            verbose=job.options.verbose > 0,
            checkpointed=job.request.checkpointed,
            compressed=compression is not Compression.OFF,
        )
        makers = Makers(
            join=functools.partial(_join, config, credentials, route, accept.session_id, record),
            resume=functools.partial(_resume, config, credentials, job, guard, accept.session_id, record),
        )
        return Session(connection, accept, job, stop, progress, record, compression, makers, guard).run()
    finally:
        guard.end()
        connection.channel.close()


def open_session(connection: Connection, request: ReceiveRequest) -> Accept:
    """OPEN and its answer; RefusedError if the destination will not."""
    opened = Open(window1=limits.BACK_WINDOW, window2=limits.BACK_WINDOW, request=request)
    connection.channel.send(FrameType.OPEN, opened.push())
    # The destination starts xl before it answers: the time for that is the handshake's anew.
    connection.channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
    return Accept.pull(accepted_payload(connection))


def _join(config: Config, credentials: Credentials, route: Route, session_id: bytes, record: SourceRecord) -> Connection:
    with record.watching():
        return join_session(config, credentials, route, session_id)


def _resume(
    config: Config, credentials: Credentials, job: Job, guard: Guard, session_id: bytes, record: SourceRecord, seconds: float
) -> Connection | Outcome:
    """One attempt, with the options as the configuration has them by now: somebody may have given the peer another address."""
    try:
        options = job.reread()
    except XensecureError:
        options = job.options
    with record.watching():
        return resume_session(config, credentials, job.host, shortened(options, seconds), guard, session_id)
