"""One flipped bit, and one cut, at every offset of a whole connection: handshake, OPEN and ACCEPT, stream, ends and EXIT, in both directions."""

from __future__ import annotations

import pytest

from tests.framepair import ANSWER, DOMAIN, LOG, Cut, Flip, Outcome, frames_of, run_session
from tests.inmemory import Exchange, Way, World, records
from xensecure.link.engine import Event, Lost, TamperedError
from xensecure.proto.errors import AuthenticationError, LinkError, ProtocolError
from xensecure.proto.handshake import LinkKeys, State, destination_link_keys, source_link_keys
from xensecure.proto.messages import FrameType

UP, DOWN = 0, 1
BOTH_WAYS = pytest.mark.parametrize("way", [UP, DOWN], ids=["up", "down"])
CONTENT = {0: DOMAIN, 1: ANSWER, 2: LOG}
_HANDSHAKE_RECORD = 22
_PLAINTEXT_RECORDS = {20, 22}  # ChangeCipherSpec, Handshake (RFC 8446 section 5.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two hosts that have met."""
    return World(tmp_path_factory.mktemp("world") / "state")


@pytest.fixture(scope="module")
def clean(world: World) -> Exchange:
    """A key exchange that nobody disturbed."""
    exchange = Exchange(world).run()
    assert exchange.confirmed
    return exchange


@pytest.fixture(scope="module")
def keys(clean: Exchange) -> tuple[LinkKeys, LinkKeys]:
    """The frame keys of both ends after it."""
    assert clean.source.schedule is not None
    assert clean.verdict is not None
    return source_link_keys(clean.source.schedule), destination_link_keys(clean.verdict.schedule)


def ways_with(way: int, change: Flip | Cut) -> tuple[Way, Way]:
    """Both directions, one of them disturbed."""
    return (Way(change=change), Way()) if way == UP else (Way(), Way(change=change))


def header_places(sent: bytes) -> dict[int, tuple[int, int]]:
    """For each offset that lies in the header of a TLS record, or of the handshake message at its start: its place there, and the record's type."""
    places, at = {}, 0
    for record in records(sent):
        places.update({at + place: (place, record[0]) for place in range(9)})
        at += len(record)
    return places


@BOTH_WAYS
def test_flipped_bit_in_the_key_exchange(world: World, clean: Exchange, way: int) -> None:
    """No flipped bit gets past the key exchange, but in the version of a record's header that RFC 8446 section 5.1 has everybody ignore."""
    sent = bytes((clean.up, clean.down)[way].sent)
    places = header_places(sent)
    for offset in range(len(sent)):
        flip = Flip(offset)
        up, down = ways_with(way, flip)
        exchange = Exchange(world, up=up, down=down).run()
        assert flip.done, offset
        errors = [error for error in (exchange.source_error, exchange.destination_error) if error]
        place, kind = places.get(offset, (-1, -1))
        assert all(isinstance(error, (AuthenticationError, ProtocolError)) for error in errors), (offset, errors)
        if exchange.confirmed:
            assert place in (1, 2), (offset, place)
            assert kind in _PLAINTEXT_RECORDS, (offset, kind)
        elif not errors:
            # A longer record, or a longer handshake message of TLS, is waited for until the time is over.
            assert place in (3, 4) or (place in (6, 7, 8) and kind == _HANDSHAKE_RECORD), (offset, place)
        assert not (exchange.source.state is State.CONFIRMED and exchange.destination.state is not State.CONFIRMED), offset


@BOTH_WAYS
def test_key_exchange_cut_short(world: World, clean: Exchange, way: int) -> None:
    """A key exchange that is cut anywhere before its last byte is not confirmed at the source."""
    sent = bytes((clean.up, clean.down)[way].sent)
    for length in range(len(sent)):
        up, down = ways_with(way, Cut(length))
        exchange = Exchange(world, up=up, down=down).run()
        assert not exchange.confirmed, length
        assert exchange.source_error is None, length
        assert exchange.destination_error is None, length


@pytest.fixture(scope="module")
def wire(keys: tuple[LinkKeys, LinkKeys]) -> tuple[bytes, bytes]:
    """The frames of an undisturbed session, up and down."""
    up, down = Way(), Way()
    outcome = run_session(*keys, up, down)
    assert outcome.success
    assert outcome.destination is Event.ENDED
    assert outcome.delivered == CONTENT
    return bytes(up.sent), bytes(down.sent)


def assert_only_good_frames_delivered(outcome: Outcome, ways: tuple[Way, Way], way: int, limit: int) -> None:
    """What was delivered is the stream's beginning, and no more of it than whole frames before ``limit`` carried."""
    for channel, content in CONTENT.items():
        got = outcome.delivered.get(channel, b"")
        assert content.startswith(got)
        direction = UP if channel == 0 else DOWN
        sent = frames_of(bytes(ways[direction].sent))
        good = [frame for frame in sent if direction != way or frame.end <= limit]
        assert len(got) <= sum(frame.length for frame in good if frame.type is FrameType.DATA and frame.channel == channel)


def success_is_earned(outcome: Outcome, ways: tuple[Way, Way], way: int, offset: int) -> bool:
    """Success is right only where all that is needed had come: the change hit what the source sent after its END, read and discarded (F13)."""
    ends = [frame.end for frame in frames_of(bytes(ways[UP].sent)) if frame.type is FrameType.END]
    return way == UP and bool(ends) and offset >= ends[0] and outcome.delivered == CONTENT


@BOTH_WAYS
def test_flipped_bit_in_the_frames(keys: tuple[LinkKeys, LinkKeys], wire: tuple[bytes, bytes], way: int) -> None:
    """Each flipped bit is told by its receiver for what it is; nothing of its frame or after it is delivered, and it never ends in success."""
    for offset in range(len(wire[way])):
        flip = Flip(offset)
        ways = ways_with(way, flip)
        outcome = run_session(*keys, *ways)
        assert flip.done, offset
        assert_only_good_frames_delivered(outcome, ways, way, offset)
        if outcome.success:
            assert success_is_earned(outcome, ways, way, offset), offset
            continue
        frame = next(frame for frame in frames_of(bytes(ways[way].sent)) if frame.start <= offset < frame.end)
        place = offset - frame.start
        if outcome.error is not None:
            classes = (ProtocolError, LinkError) if place < 16 else (TamperedError,)
            assert isinstance(outcome.error, classes), (offset, outcome.error)
            assert outcome.started == (way == DOWN)
            continue
        lost = outcome.destination_lost if way == UP else outcome.source_lost
        if place in (4, 5, 6, 7):
            assert lost in (Lost.TAG, Lost.HEADER, Lost.PROTOCOL, Lost.CLOSED), (offset, lost)  # CLOSED: a longer frame was waited for
        elif place < 16:
            assert lost in (Lost.TAG, Lost.HEADER, Lost.PROTOCOL), (offset, lost)
        else:
            assert lost is Lost.TAG, (offset, lost)


@BOTH_WAYS
def test_session_cut_short(keys: tuple[LinkKeys, LinkKeys], wire: tuple[bytes, bytes], way: int) -> None:
    """A session that is cut anywhere before its last byte never ends in success (F12), and what was delivered is whole frames' worth."""
    for length in range(len(wire[way])):
        ways = ways_with(way, Cut(length))
        outcome = run_session(*keys, *ways)
        assert_only_good_frames_delivered(outcome, ways, way, length)
        if outcome.success:
            assert success_is_earned(outcome, ways, way, length), length
        elif outcome.error is None:
            assert Lost.CLOSED in (outcome.source_lost, outcome.destination_lost), length
