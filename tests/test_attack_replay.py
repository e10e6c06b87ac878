"""Replayed, reordered, doubled, reflected and transplanted messages and frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framepair import DOMAIN, run_session
from tests.inmemory import Exchange, Way, World, records
from xensecure.destination.judge import judge
from xensecure.link.engine import Event, Link, Lost, TamperedError
from xensecure.proto.errors import AuthenticationError, ProtocolError
from xensecure.proto.handshake import AuthenticationRequest, LinkKeys, SourceHandshake, State, destination_link_keys, source_link_keys
from xensecure.proto.messages import DestinationHello, FrameType


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two hosts that have met."""
    return World(tmp_path / "state")


def confirmed(world: World) -> tuple[Exchange, LinkKeys, LinkKeys]:
    """A confirmed key exchange, and the frame keys of source and destination."""
    exchange = Exchange(world).run()
    assert exchange.source.schedule is not None
    assert exchange.verdict is not None
    return exchange, source_link_keys(exchange.source.schedule), destination_link_keys(exchange.verdict.schedule)


def test_recorded_source_is_no_source(world: World) -> None:
    """All that a source sent once, sent again to a new connection, ends in TLS: the destination's own random is another."""
    recorded = bytes(Exchange(world).run().up.sent)
    destination = world.destination_handshake()

    def replay() -> None:
        for record in records(recorded):
            destination.receive_data(record)
            destination.data_to_send()

    with pytest.raises((ProtocolError, AuthenticationError)):
        replay()
    assert destination.state is State.FAILED


def test_recorded_destination_is_no_destination(world: World) -> None:
    """All that a destination sent once, sent to a new source, ends in TLS before the source has said anything."""
    recorded = bytes(Exchange(world).run().down.sent)
    source = world.source_handshake()
    source.start()
    source.data_to_send()
    with pytest.raises((ProtocolError, AuthenticationError)):
        source.receive_data(recorded)
    assert source.state is State.FAILED


def test_reflected_source_is_no_destination(world: World) -> None:
    """A source that gets its own bytes back takes them for a fault."""
    source = world.source_handshake()
    source.start()
    with pytest.raises(ProtocolError):
        source.receive_data(source.data_to_send())


def test_source_led_to_itself(world: World) -> None:
    """A source that is led to its own host's receiver (the selfie attack) refuses its own pin; with a CA, its own name."""
    exchange = Exchange(world)
    exchange.destination = type(exchange.destination)(credentials=world.source)
    exchange.run()
    assert isinstance(exchange.source_error, AuthenticationError)
    assert exchange.destination.state is State.FAILED


def changed(request: AuthenticationRequest, **fields: object) -> AuthenticationRequest:
    """A request with some of its fields changed."""
    return AuthenticationRequest(**{**vars(request), **fields})


def test_proof_serves_one_challenge(world: World) -> None:
    """What a taken-over receiver recorded is refused under any other challenge, also when it puts the new one into the old hello."""
    exchange, _, _ = confirmed(world)
    recorded = exchange.destination.request()

    def verdict(request: AuthenticationRequest, challenge: bytes) -> None:
        judge(request, challenge=challenge, own_pin=world.destination.pin, peers=world.peers, config=world.config)

    verdict(recorded, exchange.challenge)
    fresh = bytes(32)
    with pytest.raises(AuthenticationError, match="another challenge"):
        verdict(recorded, fresh)
    with pytest.raises(AuthenticationError, match="wrong proof"):
        verdict(changed(recorded, destination_hello=DestinationHello(challenge=fresh).push()), fresh)


@pytest.mark.parametrize("field", ["ekm", "source_pin", "destination_pin", "source_hello", "destination_hello", "proof"])
def test_verdict_rests_on_every_field(world: World, field: str) -> None:
    """A request of one session with any one field of another session of the same hosts, or changed, is refused."""
    first, second = confirmed(world)[0], confirmed(world)[0]
    request, other = first.destination.request(), second.destination.request()
    value = getattr(other, field)
    if value == getattr(request, field):
        value = bytes([*value[:-1], value[-1] ^ 1])
    with pytest.raises(AuthenticationError):
        judge(changed(request, **{field: value}), challenge=first.challenge, own_pin=world.destination.pin, peers=world.peers, config=world.config)


@pytest.mark.parametrize("transplanted", ["the source's own", "another session's"])
def test_destination_proof_of_another_session_is_refused(world: World, monkeypatch: pytest.MonkeyPatch, transplanted: str) -> None:
    """A source takes neither its own proof back, nor the destination's of another session."""
    other, _, _ = confirmed(world)
    exchange = Exchange(world)
    accept = exchange.destination.accept

    def accept_wrongly(_proof: bytes) -> None:
        assert exchange.source.schedule is not None
        assert other.verdict is not None
        accept(exchange.source.schedule.source_proof() if transplanted == "the source's own" else other.verdict.schedule.destination_proof())

    monkeypatch.setattr(exchange.destination, "accept", accept_wrongly)
    exchange.run()
    assert isinstance(exchange.source_error, AuthenticationError)
    assert exchange.source.state is State.FAILED


def sealed(keys: LinkKeys, count: int = 4) -> tuple[Link, list[bytes]]:
    """The first DATA frames of one end."""
    link = Link(keys)
    return link, [link.seal(FrameType.DATA, bytes([number]) * 16, offset=16 * number) for number in range(count)]


@pytest.mark.parametrize(
    ("order", "good"),
    [([0, 0], 1), ([1], 0), ([0, 2], 1), ([0, 2, 1], 1), ([1, 0], 0), ([0, 1, 1, 2], 2), ([0, 1, 0], 2), ([3, 2, 1, 0], 0)],
    ids=str,
)
def test_frames_out_of_order_are_refused(world: World, order: list[int], good: int) -> None:
    """A frame doubled, left out, moved or replayed fails its tag, and from then on no frame is opened, not even the right one."""
    _, source, destination = confirmed(world)
    _, frames = sealed(source)
    link = Link(destination)
    for number, index in enumerate(order):
        if number < good:
            assert link.open(frames[index]).payload == bytes([index]) * 16
        else:
            with pytest.raises(TamperedError):
                link.open(frames[index])
    with pytest.raises(TamperedError):
        link.open(frames[good])


def test_frames_of_another_direction_or_session_are_refused(world: World) -> None:
    """A frame sent back to its sender, and one of another session of the same hosts at the same place, fail their tags."""
    _, source, destination = confirmed(world)
    _, other_source, _ = confirmed(world)
    sender, frames = sealed(source)
    with pytest.raises(TamperedError):
        sender.open(frames[0])
    _, others = sealed(other_source)
    with pytest.raises(TamperedError):
        Link(destination).open(others[0])


def test_frames_cannot_be_cut_and_pasted(world: World) -> None:
    """Header, body and tag of two frames of one session mixed in any way fail the tag."""
    _, source, destination = confirmed(world)
    _, (first, second, *_) = sealed(source)
    pieces = [(frame[:16], frame[16:32], frame[32:]) for frame in (first, second)]
    for mask in range(1, 7):
        mixed = b"".join(pieces[mask >> place & 1][place] for place in range(3))
        with pytest.raises(TamperedError):
            Link(destination).open(mixed)


class Replacer:
    """Puts other bytes in the place of the n-th piece that passes."""

    def __init__(self, number: int, change: Callable[[Replacer, bytes], bytes]) -> None:
        self._number, self._change, self._seen = number, change, 0
        self.history: list[bytes] = []

    def __call__(self, data: bytes) -> bytes:
        """What arrives."""
        self._seen += 1
        self.history.append(data)
        return self._change(self, data) if self._seen == self._number else data


@pytest.mark.parametrize(
    ("piece", "change"),
    [
        (2, lambda _self, data: data + data),
        (2, lambda _self, data: b"" if data else data),
        (3, lambda self, _data: self.history[1]),
        (3, lambda self, data: data + self.history[1]),
    ],
    ids=["doubled", "dropped", "replayed in place", "replayed behind"],
)
def test_session_with_moved_frames_fails(world: World, piece: int, change: Callable[[Replacer, bytes], bytes]) -> None:
    """Frames doubled, dropped or replayed within a running session end it as tampered with, and never in success."""
    _, source, destination = confirmed(world)
    outcome = run_session(source, destination, Way(change=Replacer(piece, change)), Way())
    assert not outcome.success
    assert outcome.destination_lost is Lost.TAG
    assert DOMAIN.startswith(outcome.delivered[0])
    assert outcome.delivered[0] != DOMAIN


def test_reflected_frames_end_the_session(world: World) -> None:
    """A source that gets its own frames back loses the link to tampering."""
    _, source, destination = confirmed(world)
    sent: list[bytes] = []

    def record(data: bytes) -> bytes:
        sent.append(data)
        return data

    seen = 0

    def reflect(data: bytes) -> bytes:
        nonlocal seen
        seen += 1
        return data if seen == 1 else sent[-1]  # ACCEPT is let through

    outcome = run_session(source, destination, Way(change=record), Way(change=reflect))
    assert outcome.source is Event.LOST
    assert outcome.source_lost in (Lost.TAG, Lost.PROTOCOL)
    assert outcome.delivered[1] == b""


def test_source_of_one_session_says_nothing_in_another(world: World) -> None:
    """Records of one TLS connection put into another end it: the two share no key."""
    first, second = Exchange(world), Exchange(world)
    taken: list[bytes] = []
    first.up.change = lambda data: taken.append(data) or data  # type: ignore[func-returns-value]
    first.run()
    count = 0

    def transplant(data: bytes) -> bytes:
        nonlocal count
        count += 1
        return data if count < 3 else taken[2]  # the third piece is the proof

    second.up.change = transplant
    second.run()
    assert not second.confirmed
    assert isinstance(second.destination_error, ProtocolError)


def test_handshake_is_used_once(world: World) -> None:
    """A source that has confirmed makes no second proof."""
    exchange = Exchange(world).run()
    assert isinstance(exchange.source, SourceHandshake)
    with pytest.raises(ProtocolError):
        exchange.source.prove(world.link_key)
