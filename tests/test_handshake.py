"""The state machine of the modified key exchange: its table, its framing, and what each end makes of a peer that breaks the rules."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.inmemory import Exchange, Way, World, byte_by_byte, made_up_key, raw_peer, records
from xensecure.proto import handshake as module
from xensecure.proto import limits
from xensecure.proto.errors import AuthenticationError, ProtocolError
from xensecure.proto.handshake import TABLE, DestinationHandshake, Input, Role, SourceHandshake, State, destination_link_keys, source_link_keys
from xensecure.proto.messages import Contact, DestinationHello, Feature, MessageType, Purpose, SourceHello, push_message

CHALLENGE = bytes(range(32))
MESSAGES = {
    Input.SOURCE_HELLO: SourceHello(purpose=Purpose.MIGRATE, key_id=bytes(16)).push(),
    Input.DESTINATION_HELLO: DestinationHello(challenge=CHALLENGE).push(),
    Input.SOURCE_PROOF: push_message(MessageType.SOURCE_PROOF, bytes(32)),
    Input.DESTINATION_PROOF: push_message(MessageType.DESTINATION_PROOF, bytes(32)),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two hosts that have met."""
    return World(tmp_path / "state")


def give(handshake: SourceHandshake | DestinationHandshake, what: Input) -> None:
    """Give a handshake an input, whatever its state."""
    if what in MESSAGES:
        with handshake._failing_for_good():
            handshake._on_message(MESSAGES[what])
    elif what is Input.LINK_KEY and isinstance(handshake, SourceHandshake):
        handshake.prove(bytes(32))
    elif what is Input.CHALLENGE and isinstance(handshake, DestinationHandshake):
        handshake.challenge(CHALLENGE)
    elif what is Input.ACCEPTED and isinstance(handshake, DestinationHandshake):
        handshake.accept(bytes(32))
    else:
        with handshake._failing_for_good():
            handshake._move(what)


OUTSIDE = [(role, state, what) for role in Role for state in State for what in Input if what not in TABLE[role].get(state, {})]


@pytest.mark.parametrize(("role", "state", "what"), OUTSIDE)
def test_what_the_table_lacks_is_refused_for_good(world: World, role: Role, state: State, what: Input) -> None:
    """An input in a state where the table has none raises ProtocolError; the handshake then stays FAILED whatever comes."""
    handshake = world.source_handshake() if role is Role.SOURCE else world.destination_handshake()
    handshake.state = state
    with pytest.raises(ProtocolError):
        give(handshake, what)
    assert handshake.state is State.FAILED
    with pytest.raises(ProtocolError):
        handshake.receive_data(b"\x16")
    assert handshake.state is State.FAILED


def test_table_leads_from_tls_to_confirmed_and_nowhere_else() -> None:
    """In each role there is one way from TLS to CONFIRMED, every state of the table is on it, and no state leads out of an end."""
    for role in Role:
        state, seen = State.TLS, []
        while state is not State.CONFIRMED:
            seen.append(state)
            (state,) = TABLE[role][state].values()
        assert seen == list(TABLE[role])
        assert not {State.CONFIRMED, State.FAILED} & set(TABLE[role])
    assert {state for ways in TABLE.values() for state in ways} | {State.CONFIRMED, State.FAILED} == set(State)


def chunker(seed: int) -> Callable[[bytes], list[bytes]]:
    """Cuts bytes at random places, the same for the same seed."""
    generator = random.Random(seed)

    def cut(data: bytes) -> list[bytes]:
        places = sorted(generator.sample(range(len(data) + 1), min(len(data), generator.randrange(1, 12))))
        return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]

    return cut


@pytest.mark.parametrize("chunks", [None, byte_by_byte, *(chunker(seed) for seed in range(8))], ids=lambda value: "whole" if value is None else None)
def test_both_roles_confirm_however_the_bytes_come(world: World, chunks: Callable[[bytes], list[bytes]] | None) -> None:
    """Source and destination end CONFIRMED with the same keys, the bytes coming whole, one at a time, or cut at random."""
    ways = [Way(chunks=chunks) if chunks else Way() for _ in range(2)]
    exchange = Exchange(world, up=ways[0], down=ways[1]).run()
    assert (exchange.source_error, exchange.destination_error) == (None, None)
    assert exchange.confirmed
    assert exchange.destination.state is State.CONFIRMED
    assert exchange.verdict is not None
    assert exchange.source.schedule is not None
    ours, theirs = source_link_keys(exchange.source.schedule), destination_link_keys(exchange.verdict.schedule)
    assert (ours.send, ours.receive) == (theirs.receive, theirs.send)
    assert ours.send.key != ours.receive.key


def test_group_is_post_quantum_where_openssl_has_it(world: World) -> None:
    """Both ends see X25519MLKEM768 with OpenSSL 3.5 and later, X25519 with older ones (T2)."""
    exchange = Exchange(world).run()
    expected = "X25519MLKEM768" if SSL.OPENSSL_VERSION_NUMBER >= 0x30500000 else "X25519"
    assert (exchange.source.tls.group_name, exchange.destination.tls.group_name) == (expected, expected)


def test_no_two_exchanges_share_anything(world: World) -> None:
    """Exporter value, transcript and keys of two exchanges of the same hosts differ."""
    first, second = Exchange(world).run(), Exchange(world).run()
    assert first.destination.request().ekm != second.destination.request().ekm
    assert first.verdict is not None
    assert second.verdict is not None
    assert first.verdict.schedule.next_link_key() != second.verdict.schedule.next_link_key()


@pytest.mark.parametrize("trailing", [b"", b"\x04", b"\x04\x00\x00\x00", bytes(range(256)) * 64], ids=len)
@pytest.mark.parametrize("chunks", [None, byte_by_byte], ids=["whole", "bytes"])
def test_bytes_behind_the_last_record_are_kept(world: World, trailing: bytes, chunks: Callable[[bytes], list[bytes]] | None) -> None:
    """What stands behind the destination's proof is given back exactly, in one piece with the record or after it (T4)."""
    exchange = Exchange(world)
    last = Way(chunks=chunks) if chunks else Way()
    last.change = lambda data: data + (trailing if exchange.destination.state is State.CONFIRMED else b"")
    exchange.down = last
    assert exchange.run().confirmed
    assert exchange.source.trailing_data() == trailing


def test_bytes_after_confirmation_are_kept(world: World) -> None:
    """Bytes that come after CONFIRMED are kept untouched, more of them than a handshake may have."""
    exchange = Exchange(world).run()
    frames = bytes(limits.HANDSHAKE_BYTES_MAX + 1)
    exchange.source.receive_data(frames)
    assert exchange.source.trailing_data() == frames


def test_record_boundaries_decide_what_openssl_sees(world: World) -> None:
    """A record is fed only when it is whole: with its last byte missing, the handshake waits."""
    source, destination = world.source_handshake(), world.destination_handshake()
    source.start()
    hello = source.data_to_send()
    destination.receive_data(hello[:-1])
    assert destination.data_to_send() == b""
    destination.receive_data(hello[-1:])
    assert destination.data_to_send() != b""


def to_wait_source_hello(world: World) -> tuple[DestinationHandshake, Callable[[bytes], None]]:
    """A destination that waits for a hello, and a way to say anything to it inside TLS."""
    destination = world.destination_handshake()
    raw = raw_peer(world, destination)

    def say(plaintext: bytes) -> None:
        raw.send(plaintext)
        destination.receive_data(raw.drain())

    return destination, say


def to_wait_destination_hello(world: World) -> tuple[SourceHandshake, Callable[[bytes], None]]:
    """A source that waits for a hello, and a way to say anything to it inside TLS."""
    source = world.source_handshake()
    raw = raw_peer(world, source)

    def say(plaintext: bytes) -> None:
        raw.send(plaintext)
        source.receive_data(raw.drain())

    return source, say


HELLO = SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact(name="hv1", port=1, addresses=("a", "b"))).push()


def with_body(change: Callable[[bytearray], object], message: bytes = HELLO) -> bytes:
    """A message with its body changed and its length right."""
    body = bytearray(message[3:])
    change(body)
    return push_message(MessageType(message[0]), bytes(body))


BAD_SOURCE_HELLOS = {
    "unknown type 0": b"\x00\x00\x00",
    "unknown type 5": b"\x05\x00\x00",
    "unknown type 255": b"\xff\x00\x00",
    "another message": MESSAGES[Input.SOURCE_PROOF],
    "own message": MESSAGES[Input.DESTINATION_HELLO],
    "too long by its header": b"\x01" + (limits.MESSAGE_MAX - 2).to_bytes(2, "big"),
    "longest by its header": b"\x01\xff\xff",
    "empty": b"\x01\x00\x00",
    "version 0": with_body(lambda body: body.__setitem__(0, 0)),
    "version 2": with_body(lambda body: body.__setitem__(0, 2)),
    "purpose 0": with_body(lambda body: body.__setitem__(5, 0)),
    "purpose 4": with_body(lambda body: body.__setitem__(5, 4)),
    "contact with MIGRATE": with_body(lambda body: body.__setitem__(5, 1)),
    "contact with ROTATE": with_body(lambda body: body.__setitem__(5, 3)),
    "PAIR without contact": with_body(lambda body: body.__setitem__(5, 2), MESSAGES[Input.SOURCE_HELLO]),
    "PAIR without name": SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact(name="", port=1, addresses=())).push(),
    "PAIR without port": SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact(name="hv1", port=0, addresses=())).push(),
    "trailing byte": with_body(lambda body: body.append(0)),
    "short by a byte": with_body(lambda body: body.pop()),
    "control character": SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact("hv1\x1b[2J", 1, ())).push(),
    "line feed": SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact("hv1\n", 1, ())).push(),
    "right-to-left override": SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact("hv\u202e1", 1, ())).push(),
    "not UTF-8": with_body(lambda body: body.__setitem__(23, 0xFF)),
    "name longer than the message": with_body(lambda body: body.__setitem__(22, 0xFF)),
    "address with a NUL": SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact("hv1", 1, ("a\0",))).push(),
    "nine addresses": SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=Contact("hv1", 1, ("a",) * 9)).push(),
}


@pytest.mark.parametrize("message", BAD_SOURCE_HELLOS.values(), ids=list(BAD_SOURCE_HELLOS))
def test_destination_refuses_what_is_no_source_hello(world: World, message: bytes) -> None:
    """A first message that section 3 does not allow raises ProtocolError, and nothing is answered."""
    destination, say = to_wait_source_hello(world)
    with pytest.raises(ProtocolError):
        say(message)
    assert destination.state is State.FAILED
    assert destination.data_to_send() == b""


@pytest.mark.parametrize("features", [1, 0x80000000, 0xFFFFFFFF])
def test_unknown_features_are_offered_in_vain(world: World, features: int) -> None:
    """Feature bits that are not known are ignored, and not selected."""
    source = world.source_handshake(hello=SourceHello(purpose=Purpose.MIGRATE, key_id=world.hello().key_id, features=features))
    exchange = Exchange(world, source=source).run()
    assert exchange.confirmed
    assert DestinationHello.pull(exchange.destination.request().destination_hello).features == 0


@pytest.mark.parametrize("offered", [0, 1, 0x80000001])
@pytest.mark.parametrize("known", list(Feature))
def test_features_that_both_know(world: World, offered: int, known: Feature) -> None:
    """What is offered and known is selected, and nothing else; both ends come to the same, and the launcher to its verdict."""
    source = world.source_handshake(hello=SourceHello(purpose=Purpose.MIGRATE, key_id=world.hello().key_id, features=offered))
    exchange = Exchange(world, source=source, features=known).run()
    assert exchange.confirmed
    assert exchange.source.features == exchange.destination.features == offered & known


BAD_DESTINATION_HELLOS = {
    "feature not offered": DestinationHello(challenge=CHALLENGE, features=1).push(),
    "high feature not offered": DestinationHello(challenge=CHALLENGE, features=0x80000000).push(),
    "version 2": with_body(lambda body: body.__setitem__(0, 2), MESSAGES[Input.DESTINATION_HELLO]),
    "challenge too short": with_body(lambda body: body.pop(), MESSAGES[Input.DESTINATION_HELLO]),
    "challenge too long": with_body(lambda body: body.append(0), MESSAGES[Input.DESTINATION_HELLO]),
    "the proof first": MESSAGES[Input.DESTINATION_PROOF],
    "the source's own hello": MESSAGES[Input.SOURCE_HELLO],
    "too long by its header": b"\x02\x10\x00",
}


@pytest.mark.parametrize("message", BAD_DESTINATION_HELLOS.values(), ids=list(BAD_DESTINATION_HELLOS))
def test_source_refuses_what_is_no_destination_hello(world: World, message: bytes) -> None:
    """An answer that section 3 does not allow raises ProtocolError, and the source proves nothing."""
    source, say = to_wait_destination_hello(world)
    with pytest.raises(ProtocolError):
        say(message)
    assert source.state is State.FAILED
    assert source.data_to_send() == b""


def test_messages_that_come_together_are_taken_one_by_one(world: World) -> None:
    """A hello and a proof in one record are two messages: the proof waits until the hello has been answered."""
    destination, say = to_wait_source_hello(world)
    say(MESSAGES[Input.SOURCE_HELLO] + MESSAGES[Input.SOURCE_PROOF])
    before = destination.state
    destination.challenge(CHALLENGE)
    assert (before, destination.state) == (State.WAIT_CHALLENGE, State.WAIT_VERDICT)


def test_hello_said_twice_is_a_fault(world: World) -> None:
    """A second hello in the same record is refused once the first has been answered."""
    destination, say = to_wait_source_hello(world)
    say(MESSAGES[Input.SOURCE_HELLO] * 2)
    with pytest.raises(ProtocolError):
        destination.challenge(CHALLENGE)
    assert destination.state is State.FAILED


@pytest.mark.parametrize("extra", [b"\x00", MESSAGES[Input.SOURCE_PROOF], b"\x01\xff\xff"], ids=["a byte", "a proof again", "a long one"])
def test_bytes_inside_tls_behind_the_last_message_are_a_fault(world: World, extra: bytes) -> None:
    """A source that says more inside TLS than its two messages is not accepted, and one that is told more does not confirm (T5)."""
    destination, say = to_wait_source_hello(world)
    say(MESSAGES[Input.SOURCE_HELLO] + MESSAGES[Input.SOURCE_PROOF] + extra)
    destination.challenge(CHALLENGE)
    with pytest.raises(ProtocolError):
        destination.accept(bytes(32))
    assert destination.state is State.FAILED
    source, tell = to_wait_destination_hello(world)
    tell(MESSAGES[Input.DESTINATION_HELLO] + MESSAGES[Input.DESTINATION_PROOF] + extra)
    with pytest.raises((ProtocolError, AuthenticationError)):
        source.prove(world.link_key)
    assert source.state is State.FAILED


def test_right_proof_with_more_behind_it_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right proof does not confirm when one more byte stands behind it in the same record."""
    exchange = Exchange(world)
    destination = exchange.destination
    accept = destination.accept

    def accept_and_say_more(proof: bytes) -> None:
        monkeypatch.setattr(destination.tls, "send", lambda plaintext, send=destination.tls.send: send(plaintext + b"\x00"))
        accept(proof)

    monkeypatch.setattr(destination, "accept", accept_and_say_more)
    exchange.run()
    assert not exchange.confirmed
    assert "more bytes inside TLS" in str(exchange.source_error)


def test_wrong_proof_never_confirms(world: World) -> None:
    """A destination that answers with a wrong proof of any length is refused, and the state is never CONFIRMED meanwhile."""
    for proof in (bytes(32), b"", bytes(31), bytes(33), bytes(64)):
        source, tell = to_wait_destination_hello(world)
        tell(MESSAGES[Input.DESTINATION_HELLO])
        source.prove(world.link_key)
        with pytest.raises(AuthenticationError):
            tell(push_message(MessageType.DESTINATION_PROOF, proof))
        assert source.state is State.FAILED


def test_unexpected_exception_leaves_nothing_confirmed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a fault of our own while a proof is checked ends in FAILED."""
    source, tell = to_wait_destination_hello(world)
    tell(MESSAGES[Input.DESTINATION_HELLO])
    source.prove(world.link_key)

    def broken(_ours: bytes, _theirs: bytes) -> bool:
        raise MemoryError

    monkeypatch.setattr(module, "proofs_equal", broken)
    with pytest.raises(MemoryError):
        tell(MESSAGES[Input.DESTINATION_PROOF])
    assert source.state is State.FAILED


@pytest.mark.parametrize("data", [b"\x16\x03\x01\xff\xff", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", b"GET / HTTP/1.1\r\n\r\n", bytes(5), bytes(100)])
def test_other_protocols_are_refused(world: World, data: bytes) -> None:
    """What is no TLS at all raises ProtocolError, or waits for a record to become whole; it never goes further."""
    destination = world.destination_handshake()
    try:
        destination.receive_data(data)
    except ProtocolError:
        assert destination.state is State.FAILED
    else:
        assert destination.state is State.TLS


def test_handshake_is_bounded(world: World) -> None:
    """More bytes than a handshake may have raise ProtocolError, though each record is a good one."""
    destination, say = to_wait_source_hello(world)
    say(MESSAGES[Input.SOURCE_HELLO])

    def flood() -> None:
        for _ in range(40):
            say(bytes(4000))  # kept back, for the launcher has not given its challenge

    with pytest.raises(ProtocolError, match="bytes before"):
        flood()
    assert destination.state is State.FAILED


def test_source_says_nothing_to_another_pin(world: World, tmp_path: Path) -> None:
    """A source in pin mode that meets another key refuses it inside TLS: neither its certificate nor its hello is ever sent (T3)."""
    other = World(tmp_path / "other")
    exchange = Exchange(world)
    exchange.destination = other.destination_handshake()
    exchange.run()
    assert isinstance(exchange.source_error, AuthenticationError)
    assert "man in the middle" in str(exchange.source_error)
    assert exchange.destination.state is State.FAILED
    # ClientHello, perhaps a ChangeCipherSpec for middleboxes, and an alert: content types 22, 20 and 21, and nothing that is application data
    # but the alert itself where it is encrypted (5 + 2 + 1 + 16 bytes).
    kinds = [(record[0], len(record)) for record in records(bytes(exchange.up.sent))]
    assert kinds[0][0] == 22
    assert all(kind in (20, 21) or size == 24 for kind, size in kinds[1:]), kinds


def test_link_key_is_needed(world: World) -> None:
    """With another link key the destination refuses, and the source learns nothing but the end."""
    exchange = Exchange(world, link_key=made_up_key("another")).run()
    assert isinstance(exchange.destination_error, AuthenticationError)
    assert exchange.source.state is State.WAIT_DESTINATION_PROOF
    assert exchange.source_error is None
