"""Two men in the middle: one who changes a byte, and one who holds certificates from the CA that both hosts trust."""

from __future__ import annotations

import contextlib
import datetime
import select
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from demo.network import Interceptor, Network

_PIECE = 1 << 20
# What the stream is full of, and nothing encrypted is: an empty page's bytes, and libxl's word at its beginning.
_PLAIN = (bytes(64), b"LibxlFmt")


def _end_sending(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


class ByteFlipper(Interceptor):
    """Passes everything on, but for one bit of the byte at ``position`` on its way to the destination."""

    def __init__(self, network: Network, listener: socket.socket, port: int, *, position: int) -> None:
        super().__init__(network, listener, port)
        self._position = position
        self.passed = 0
        self.flipped = False
        self.readable = 0

    def attack(self, victim: socket.socket, target: socket.socket) -> None:
        """Relay until either side ends, or breaks off."""
        with contextlib.suppress(ConnectionError):
            self._relay(victim, target)

    def _relay(self, victim: socket.socket, target: socket.socket) -> None:
        buffer = bytearray(_PIECE)
        poll = select.poll()
        for sock in (victim, target):
            poll.register(sock, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                giver, taker = (victim, target) if descriptor == victim.fileno() else (target, victim)
                count = giver.recv_into(buffer)
                if count == 0:
                    _end_sending(taker)
                    return
                if giver is victim:
                    self._look(buffer, count)
                taker.sendall(memoryview(buffer)[:count])

    def _look(self, buffer: bytearray, count: int) -> None:
        self.readable += any(buffer.find(word, 0, count) >= 0 for word in _PLAIN)
        if self.passed <= self._position < self.passed + count:
            buffer[self._position - self.passed] ^= 1
            self.flipped = True
        self.passed += count


class TlsMan(Interceptor):
    """Speaks TLS with both sides, as the destination to the source and as the source to the destination, with the CA's own certificates.

    ``change_at``: which byte of what the source says he changes, should he come so far.
    """

    def __init__(self, network: Network, listener: socket.socket, port: int, *, ca: CertificateAuthority, change_at: int) -> None:
        super().__init__(network, listener, port)
        self._ca = ca
        self._change_at = change_at
        self.source_believed = False
        self.destination_believed = False
        self.read = 0
        self.changed = False

    def _context(self, side: int, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.set_alpn_protocols(["xensecure/1"])
        files = self._ca.issue(name)
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def attack(self, victim: socket.socket, target: socket.socket) -> None:
        """Two TLS connections, and everything that is said in one repeated in the other."""
        victim.settimeout(10)
        source = self._context(ssl.PROTOCOL_TLS_SERVER, "hv2").wrap_socket(victim, server_side=True)
        self.source_believed = True
        with source, self._context(ssl.PROTOCOL_TLS_CLIENT, "hv1").wrap_socket(target) as destination:
            self.destination_believed = True
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                self._relay(source, destination)

    def _relay(self, source: ssl.SSLSocket, destination: ssl.SSLSocket) -> None:
        poll = select.poll()
        for sock in (source, destination):
            poll.register(sock, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                giver, taker = (source, destination) if descriptor == source.fileno() else (destination, source)
                data = bytearray(giver.recv(_PIECE))
                if not data:
                    return
                if giver is source:
                    self._use(data)
                taker.sendall(data)

    def _use(self, data: bytearray) -> None:
        if self.read <= self._change_at < self.read + len(data):
            data[self._change_at - self.read] ^= 1
            self.changed = True
        self.read += len(data)


@dataclass(frozen=True)
class Files:
    """A host's certificate and key, and the CA's certificate, as PEM files."""

    certificate: Path
    key: Path
    ca: Path


class CertificateAuthority:
    """A site's CA, whose key the attacker has got hold of: to both hosts its certificates are as good as any."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the site's CA")])
        certificate = self._builder(self._name, self._key.public_key()).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = certificate.sign(self._key, hashes.SHA256())
        (folder / "ca.crt").write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        day = datetime.timedelta(days=1)
        return x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number(), now - day, now + day)

    def issue(self, host: str) -> Files:
        """A new key and certificate for a host's name: for whoever asks."""
        number = len(list(self._folder.iterdir()))
        files = Files(self._folder / f"{host}-{number}.crt", self._folder / f"{host}-{number}.key", self._folder / "ca.crt")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]), key.public_key())
        certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False).sign(self._key, hashes.SHA256())
        files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        files.key.chmod(0o600)
        return files
