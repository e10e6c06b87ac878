"""TLS peers that are not xensecure, in memory: the standard library's TLS against both roles, with one thing wrong at a time."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from tests.inmemory import Exchange, Foreign, Way, World, converse, issue
from xensecure.proto.errors import AuthenticationError, PeerError, ProtocolError
from xensecure.proto.handshake import DestinationHandshake, SourceHandshake, State
from xensecure.proto.tls import certificate_names, certificate_pin


@dataclass(frozen=True)
class Manners:
    """How a foreign peer behaves; the defaults are xensecure's."""

    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    alpn: tuple[str, ...] = ("xensecure/1",)
    certificate: bool = True
    group: str = ""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two hosts that have met."""
    return World(tmp_path / "state")


def foreign(world: World, folder: Path, manners: Manners, *, server: bool) -> Foreign:
    """A peer with hv2's identity (server) or hv1's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = manners.version
    if manners.alpn:
        context.set_alpn_protocols(list(manners.alpn))
    if manners.certificate:
        key, certificate = (world.hv2 if server else world.hv1).write(folder, "foreign")
        context.load_cert_chain(certificate, key)
    if server:
        context.verify_mode = ssl.CERT_OPTIONAL
        key, certificate = world.hv1.write(folder, "client")
        context.load_verify_locations(certificate)
    if manners.group:
        context.set_ecdh_curve(manners.group)
    return Foreign(context, server=server)


BAD_MANNERS = {
    "TLS 1.2 only": Manners(version=ssl.TLSVersion.TLSv1_2),
    "no ALPN": Manners(alpn=()),
    "another ALPN": Manners(alpn=("h2", "http/1.1")),
    "ALPN of another version": Manners(alpn=("xensecure/2",)),
    "ALPN that only begins so": Manners(alpn=("xensecure/1x",)),
    "P-384 only": Manners(group="secp384r1"),
    "P-521 only": Manners(group="secp521r1"),
}


@pytest.mark.parametrize("group", ["", "prime256v1"])
@pytest.mark.parametrize("server", [False, True])
def test_well_mannered_peer_gets_through_tls(world: World, tmp_path: Path, group: str, server: bool) -> None:
    """Control: a foreign peer that does as xensecure does reaches the hellos, with X25519 or P-256."""
    handshake = world.source_handshake() if server else world.destination_handshake()
    if isinstance(handshake, SourceHandshake):
        handshake.start()
    peer = foreign(world, tmp_path, Manners(group=group), server=server)
    assert talk(handshake, peer) is None
    assert handshake.state in (State.WAIT_SOURCE_HELLO, State.WAIT_DESTINATION_HELLO)
    assert handshake.tls.group_name == {"": "X25519", "prime256v1": "secp256r1"}[group]
    assert (peer.plaintext == world.hello().push()) is server


def talk(handshake: SourceHandshake | DestinationHandshake, peer: Foreign) -> PeerError | None:
    """Let both talk; what the handshake raised is the peer's fault."""
    error = converse(handshake, peer)
    assert error is None or isinstance(error, PeerError)
    return error


@pytest.mark.parametrize("case", BAD_MANNERS)
def test_destination_refuses_foreign_client(world: World, tmp_path: Path, case: str) -> None:
    """A client with one thing wrong is refused in TLS; it is told an alert or nothing, never a hello."""
    handshake = world.destination_handshake()
    peer = foreign(world, tmp_path, BAD_MANNERS[case], server=False)
    error = talk(handshake, peer)
    assert isinstance(error, ProtocolError)
    assert case != "TLS 1.2 only" or "unsupported protocol" in str(error)
    assert handshake.state is State.FAILED
    assert peer.plaintext == b""


@pytest.mark.parametrize("case", BAD_MANNERS)
def test_source_refuses_foreign_server(world: World, tmp_path: Path, case: str) -> None:
    """A server that holds the right key, with one thing wrong, is refused in TLS before the source has said anything inside it."""
    handshake = world.source_handshake()
    handshake.start()
    peer = foreign(world, tmp_path, BAD_MANNERS[case], server=True)
    error = talk(handshake, peer)
    assert isinstance(error, ProtocolError)
    assert case != "TLS 1.2 only" or "protocol version" in str(error)
    assert handshake.state is State.FAILED
    assert peer.plaintext == b""


def test_destination_refuses_client_without_certificate(world: World, tmp_path: Path) -> None:
    """A client that presents no certificate is refused in TLS."""
    handshake = world.destination_handshake()
    peer = foreign(world, tmp_path, Manners(certificate=False), server=False)
    error = talk(handshake, peer)
    assert isinstance(error, AuthenticationError)
    assert "certificate" in str(error)
    assert handshake.state is State.FAILED


def test_source_refuses_server_without_certificate(world: World) -> None:
    """A server that has no certificate cannot answer at all."""
    handshake = world.source_handshake()
    handshake.start()
    peer = Foreign(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server=True)
    assert isinstance(talk(handshake, peer), PeerError)
    assert handshake.state is State.FAILED


def test_sessions_are_not_resumed(world: World, tmp_path: Path) -> None:
    """A client that offers the ticket it was given gets a full handshake with certificates (T1)."""
    first = foreign(world, tmp_path, Manners(), server=False)
    assert talk(world.destination_handshake(), first) is None
    context = first.tls.context
    ticket = first.tls.session
    second = Foreign(context, server=False)
    second.tls.session = ticket
    handshake = world.destination_handshake()
    assert talk(handshake, second) is None
    assert not second.tls.session_reused
    assert handshake.state is State.WAIT_SOURCE_HELLO
    assert certificate_pin(handshake.tls.peer_certificate()) == world.source.pin


def without_extension(number: int) -> Callable[[bytes], bytes]:
    """Takes an extension out of the ClientHello, as an active attacker would, and mends every length around it."""
    done = False

    def change(data: bytes) -> bytes:
        nonlocal done
        if done or data[0] != 22:
            return data
        done = True
        hello = data[5 + 4 : 5 + int.from_bytes(data[3:5], "big")]
        at = 2 + 32
        at += 1 + hello[at]
        at += 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 1 + hello[at]
        extensions, kept = hello[at + 2 :], b""
        while extensions:
            length = 4 + int.from_bytes(extensions[2:4], "big")
            if int.from_bytes(extensions[:2], "big") != number:
                kept += extensions[:length]
            extensions = extensions[length:]
        assert len(kept) < len(hello[at + 2 :])
        body = hello[:at] + len(kept).to_bytes(2, "big") + kept
        message = b"\x01" + len(body).to_bytes(3, "big") + body
        return data[:3] + len(message).to_bytes(2, "big") + message

    return change


@pytest.mark.parametrize("extension", [43, 16, 51, 10], ids=["supported_versions: TLS 1.2", "no ALPN", "no key share", "no groups"])
def test_proxy_that_edits_the_client_hello_gets_no_downgrade(world: World, extension: int) -> None:
    """An attacker who takes TLS 1.3, ALPN or the groups out of the ClientHello ends the handshake in an error on both sides."""
    exchange = Exchange(world, up=Way(change=without_extension(extension))).run()
    assert not exchange.confirmed
    assert exchange.verdict is None
    assert isinstance(exchange.source_error, PeerError)
    assert isinstance(exchange.destination_error, PeerError)
    assert exchange.source.state is exchange.destination.state is State.FAILED


def test_names_that_no_host_can_have_are_left_out(world: World) -> None:
    """In a certificate that anybody made, names too long, empty or unprintable are left out, and no more are passed on than fit a packet."""
    names = ["good.example", "x" * 256, "", "a\x1bb", *(f"n{number}" for number in range(100))]
    made = issue("any", names=tuple(x509.DNSName(name) for name in names)).credentials()
    assert certificate_names(made.certificate)[:2] == ("good.example", "n0")
    assert len(certificate_names(made.certificate)) == 64
    exchange = Exchange(world, source=world.source_handshake(credentials=replace(made))).run()
    assert isinstance(exchange.destination_error, AuthenticationError)
    assert exchange.destination.state is not State.CONFIRMED


def test_certificate_of_an_unknown_version_has_no_names(world: World) -> None:
    """A source with a certificate of X.509 version 6, whose bytes OpenSSL takes, is judged like any stranger."""
    made = issue("any", names=(x509.DNSName("hv1"),))
    der = made.certificate.public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05")
    certificate = crypto.load_certificate(crypto.FILETYPE_ASN1, der)
    assert certificate_names(certificate) == ()
    exchange = Exchange(world, source=world.source_handshake(credentials=replace(made.credentials(), certificate=certificate))).run()
    assert isinstance(exchange.destination_error, AuthenticationError)
