"""Attacks on sessions of several connections: frames moved between them, and receivers that were taken over and want another's session."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator

import pytest

from tests.inmemory import Exchange
from tests.pair import RECEIVER_USER, wait_for
from tests.test_attack_launcher import START, Keeper, push, refused_or_gone, running  # noqa: F401 - a fixture
from xensecure.destination.packets import Packets
from xensecure.link import hardening
from xensecure.link.engine import Event, Link, Lost, Pump, PumpOptions, Side
from xensecure.proto import launcher, limits
from xensecure.proto.handshake import AuthenticationRequest, LinkKeys, source_link_keys
from xensecure.proto.keyschedule import DirectionKeys
from xensecure.proto.launcher import Kind
from xensecure.proto.messages import FrameType, Purpose, SourceHello

STRIPE = 1 << 19  # J5
_PACKET = limits.LAUNCHER_MESSAGE_MAX


def fresh_keys() -> tuple[LinkKeys, LinkKeys]:
    """A connection's keys as its source and its destination use them."""
    up, down = (DirectionKeys(key=secrets.token_bytes(32), iv=secrets.token_bytes(12)) for _ in range(2))
    return LinkKeys(send=up, receive=down), LinkKeys(send=down, receive=up)


class Destination:
    """A destination's pump with two connections, and the sources of both in the test's hands."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.xl, stdin = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, self.xl)
        stack.callback(os.close, stdin)
        self.pump = Pump(
            PumpOptions(
                side=Side.DESTINATION,
                channels=(stdin, -1, -1),
                wake=-1,
                send_windows=(0, limits.WINDOW_MIN, limits.WINDOW_MIN),
                receive_windows=(4 * STRIPE, 0, 0),
                keepalive=0,
                silence=0,
            )
        )
        self.links: list[Link] = []
        self.sockets: list[socket.socket] = []
        for _ in range(2):
            source, destination = fresh_keys()
            near, far = socket.socketpair()
            stack.callback(near.close)
            stack.callback(far.close)
            far.settimeout(0)
            self.links.append(Link(source))
            self.sockets.append(near)
            self.pump.attach(Link(destination), far.fileno())
        stack.callback(self.pump.close)

    def data(self, lane: int, payload: bytes, offset: int) -> bytes:
        """A DATA frame as the source seals it for that connection."""
        return self.links[lane].seal(FrameType.DATA, payload, offset=offset)

    def run_until(self, event: Event) -> None:
        """Run the pump until it says that."""
        for _ in range(100):
            if self.pump.run(0.1) is event:
                return
        raise AssertionError(f"no {event.name}")


@pytest.mark.parametrize("first", [0, 1])
def test_frame_of_another_connection(first: int) -> None:
    """A frame cut from one connection and put into another of the same session: that one is lost for its tag, and nothing of it is delivered."""
    with contextlib.ExitStack() as stack:
        destination = Destination(stack)
        stolen = destination.data(first, b"cut out", 0)
        destination.sockets[1 - first].sendall(stolen)
        destination.run_until(Event.LANE_LOST)
        assert destination.pump.stats().lane_lost is Lost.TAG
        destination.sockets[first].sendall(stolen)
        wait_for(lambda: destination.pump.run(0.05) is Event.TIMEOUT and destination.pump.stats().delivered[0] == 7, "the frame where it belongs")
        assert os.read(destination.xl, 100) == b"cut out"


def test_stripes_swapped() -> None:
    """Two whole stripes exchanged between their connections are two lost connections, and a lost link."""
    with contextlib.ExitStack() as stack:
        destination = Destination(stack)
        frames = [destination.data(0, b"a" * 1000, 0), destination.data(1, b"b" * 1000, STRIPE)]
        for sock, frame in zip(destination.sockets, reversed(frames), strict=True):
            sock.sendall(frame)
        destination.run_until(Event.LOST)
        assert destination.pump.stats().lost is Lost.TAG
        with pytest.raises(BlockingIOError):
            os.read(destination.xl, 1)


# ---- a receiver that was taken over


@pytest.fixture
def keeper(running: Keeper) -> Keeper:  # noqa: F811 - the fixture
    """The launcher, with nothing started and nothing said yet."""
    running.start_afresh()
    return running


def joining(keeper: Keeper, challenge: bytes, session_id: bytes) -> tuple[AuthenticationRequest, LinkKeys]:
    """What hv1 says to join a session, and the keys that it has then."""
    world = keeper.world
    hello = SourceHello(purpose=Purpose.JOIN, key_id=world.hello().key_id, session_id=session_id)
    exchange = Exchange(world, source=world.source_handshake(hello=hello))
    exchange.challenge = challenge
    exchange.run()
    assert exchange.source.schedule is not None
    return exchange.destination.request(), source_link_keys(exchange.source.schedule)


@contextlib.contextmanager
def session(keeper: Keeper) -> Iterator[tuple[Packets, bytes]]:
    """A receiver with a session of hv1's that runs: its connection to its keeper, and the session's id."""
    with keeper.connection() as (sock, challenge):
        sock.send(push(keeper.request(challenge)))
        assert launcher.kind_of(sock.recv(_PACKET)) is Kind.AUTHENTICATED
        sock.send(START)
        packets = Packets(sock)
        packet, descriptors = packets.receive(5, descriptors=3)
        try:
            yield packets, launcher.Started.pull(packet).session_id
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def test_connection_goes_to_its_session(keeper: Keeper) -> None:
    """Control: whoever made the key exchange gets a proof and no key, the session's receiver the connection and the keys that its source has."""
    with session(keeper) as (packets, session_id), keeper.connection() as (sock, challenge):
        request, keys = joining(keeper, challenge, session_id)
        sock.send(push(request))
        answer = sock.recv(_PACKET)
        assert launcher.Claimed.pull(answer).peer == "hv1"
        assert len(answer) == 1 + limits.MAC_LEN + 1 + len("hv1")
        near, far = socket.socketpair()
        with near, far:
            socket.send_fds(sock, [launcher.push_empty(Kind.SURRENDER)], [far.fileno()])
            packet, (descriptor,) = packets.receive(5, descriptors=1)
            given = launcher.Lane.pull(packet)
            assert not given.resumes
            assert (given.keys.send, given.keys.receive) == (keys.receive, keys.send)
            with socket.socket(fileno=descriptor) as same:
                near.send(b"!")
                assert same.recv(1) == b"!"
        assert refused_or_gone(sock)


def test_session_that_is_not_there(keeper: Keeper) -> None:
    """An id of no session: a receiver gets keys for the refusal that it has to seal, and the refusal; nothing starts."""
    with keeper.connection() as (sock, challenge):
        request, _ = joining(keeper, challenge, bytes(16))
        sock.send(push(request))
        assert launcher.kind_of(sock.recv(_PACKET)) is Kind.AUTHENTICATED
        assert launcher.pull_refused(sock.recv(_PACKET)).text == "no session of that id is running there for this host"
        with contextlib.suppress(BrokenPipeError):  # the keeper may have ended
            sock.send(START)
    keeper.assert_nothing_started("was refused: no session of that id")


def test_another_session_than_the_source_named(keeper: Keeper) -> None:
    """A receiver that puts another session's id into the hello of a source that proves itself: the proof is of another transcript."""
    with session(keeper) as (packets, session_id), keeper.connection() as (sock, challenge):
        request, _ = joining(keeper, challenge, bytes(16))
        changed = request.source_hello[:-16] + session_id
        forged = AuthenticationRequest(**{**vars(request), "source_hello": changed})
        sock.send(push(forged))
        assert refused_or_gone(sock)
        with pytest.raises(Exception, match="no answer"):
            packets.receive(0.3)
    assert "wrong proof" in keeper.log()


def test_migration_does_not_become_a_join(keeper: Keeper) -> None:
    """A receiver whose source migrates a domain cannot give its connection, or any other descriptor, to another session."""
    with session(keeper) as (packets, _), keeper.connection() as (sock, challenge):
        sock.send(push(keeper.request(challenge)))
        assert launcher.kind_of(sock.recv(_PACKET)) is Kind.AUTHENTICATED
        near, far = socket.socketpair()
        with near, far:
            socket.send_fds(sock, [launcher.push_empty(Kind.SURRENDER)], [far.fileno()])
            assert refused_or_gone(sock)
        with pytest.raises(Exception, match="no answer"):
            packets.receive(0.3)


@pytest.mark.parametrize("kind", [Kind.JOIN, Kind.LANE, Kind.GRANTED, Kind.SURRENDER])
def test_receiver_speaks_as_a_keeper(keeper: Keeper, kind: Kind) -> None:
    """What keepers say to each other is nonsense from a receiver: its session ends."""
    with session(keeper) as (packets, _):
        whole = {Kind.JOIN: launcher.Join("hv1", resumes=True).push(), Kind.LANE: launcher.Lane(fresh_keys()[1], resumes=True).push()}
        packets.send(whole.get(kind, launcher.push_empty(kind)))
        packet, _ = packets.receive(5)
        while packet:
            assert launcher.kind_of(packet) is Kind.EXITED
            packet, _ = packets.receive(5)
    assert "SECURITY: the receiver of session" in keeper.log()


def test_nothing_surrendered(keeper: Keeper) -> None:
    """SURRENDER without a connection ends the handing over; the place is free again for the next one."""
    with session(keeper) as (packets, session_id):
        for _ in range(limits.LANES_MAX + 1):
            with keeper.connection() as (sock, challenge):
                sock.send(push(joining(keeper, challenge, session_id)[0]))
                assert launcher.kind_of(sock.recv(_PACKET)) is Kind.CLAIMED
                sock.send(launcher.push_empty(Kind.SURRENDER))
                assert refused_or_gone(sock)
        with pytest.raises(Exception, match="no answer"):
            packets.receive(0.3)


def test_lane_without_a_question(keeper: Keeper) -> None:
    """At the session's door a connection is taken from a visitor whose question was answered with yes, and from no other."""
    with session(keeper) as (packets, session_id):
        door = keeper.host.folder / "run" / "sessions" / session_id.hex()
        ours = launcher.Join("hv1", resumes=False).push()
        for first in (b"", launcher.Join("hv3", resumes=False).push(), launcher.Join("hv3", resumes=True).push(), ours):
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as visitor, socket.socket() as given:
                visitor.settimeout(5)
                visitor.connect(str(door))
                if first:
                    visitor.send(first)
                    granted = launcher.kind_of(visitor.recv(_PACKET)) is Kind.GRANTED
                    assert granted == (first == ours)
                with contextlib.suppress(BrokenPipeError):
                    socket.send_fds(visitor, [launcher.Lane(fresh_keys()[1], resumes=False).push()], [given.fileno()])
                assert refused_or_gone(visitor)
        packet, (descriptor,) = packets.receive(5, descriptors=1)
        os.close(descriptor)
        assert launcher.kind_of(packet) is Kind.LANE
        with pytest.raises(Exception, match="no answer"):
            packets.receive(0.3)
    assert "SECURITY: hv3 wanted to join session" in keeper.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_door_is_roots(keeper: Keeper) -> None:
    """The receivers' user cannot reach a session's door."""
    with session(keeper) as (_, session_id):
        door = keeper.host.folder / "run" / "sessions" / session_id.hex()
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                hardening.drop_root(RECEIVER_USER)
                try:
                    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(str(door))
                except PermissionError:
                    status = 0
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


def test_hello_without_its_id(keeper: Keeper) -> None:
    """JOIN, RESUME and QUERY without an id, or a migration with one, are no hello."""
    world = keeper.world
    wrong = [(purpose, bytes(length)) for purpose in (Purpose.JOIN, Purpose.RESUME, Purpose.QUERY) for length in (0, 15, 17)]
    for purpose, session_id in (*wrong, (Purpose.MIGRATE, bytes(16))):
        exchange = Exchange(world, source=world.source_handshake(hello=SourceHello(purpose, world.hello().key_id, session_id=session_id)))
        exchange.run()
        assert "malformed SOURCE_HELLO" in str(exchange.destination_error)
