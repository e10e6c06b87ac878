"""Several connections a session (docs/protocol.md, section 6) with the real xl: whole, cut, changed, too many, somebody else's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Host, Pair, transports, wait_for
from tests.wires import Wires
from tests.xl.hosts import Fault, Outcome, Point, Running, alive, running_copies
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link.config import load_config
from xensecure.link.identity import load_credentials
from xensecure.link.peers import Peers
from xensecure.proto.errors import Reason, RefusedError
from xensecure.proto.messages import Purpose
from xensecure.source.establish import find_route, reach
from xensecure.source.lanes import join_session

LANES = 4
# So small that most of the stream is still to come when all connections are there; eight stripes, so that each has some.
WINDOW = 4 << 20
FIRST, LATER, READY = 100_000, 20_500_000, -1
LOST = "one of its connections was lost: "
LOST_AT_SOURCE = "one of the connections was lost: "


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts; the destination holds little, so that a held xl holds the source, and says often that it lives."""
    with Pair(destination_extra=f"window = {WINDOW}\n[defaults]\nkeepalive = 1\n") as made:
        yield made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB in two passes."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(24, seed=7, passes=2))


@pytest.fixture
def pair(pair: Pair) -> Iterator[Pair]:
    """Afterwards no door of a session may be left."""
    yield pair
    wait_for(pair.quiet, "the session's processes to end")
    assert list((pair.destination.folder / "run" / "sessions").iterdir()) == []


class Held:
    """A migration over wires that stands still at a point, with all its connections made."""

    def __init__(self, pair: Pair, point: int | Point, *, lanes: int = LANES, options: str = "") -> None:
        self.pair = pair
        self.said = {name: len(pair.destination.log(name)) for name in ("xensecured", "xensecure-launcher")}
        source, target = pair.source.xen, pair.destination.xen
        if isinstance(point, Point):
            self.at, self.host = point, source if point is Point.RENAME else target
        elif point == READY:
            self.at, self.host = Point.READY, target
        else:
            self.at, self.host = Point.RESTORE, target
            target.set_fault(Fault.RESTORE_AT, point)
        self.host.set_hold(self.at)
        self.wires = Wires(pair.destination.port)
        self.running: Running = pair.migrate("web1", "-e", transport=f"-v -p {self.wires.port} -o lanes={lanes} {options}")
        self.host.wait_held(self.at)
        wait_for(lambda: self.running.stderr().count("connections\n") == lanes - 1, f"{lanes} connections: {self.running.stderr()}")

    def log(self, name: str = "xensecured") -> str:
        """What a daemon has said since."""
        return self.pair.destination.log(name)[self.said[name] :]

    def carried(self) -> int:
        """Bytes from the source so far."""
        return sum(wire.carried for wire in self.wires.all)

    def lost(self) -> None:
        """Wait until both ends have found that a connection is lost."""
        wait_for(lambda: LOST in self.log() and LOST_AT_SOURCE in self.running.stderr(), "both ends to miss a connection")

    def finish(self) -> Outcome:
        """Let it go on, and wait for its end."""
        self.host.release(self.at)
        with self.wires:
            outcome = self.running.wait()
            wait_for(self.pair.quiet, "the session's processes to end")
        assert "Traceback" not in outcome.stderr
        return outcome

    def arrives(self, stream: Path) -> Outcome:
        """It ends well, the domain made from exactly the bytes of its stream."""
        outcome = self.finish()
        assert outcome.status == 0, outcome.stderr + self.log() + self.log("xensecure-launcher")
        target = self.pair.destination.xen
        assert running_copies("web1", self.pair.source.xen, target) == [target]
        assert target.digest("web1") == hashlib.sha256(stream.read_bytes()).hexdigest()
        assert self.pair.destination.last_end()["outcome"] == "arrived"
        return outcome


def test_domain_arrives_over_all(pair: Pair, stream: Path) -> None:
    """Four connections are made beside the stream and each carries a share of it; the domain arrives whole, and both sides tell of them."""
    held = Held(pair, FIRST)
    for wire in held.wires.all:
        wire.pause = 0.01  # 6 MB/s: none of them could carry it alone in time
    outcome = held.arrives(stream)
    assert re.search(r"web1 moved to hv2: .*, 4 connections$", outcome.stderr, re.MULTILINE)
    assert held.log("xensecure-launcher").count("one more connection for session ") == LANES - 1
    shares = sorted(wire.carried for wire in held.wires.all)
    assert shares[1] > 1 << 19, shares  # the last one may find little left
    assert "lost" not in held.log() + outcome.stderr


def test_one_connection_is_the_default(pair: Pair, stream: Path) -> None:
    """Without ``lanes`` there is one connection, and no word of any other."""
    held = Held(pair, FIRST, lanes=1)
    outcome = held.arrives(stream)
    assert len(held.wires.all) == 1
    assert "connections" not in outcome.stderr


@pytest.mark.parametrize("lane", [0, 2])
@pytest.mark.parametrize("point", [FIRST, LATER, READY, Point.RENAME, Point.UNPAUSE])
def test_one_is_cut(pair: Pair, stream: Path, point: int | Point, lane: int) -> None:
    """A connection cut at any phase, the first or another: one line on each side, and the domain arrives whole over the rest."""
    held = Held(pair, point)
    held.wires.all[lane].cut()
    held.lost()
    outcome = held.arrives(stream)
    assert outcome.stderr.count(LOST_AT_SOURCE) == held.log().count(LOST) == 1
    assert "the migration goes on over 3" in outcome.stderr
    assert "the session goes on over 3" in held.log()


def test_all_but_one_are_cut_in_mid_stream(pair: Pair, stream: Path) -> None:
    """Connections cut while bytes run, one after the other until one is left: nothing is lost, doubled or moved."""
    held = Held(pair, FIRST)
    for wire in held.wires.all:
        wire.pause = 0.005  # 48 MiB in a second
    held.host.release(held.at)
    for wire in held.wires.all[:3]:
        before = held.carried()
        wait_for(lambda before=before: held.carried() > before + (4 << 20), "the stream to run")  # type: ignore[misc]
        wire.cut()
    outcome = held.arrives(stream)
    assert outcome.stderr.count(LOST_AT_SOURCE) == 3


def test_all_are_cut(pair: Pair) -> None:
    """All connections cut before GO is a lost link, as with one: the source resumes, the target destroys its copy."""
    held = Held(pair, READY)
    for wire in held.wires.all:
        wire.cut()
    outcome = held.finish()
    assert outcome.status != 0
    assert "xensecure: link lost: " in outcome.stderr
    assert pair.source.xen.domains() == {"web1": "running"}
    assert pair.destination.xen.domains() == {}


def test_stopped(pair: Pair) -> None:
    """SIGTERM at the source reaches the destination over whichever connection, and is no loss of any."""
    held = Held(pair, FIRST)
    (transport,) = transports(held.running.pid)
    os.kill(transport, signal.SIGTERM)
    wait_for(lambda: not alive(transport), "the end of xensecure")  # or GO may be on its way when it hears the signal
    outcome = held.finish()
    assert "xensecure: stopped by SIGTERM; the domain stays on this host\n" in outcome.stderr
    assert "lost" not in held.log()
    assert pair.destination.last_end()["outcome"] == "failed: given up by the source: stopped by SIGTERM at the source"
    assert pair.source.xen.domains() == {"web1": "running"}


@pytest.mark.parametrize("victim", ["receiver", "xl"])
def test_destination_killed(pair: Pair, victim: str) -> None:
    """A process killed at the destination ends the session over all its connections: the source resumes, the target has nothing of it."""
    held = Held(pair, LATER)
    os.kill(getattr(pair.destination.session(), victim), signal.SIGKILL)
    outcome = held.finish()
    assert outcome.status != 0
    assert pair.source.xen.domains() == {"web1": "running"}
    assert pair.destination.xen.domains() == {}


def test_one_is_changed(pair: Pair, stream: Path) -> None:
    """A bit changed on one connection ends that one, loudly, and the domain arrives as it was."""
    held = Held(pair, FIRST)
    held.wires.all[1].spoil = True
    held.arrives(stream)
    assert f"{LOST}SECURITY: a frame's tag does not hold" in held.log()


def test_silent_connection_is_given_up(pair: Pair, stream: Path) -> None:
    """A connection on which nothing comes any more is lost after the time that silence may last, and the others go on."""
    held = Held(pair, LATER, options="-o silence=4 -o keepalive=1")
    held.wires.all[2].stall()
    wait_for(lambda: f"{LOST_AT_SOURCE}nothing came from the destination any more" in held.running.stderr(), "silence")
    held.arrives(stream)


@pytest.mark.parametrize(("allowed", "wanted"), [(1, 2), (3, 8)])
def test_more_than_allowed(stream: Path, allowed: int, wanted: int) -> None:
    """A destination that allows fewer connections refuses the rest, with a line on both sides, and the domain arrives over those."""
    with Pair(destination_extra=f"window = {WINDOW}\nlanes = {allowed}\n") as pair:
        pair.source.xen.create_domain("web1", stream)
        pair.destination.xen.set_hold(Point.READY)
        running = pair.migrate("web1", "-e", transport=f"-v -o lanes={wanted}")
        wait_for(lambda: "cannot be made" in running.stderr(), "the refusal")
        pair.destination.xen.release(Point.READY)
        outcome = running.wait()
        assert outcome.status == 0
        why = "the session there has all the connections that it may have; see [receive] lanes there"
        assert f"a further connection cannot be made: the destination refuses: {why}; the migration goes on without it" in outcome.stderr
        assert outcome.stderr.count("cannot be made") == 1
        assert outcome.stderr.count("connections\n") == allowed - 1 + (allowed > 1)
        assert f"was refused: {why}" in pair.destination.log("xensecure-launcher")


def refusal(host: Host, session_id: bytes) -> RefusedError:
    """What a host that would join a session is told."""
    config = load_config(str(host.config))
    route = find_route(config, Peers(config), "hv2", config.defaults)
    with pytest.raises(RefusedError) as caught:
        join_session(config, load_credentials(config), route, session_id)
    return caught.value


def test_sessions_that_are_not_ours(pair: Pair, stream: Path, tmp_path: Path) -> None:
    """An id that nobody has, and one of another peer's session, are refused alike; the session knows nothing of it. Its own peer may join."""
    (tmp_path / "hv3").mkdir()
    third = Host(tmp_path / "hv3", "hv3")
    third.ctl("init")
    third.ctl("join", pair.destination.invite())
    held = Held(pair, FIRST, lanes=1)
    session_id = bytes.fromhex(pair.destination.journal()[0]["session"])
    refusals = [refusal(pair.source, bytes(16)), refusal(third, session_id), refusal(third, bytes(16))]
    assert {(error.reason, str(error)) for error in refusals} == {
        (Reason.NOT_ALLOWED, "the destination refuses: no session of that id is running there for this host")
    }
    assert f"SECURITY: hv3 wanted to join session {session_id.hex()}, which is hv1's" in held.log("xensecure-launcher")
    config = load_config(str(pair.source.config))
    route = find_route(config, Peers(config), "hv2", config.defaults)
    join_session(config, load_credentials(config), route, session_id).channel.close()
    wait_for(lambda: LOST in held.log(), "the connection that was made and closed")
    held.arrives(stream)
    assert refusal(pair.source, session_id).reason is Reason.NOT_ALLOWED


def test_recorded_key_exchange(pair: Pair, stream: Path) -> None:
    """The bytes with which a source joined a session, sent anew, join nothing."""
    held = Held(pair, FIRST, lanes=2)
    recorded = bytes(held.wires.all[1].up)
    with socket.create_connection(("127.0.0.1", pair.destination.port)) as sock:
        sock.settimeout(15)
        sock.sendall(recorded)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1 << 16):
                pass
    held.arrives(stream)
    assert held.log("xensecure-launcher").count("one more connection") == 1


def test_joining_needs_the_right_purpose(pair: Pair) -> None:
    """A session's id belongs to JOIN and to nothing else: a migration that names one is no message of ours."""
    config = load_config(str(pair.source.config))
    peers = Peers(config)
    route = find_route(config, peers, "hv2", config.defaults)
    with pytest.raises(Exception, match="closed the connection"):
        reach(config, peers, load_credentials(config), route, Purpose.MIGRATE, session_id=bytes(16))


def test_door(pair: Pair, stream: Path) -> None:
    """The socket by which connections come to a session is its keeper's alone, is gone with it, and one that a kill left behind is swept away."""
    held = Held(pair, FIRST, lanes=2)
    folder = pair.destination.folder / "run" / "sessions"
    (door,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(door.stat().st_mode)
    assert stat.S_IMODE(door.stat().st_mode) == 0o600
    assert door.name == pair.destination.journal()[0]["session"]
    os.kill(pair.destination.session().keeper, signal.SIGKILL)
    assert held.finish().status != 0
    assert door.exists()
    pair.destination.stop_daemons()
    pair.destination.start_daemons()
    assert not door.exists()


def test_memory(pair: Pair, stream: Path) -> None:
    """Eight connections cost their buffers and no more: the window is the session's, whatever the number."""
    used = {}
    for lanes in (1, 8):
        pair.source.xen.create_domain("web1", stream) if lanes == 8 else None
        held = Held(pair, LATER, lanes=lanes)
        status = Path(f"/proc/{pair.destination.session().receiver}/status").read_text()
        used[lanes] = int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])
        held.arrives(stream)
        pair.reset()
    # Three buffers a connection (2.6 MiB with the longest frames), a stack, a little of malloc's.
    assert used[8] - used[1] < 8 * 3 << 10
