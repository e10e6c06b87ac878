"""Resumption and the final handshake where they are easiest to get wrong: two copies, none, or a wait without end."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Pair, transports, wait_for
from tests.wires import Wires
from tests.xl.hosts import Fault, Point, running_copies
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link.config import load_config
from xensecure.link.identity import load_credentials
from xensecure.link.peers import Peers
from xensecure.proto.errors import XensecureError
from xensecure.proto.messages import Purpose
from xensecure.source.establish import find_route, reach
from xensecure.source.guard import Guard
from xensecure.source.lanes import join_session
from xensecure.source.resume import resume_session

AGAIN = "connected again after "


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts with short patience."""
    extra = "[defaults]\nkeepalive = 1\nsilence = 2\n"
    with Pair(source_extra=extra, destination_extra=f"window = 1048576\n{extra}", resume_window=3) as made:
        yield made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 MiB."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(4, seed=7, passes=2))


@pytest.fixture
def pair(pair: Pair) -> Iterator[Pair]:
    """Afterwards what waits for a source that comes no more is killed."""
    yield pair
    for name in pair.destination.processes:
        for pid in pair.destination.children(name):
            os.kill(pid, signal.SIGKILL)


def _source_says(pair: Pair, event: str) -> bool:
    return any(entry["event"] == event for entry in pair.source.journal())


def _copies(pair: Pair) -> list[str]:
    return [host.path.parent.name for host in running_copies("web1", pair.source.xen, pair.destination.xen)]


def test_go_that_the_journal_cannot_take_is_not_delivered(pair: Pair) -> None:
    """The destination's disk is full, or read-only, when GO comes: what is not written down is not delivered (S7), and the source resumes."""
    pair.source.xen.set_hold(Point.RENAME)
    running = pair.migrate("web1", "-e", transport="-v")
    pair.source.xen.wait_held(Point.RENAME)
    keeper = pair.destination.session().keeper
    full = (pair.destination.state / "journal.jsonl").stat().st_size
    resource.prlimit(keeper, resource.RLIMIT_FSIZE, (full, full))
    pair.source.xen.release(Point.RENAME)
    outcome = running.wait(30)
    assert outcome.status != 0
    assert "what is not recorded is not started: it does not run there, and xl resumes it here" in outcome.stderr
    assert _copies(pair) == ["hv1"]
    wait_for(lambda: pair.destination.xen.domains() == {}, "the end of the copy")


def test_cut_between_a_failed_report_and_the_permission_to_resume(pair: Pair) -> None:
    """An xl that could not start the domain there has said so, and destroys it before it says GO: a cut then must not lose it (S9)."""
    pair.destination.xen.set_fault(Fault.UNPAUSE_FAIL)
    pair.destination.xen.set_hold(Point.DESTROY)
    with Wires(pair.destination.port) as wires:
        running = pair.migrate("web1", "-e", transport=f"-v -p {wires.port}")
        pair.destination.xen.wait_held(Point.DESTROY)
        wait_for(lambda: _source_says(pair, "report"), "the report at the source")
        wires.cut_last()
        time.sleep(1)
        pair.destination.xen.release(Point.DESTROY)
        outcome = running.wait(30)
    print(outcome.stderr)
    assert pair.source.xen.domains() == {"web1": "running"}, outcome.stderr


def test_go_that_was_read_and_meets_the_end_of_xl_there(pair: Pair) -> None:
    """The end of xl there just before GO: that is read from xl here, and sent nowhere. S8: xl here gets its domain back."""
    pair.source.xen.set_hold(Point.RENAME)
    running = pair.migrate("web1", "-e", transport="-v")
    pair.source.xen.wait_held(Point.RENAME)
    (transport,) = transports(running.pid)
    os.kill(transport, signal.SIGSTOP)
    os.kill(pair.destination.session().xl, signal.SIGKILL)
    time.sleep(1)
    pair.source.xen.release(Point.RENAME)
    time.sleep(1)
    os.kill(transport, signal.SIGCONT)
    outcome = running.wait(30)
    print(outcome.stderr)
    assert not any("GO" in line and "cleared" in line for line in pair.destination.log("xensecure-launcher").splitlines())
    assert pair.source.xen.domains() == {"web1": "running"}, outcome.stderr


def test_resumption_that_is_reset_does_not_keep_the_receiver_for_ever(pair: Pair) -> None:
    """A connection that resumes is reset before ACCEPT, and the source is gone for good: S6 bounds the wait."""
    pair.destination.xen.set_fault(Fault.RESTORE_AT, 2_000_000)
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.migrate("web1", "-e", transport="-v")
    pair.destination.xen.wait_held(Point.RESTORE)
    session = pair.destination.session()
    config = load_config(str(pair.source.config))
    id_ = bytes.fromhex(next(entry["session"] for entry in pair.source.journal() if entry["event"] == "start"))
    peers = Peers(config)
    route = find_route(config, peers, "hv2", config.options_for("hv2"))
    (transport,) = transports(running.pid)
    os.kill(transport, signal.SIGSTOP)
    os.kill(session.receiver, signal.SIGSTOP)  # as long as the network needs for a reset
    connection = reach_behind(config, peers, route, id_)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    os.kill(session.receiver, signal.SIGCONT)
    wait_for(lambda: "a further connection cannot be used" in pair.destination.log("xensecured"), "the reset", 10)
    running.kill()
    os.kill(transport, signal.SIGKILL)
    pair.destination.xen.release(Point.RESTORE)
    wait_for(session.gone, "the session to end: resume_window 3 s, silence 2 s, a handshake 10 s", 40)


def reach_behind(config, peers, route, id_: bytes) -> socket.socket:  # type: ignore[no-untyped-def]
    """A RESUME that the session's keeper has granted; its receiver, which is held, has not taken it."""
    connection = reach(config, peers, load_credentials(config), route, Purpose.RESUME, session_id=id_)
    return connection.channel.sock


def test_session_without_a_door_is_not_taken_for_dead(pair: Pair) -> None:
    """Where a session's door is not to be had (no room in run, no descriptor, another [paths] run since) it may run all the same."""
    pair.source.xen.set_hold(Point.RENAME)
    with Wires(pair.destination.port) as wires:
        running = pair.migrate("web1", "-e", transport=f"-v -p {wires.port}")
        pair.source.xen.wait_held(Point.RENAME)
        session = pair.destination.session()
        for door in (pair.destination.folder / "run" / "sessions").iterdir():
            door.unlink()
        os.kill(session.receiver, signal.SIGSTOP)  # in the place of a network that holds GO back
        pair.source.xen.release(Point.RENAME)
        wait_for(lambda: _source_says(pair, "go"), "GO")
        time.sleep(0.3)
        wires.all[-1].cut_near()
        time.sleep(5)
        os.kill(session.receiver, signal.SIGCONT)
        outcome = running.wait(30)
        time.sleep(2)
    print(outcome.stderr, pair.destination.log("xensecure-launcher")[-1500:], sep="\n---\n")
    assert len(_copies(pair)) < 2, "the domain runs on both hosts"


def test_sigterm_at_go_with_two_connections(pair: Pair, stream: Path) -> None:
    """SIGTERM as GO is on its way to a connection's own thread: xl is told that nothing was cleared only if nothing can be any more (S8)."""
    found = 0
    for _ in range(int(os.environ.get("XENSECURE_TRIES", "3"))):
        pair.source.xen.set_hold(Point.RENAME)
        running = pair.migrate("web1", "-e", transport="-v -o lanes=3")
        pair.source.xen.wait_held(Point.RENAME)
        wait_for(lambda running=running: "3 connections" in running.stderr(), "three connections")
        (transport,) = transports(running.pid)
        journal = pair.source.state / "journal.jsonl"
        size = journal.stat().st_size
        pair.source.xen.release(Point.RENAME)
        while journal.stat().st_size == size:
            pass
        os.kill(transport, signal.SIGTERM)
        outcome = running.wait(30)
        time.sleep(0.5)
        copies = _copies(pair)
        print(copies, outcome.stderr.splitlines()[-3:])
        if len(copies) > 1:
            found += 1
        for pid in (pid for name in ("xensecured", "xensecure-launcher") for pid in pair.destination.children(name)):
            os.kill(pid, signal.SIGKILL)
        pair.reset()
        pair.source.xen.create_domain("web1", stream)
    assert not found, f"the domain ran on both hosts, {found} times"


def test_join_behind_a_loss_that_the_destination_alone_has_seen(pair: Pair) -> None:
    """The destination's only connection is reset, the source knows nothing of it, and one more joins: only RESUME goes on behind a loss (S4)."""
    pair.destination.xen.set_fault(Fault.RESTORE_AT, 2_000_000)
    pair.destination.xen.set_hold(Point.RESTORE)
    with Wires(pair.destination.port) as wires:
        running = pair.migrate("web1", "-e", transport=f"-v -p {wires.port}")
        pair.destination.xen.wait_held(Point.RESTORE)
        config = load_config(str(pair.source.config))
        session_id = bytes.fromhex(next(entry["session"] for entry in pair.source.journal() if entry["event"] == "start"))
        (transport,) = transports(running.pid)
        os.kill(transport, signal.SIGSTOP)  # the source, which makes a connection and has not heard of the loss
        wires.all[-1].cut()
        wait_for(lambda: "waiting for the source" in pair.destination.log("xensecured"), "the loss")
        route = find_route(config, Peers(config), "hv2", config.options_for("hv2"))
        with pytest.raises(XensecureError):
            join_session(config, load_credentials(config), route, session_id)
        os.kill(transport, signal.SIGCONT)
        wait_for(lambda: AGAIN in running.stderr(), "the session to go on")
        pair.destination.xen.release(Point.RESTORE)
        assert running.wait(30).status == 0
    assert _copies(pair) == ["hv2"]


def test_visitors_of_a_keeper_that_is_busy_end(pair: Pair) -> None:
    """A session's keeper does not answer (a hook, a disk that hangs): who judges further connections does not wait for ever."""
    pair.source.xen.set_hold(Point.RENAME)
    pair.migrate("web1", "-e", transport="-v")
    pair.source.xen.wait_held(Point.RENAME)
    session = pair.destination.session()
    config = load_config(str(pair.source.config))
    id_ = bytes.fromhex(next(entry["session"] for entry in pair.source.journal() if entry["event"] == "start"))
    os.kill(session.keeper, signal.SIGSTOP)
    try:
        for _ in range(3):
            askers = [threading.Thread(target=_ask_quietly, args=(config, id_), daemon=True) for _ in range(6)]
            for asker in askers:
                asker.start()
            for asker in askers:
                asker.join(20)
        time.sleep(12)
        left = [pid for pid in pair.destination.children("xensecure-launcher") if pid != session.keeper]
        assert not left, f"{len(left)} keepers wait without end: " + ", ".join(Path(f"/proc/{pid}/wchan").read_text() for pid in left)
    finally:
        os.kill(session.keeper, signal.SIGCONT)


def _ask_quietly(config, id_: bytes) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(XensecureError):
        resume_session(config, load_credentials(config), "hv2", config.defaults, Guard(config.defaults, wake=lambda: None), id_)
