"""The lines of docs/threat-model.md about stolen keys and a man in the middle, on two hosts in one process."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from cryptography import x509

from tests.inmemory import Exchange, Issued, World, issue, made_up_key, records
from xensecure.proto import limits
from xensecure.proto.errors import AuthenticationError
from xensecure.proto.handshake import State
from xensecure.proto.messages import Purpose, SourceHello
from xensecure.proto.tls import TlsChannel


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two hosts that have met, in pin mode."""
    return World(tmp_path / "state")


def refusal(exchange: Exchange) -> AuthenticationError:
    """Why the destination has refused."""
    assert not exchange.confirmed
    assert isinstance(exchange.destination_error, AuthenticationError)
    return exchange.destination_error


def test_stolen_link_key_alone(world: World) -> None:
    """Whoever has the link key but another TLS key is refused."""
    thief = world.source_handshake(credentials=issue("hv1").credentials())
    assert "TLS key" in str(refusal(Exchange(world, source=thief).run()))


def test_stolen_tls_key_alone(world: World) -> None:
    """Whoever has the TLS key but not the link key is refused."""
    assert "wrong proof" in str(refusal(Exchange(world, link_key=made_up_key("guess")).run()))


def test_unknown_and_wrong_look_alike(world: World) -> None:
    """A source sees the same records, of the same lengths, whether its key id is unknown, its link key wrong, or its TLS key another."""
    unknown = SourceHello(purpose=Purpose.MIGRATE, key_id=secrets.token_bytes(limits.KEY_ID_LEN))
    exchanges = (
        Exchange(world, source=world.source_handshake(hello=unknown)),
        Exchange(world, link_key=made_up_key("another")),
        Exchange(world, source=world.source_handshake(credentials=issue("hv1").credentials())),
    )
    seen = set()
    for exchange in exchanges:
        refusal(exchange.run())
        assert exchange.source.state is State.WAIT_DESTINATION_PROOF
        seen.add(tuple(len(record) for record in records(bytes(exchange.down.arrived))))
    assert len(seen) == 1


def test_proof_serves_one_challenge(world: World) -> None:
    """The very request that was accepted is refused under any other challenge: a receiver that was taken over cannot use it again."""
    exchange = Exchange(world).run()
    assert exchange.confirmed
    assert world.judge(exchange.destination, exchange.challenge).name == "hv1"
    with pytest.raises(AuthenticationError, match="another challenge"):
        world.judge(exchange.destination, secrets.token_bytes(limits.CHALLENGE_LEN))


def site(folder: Path) -> tuple[Issued, str]:
    """A CA, and the file of its certificate."""
    ca = issue("site", ca=True)
    return ca, str(ca.write(folder, "ca")[1])


def named(name: str, ca: Issued) -> Issued:
    """A certificate for a host."""
    return issue(name, ca, names=(x509.DNSName(name),))


def test_man_in_the_middle_with_trusted_certificates(tmp_path: Path) -> None:
    """Holding certificates for both hosts from the CA that both trust, he sees the hellos, and neither side goes further."""
    ca, file = site(tmp_path)
    world = World(tmp_path / "state", trust="ca", ca_file=file, hv1=named("hv1", ca), hv2=named("hv2", ca))
    assert Exchange(world).run().confirmed
    source, destination = world.source_handshake(), world.destination_handshake()
    front = TlsChannel(named("hv2", ca).credentials(file), server=True)
    back = TlsChannel(named("hv1", ca).credentials(file), server=False)
    challenge = secrets.token_bytes(limits.CHALLENGE_LEN)
    up = down = b""
    seen = []
    source.start()
    back.start()
    while destination.state is not State.WAIT_VERDICT:
        up += b"".join(front.feed(record) for record in records(source.data_to_send()))
        if back.established and up:
            seen.append(up)
            back.send(up)
            up = b""
        destination.receive_data(back.drain())
        if destination.state is State.WAIT_CHALLENGE:
            destination.challenge(challenge)
        down += b"".join(back.feed(record) for record in records(destination.data_to_send()))
        if front.established and down:
            seen.append(down)
            front.send(down)
            down = b""
        source.receive_data(front.drain())
        if source.state is State.WAIT_LINK_KEY:
            source.prove(world.link_key)
    with pytest.raises(AuthenticationError, match="wrong proof"):
        world.judge(destination, challenge)
    assert world.hello().push() in b"".join(seen)
    assert source.state is State.WAIT_DESTINATION_PROOF
