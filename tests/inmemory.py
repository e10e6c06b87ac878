"""Two hosts in one process, without sockets: credentials, a real judge on a real state folder, and the bytes between them in the test's hands."""

from __future__ import annotations

import datetime
import hashlib
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

from xensecure.destination.judge import Verdict, judge
from xensecure.link import store
from xensecure.link.config import Config
from xensecure.link.identity import load_certificates
from xensecure.link.peers import LinkKey, Peer, Peers
from xensecure.proto.errors import XensecureError
from xensecure.proto.handshake import DestinationHandshake, SourceHandshake, State
from xensecure.proto.keyschedule import key_id
from xensecure.proto.messages import Contact, Feature, Purpose, SourceHello
from xensecure.proto.tls import Credentials, TlsChannel, record_length

PrivateKey = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
Change = Callable[[bytes], bytes]
HV1 = Contact(name="hv1", port=8003, addresses=("127.0.0.1",))
_ROUNDS_MAX = 100  # a key exchange takes five
LONG_AGO, FAR_AWAY = datetime.datetime(2000, 1, 1), datetime.datetime(2099, 1, 1)  # naive: what old versions of cryptography take


@dataclass(frozen=True)
class Issued:
    """A key and certificate in PEM, and the objects they came from."""

    key: PrivateKey
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        """The private key."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def certificate_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def credentials(self, ca_file: str = "") -> Credentials:
        """For a TlsChannel."""
        certificate = crypto.load_certificate(crypto.FILETYPE_PEM, self.certificate_pem)
        authorities = load_certificates(Path(ca_file), "") if ca_file else ()
        return Credentials(key=crypto.load_privatekey(crypto.FILETYPE_PEM, self.key_pem), certificate=certificate, authorities=authorities)

    def write(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Write both; returns the paths of key and certificate."""
        folder.mkdir(parents=True, exist_ok=True)
        key, certificate = folder / f"{stem}.key", folder / f"{stem}.crt"
        for path, content in ((key, self.key_pem), (certificate, self.certificate_pem)):
            path.write_bytes(content)
            path.chmod(0o600)
        return key, certificate


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    names: tuple[x509.GeneralName, ...] = (),
    ca: bool = False,
    key: PrivateKey | None = None,
    ends: datetime.datetime | None = None,
) -> Issued:
    """A certificate for a key, a fresh one unless given: self-signed, or by an issuer. ``ends``: UTC; far away unless given."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by = issuer.certificate.subject if issuer else subject
    serial = 1 << 158 | secrets.randbits(158)  # always 20 bytes of DER, so that certificates differ in length by their names alone
    builder = x509.CertificateBuilder(by, subject, key.public_key(), serial, LONG_AGO, ends or FAR_AWAY)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signer = issuer.key if issuer else key
    return Issued(key=key, certificate=builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()))


def made_up_key(name: str) -> bytes:
    """A fresh object with 32 bytes that follow from a name: what is given to xensecure may be wiped there."""
    return hashlib.sha256(name.encode()).digest()


class World:
    """hv1, which knows hv2, and hv2's state folder, in which hv1 is a peer under ``link_key``."""

    def __init__(self, folder: Path, *, trust: str = "pin", ca_file: str = "", hv1: Issued | None = None, hv2: Issued | None = None) -> None:
        self.hv1, self.hv2 = hv1 or issue("hv1"), hv2 or issue("hv2")
        self.source = self.hv1.credentials(ca_file)
        self.destination = self.hv2.credentials(ca_file)
        self.trust = trust
        self.config = Config(path="test", state=folder, name="hv2", trust=trust)
        for path in (folder, folder / "peers", folder / "invitations"):
            store.make_directory(path)
        self.peers = Peers(self.config)
        with self.peers.locked():
            self.peers.put(Peer(contact=HV1, pin=self.source.pin, keys=(LinkKey(generation=1, key=self.link_key),), since=0))

    @property
    def link_key(self) -> bytes:
        """What both share."""
        return made_up_key("link key")

    def hello(self) -> SourceHello:
        """What hv1 says to hv2."""
        return SourceHello(purpose=Purpose.MIGRATE, key_id=key_id(self.link_key))

    def source_handshake(self, *, credentials: Credentials | None = None, hello: SourceHello | None = None) -> SourceHandshake:
        """hv1's side, as in source/establish.py."""
        pin = None if self.trust == "ca" else self.destination.pin
        return SourceHandshake(credentials=credentials or self.source, hello=hello or self.hello(), expected_pin=pin, accepted_names=("hv2",))

    def destination_handshake(self, *, features: Feature = Feature.NONE) -> DestinationHandshake:
        """hv2's side, as in destination/receiver.py."""
        return DestinationHandshake(credentials=self.destination, features=features)

    def judge(self, handshake: DestinationHandshake, challenge: bytes) -> Verdict:
        """The launcher's verdict."""
        return judge(handshake.request(), challenge=challenge, own_pin=self.destination.pin, peers=self.peers, config=self.config)


@dataclass
class Way:
    """One direction: what was sent, and what of it arrived. ``change`` stands in the way; ``chunks`` cuts what arrives into pieces."""

    change: Change = bytes
    chunks: Callable[[bytes], list[bytes]] = field(default=lambda data: [data])
    sent: bytearray = field(default_factory=bytearray)
    arrived: bytearray = field(default_factory=bytearray)

    def carry(self, data: bytes) -> list[bytes]:
        """What arrives of these bytes, in pieces."""
        if not data:
            return []
        self.sent += data
        data = self.change(data)
        self.arrived += data
        return [piece for piece in self.chunks(data) if piece]


def byte_by_byte(data: bytes) -> list[bytes]:
    """Chunks of one byte."""
    return [data[at : at + 1] for at in range(len(data))]


class Exchange:
    """One modified key exchange, both ends in this process. ``up`` leads from the source to the destination, ``down`` back."""

    def __init__(
        self,
        world: World,
        *,
        source: SourceHandshake | None = None,
        link_key: bytes | None = None,
        up: Way | None = None,
        down: Way | None = None,
        features: Feature = Feature.NONE,
    ) -> None:
        self.world = world
        self.source = source or world.source_handshake()
        self.destination = world.destination_handshake(features=features)
        self.up, self.down = up or Way(), down or Way()
        self.link_key = link_key or world.link_key
        self.challenge = secrets.token_bytes(32)
        self.source_error: XensecureError | None = None
        self.destination_error: XensecureError | None = None
        self.verdict: Verdict | None = None

    def run(self) -> Exchange:
        """Until nothing moves any more. An end that has failed sends what it has (an alert) and no more."""
        self.source.start()
        for _ in range(_ROUNDS_MAX):
            if not self._to_destination() | self._to_source():
                return self
        raise AssertionError("the two never fall silent")

    def _to_destination(self) -> bool:
        pieces = self.up.carry(self.source.data_to_send())
        for piece in pieces:
            if self.destination_error is None:
                try:
                    self.destination.receive_data(piece)
                    self._answer()
                except XensecureError as error:
                    self.destination_error = error
        return bool(pieces)

    def _answer(self) -> None:
        """What the receiver and the launcher do."""
        if self.destination.state is State.WAIT_CHALLENGE:
            self.destination.challenge(self.challenge)
        if self.destination.state is State.WAIT_VERDICT:
            self.verdict = self.world.judge(self.destination, self.challenge)
            self.destination.accept(self.verdict.schedule.destination_proof())

    def _to_source(self) -> bool:
        pieces = self.down.carry(self.destination.data_to_send())
        for piece in pieces:
            if self.source_error is None:
                try:
                    self.source.receive_data(piece)
                    if self.source.state is State.WAIT_LINK_KEY:
                        self.source.prove(self.link_key)
                except XensecureError as error:
                    self.source_error = error
        return bool(pieces)

    @property
    def confirmed(self) -> bool:
        """Whether the source may go on to frames: the only success there is."""
        return self.source.state is State.CONFIRMED


def records(data: bytes) -> list[bytes]:
    """Whole TLS records."""
    found = []
    while data:
        length = record_length(data[:5])
        assert length is not None
        found.append(data[:length])
        data = data[length:]
    return found


def raw_peer(world: World, handshake: SourceHandshake | DestinationHandshake) -> TlsChannel:
    """A TLS channel that has reached ``handshake`` with the right certificate, and says what the test wants."""
    server = isinstance(handshake, SourceHandshake)
    raw = TlsChannel(world.destination if server else world.source, server=server)
    if isinstance(handshake, SourceHandshake):
        handshake.start()
    else:
        raw.start()
    while not (raw.established and handshake.state is not State.TLS):
        up, down = raw.drain(), handshake.data_to_send()
        assert up or down
        if up:
            handshake.receive_data(up)
        for record in records(down):
            raw.feed(record)
    for record in records(handshake.data_to_send()):
        raw.feed(record)  # OpenSSL's tickets, or the source's hello
    return raw


class Foreign:
    """A TLS peer by another implementation of the glue: the standard library's, on memory."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=server)
        self.established = False
        self.plaintext = b""
        self.error: ssl.SSLError | None = None

    def step(self, data: bytes) -> bytes:
        """Take bytes; returns those for the network."""
        self._in.write(data)
        try:
            if not self.established:
                self.tls.do_handshake()
                self.established = True
            self.plaintext += self.tls.read(1 << 16)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
        return self._out.read()


def converse(handshake: SourceHandshake | DestinationHandshake, foreign: Foreign) -> XensecureError | None:
    """Let both talk until nothing moves; returns what the handshake (a source: started) raised."""
    data = foreign.step(handshake.data_to_send())
    while True:
        error = None
        try:
            if data:
                handshake.receive_data(data)
        except XensecureError as raised:
            error = raised
        answer = handshake.data_to_send()
        data = foreign.step(answer) if answer else b""
        if error is not None or not (data or answer):
            return error
