"""TLS 1.3 on memory, record by record: docs/protocol.md, section 2.

OpenSSL's default groups already stand in the order of T2 (OpenSSL 3.5 and later: X25519MLKEM768, X25519, P-256; 3.0: X25519, P-256);
what was negotiated is checked against ``GROUPS`` afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from OpenSSL import SSL, crypto

from . import limits
from .errors import AuthenticationError, Cause, ProtocolError
from .keyschedule import EXPORTER_LABEL

ALPN = b"xensecure/1"
GROUPS = {0x11EC: "X25519MLKEM768", 0x001D: "X25519", 0x0017: "secp256r1"}  # IANA "TLS Supported Groups"

T = TypeVar("T")

_WRONG_PIN = "whoever answers has another key than the peer we know; this may be a man in the middle"

RECORD_HEADER_LEN = 5  # bytes: type, legacy version, length (RFC 8446 section 5.1)
# X509_V_ERR_* of openssl/x509_vfy.h, those that a site's CA runs into; pyOpenSSL has no names for them.
_CHAIN_ERRORS = {9: "not yet valid", 10: "expired", 18: "self-signed", 19: "of another CA", 20: "of another CA", 26: "not made for this use"}
_CONTENT_TYPES = range(20, 24)  # change_cipher_spec, alert, handshake, application_data (RFC 8446 section 5.1)
_HANDSHAKE, _SERVER_HELLO = 22, 2  # ContentType, HandshakeType (RFC 8446)
_SUPPORTED_GROUPS, _KEY_SHARE = 10, 51  # ExtensionType


@dataclass(frozen=True)
class Credentials:
    """A host's TLS key and certificate (with its chain, if it has one), and the certificates of the site's CA (none: pin mode)."""

    key: crypto.PKey
    certificate: crypto.X509
    chain: tuple[crypto.X509, ...] = ()
    authorities: tuple[crypto.X509, ...] = ()

    @property
    def pin(self) -> bytes:
        """This host's own pin."""
        return certificate_pin(self.certificate)


def certificate_pin(certificate: crypto.X509) -> bytes:
    """SHA-256 of the certificate's SubjectPublicKeyInfo, 32 bytes; AuthenticationError for a key that OpenSSL cannot write down.

    By OpenSSL, which also checks the signature with it: other readers know fewer kinds of key, or write RSA-PSS as plain RSA.
    """
    try:
        public = crypto.dump_publickey(crypto.FILETYPE_ASN1, certificate.get_pubkey())
    except (crypto.Error, ValueError):
        raise AuthenticationError("the peer's certificate has a key of a kind that is not known here") from None
    return hashlib.sha256(public).digest()


def certificate_names(certificate: crypto.X509) -> tuple[str, ...]:
    """The DNS and IP subject alternative names of a certificate, as many as a launcher is told; none of one that is malformed.

    In pin mode anybody may present any certificate, so what cannot be a host's name is left out here.
    """
    try:
        names = certificate.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion, UnsupportedAlgorithm, ValueError):
        return ()
    found = [*names.get_values_for_type(x509.DNSName), *(str(ip) for ip in names.get_values_for_type(x509.IPAddress))]
    usable = [name for name in found if name.isprintable() and 0 < len(name.encode()) <= limits.NAME_MAX]
    return tuple(usable[: limits.CERTIFICATE_NAMES_MAX])


def server_hello_group(record: bytes) -> int | None:
    """The group that a ServerHello record selects (RFC 8446 section 4.2.8); None if it is no ServerHello.

    Read from the wire because Debian 12's pyOpenSSL cannot be asked.
    """
    body = record[RECORD_HEADER_LEN:]
    if len(body) < 4 or record[0] != _HANDSHAKE or body[0] != _SERVER_HELLO:
        return None
    at = 4 + 2 + 32  # handshake header, legacy version, random
    at += 1 + int.from_bytes(body[at : at + 1], "big")  # session id
    at += 2 + 1 + 2  # cipher suite, compression method, length of the extensions
    while at + 4 <= len(body):
        kind, length = int.from_bytes(body[at : at + 2], "big"), int.from_bytes(body[at + 2 : at + 4], "big")
        if kind == _KEY_SHARE and length >= 2:
            return int.from_bytes(body[at + 4 : at + 6], "big")
        at += 4 + length
    return None


def offered_groups() -> tuple[str, ...]:
    """The groups that OpenSSL here offers, in its order, by their registry names (of those that are used: T2).

    Read from a ClientHello (RFC 8446 section 4.1.2): Debian 12's pyOpenSSL cannot be asked.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    body = connection.bio_read(1 << 16)[RECORD_HEADER_LEN:]
    at = 4 + 2 + 32  # handshake header, legacy version, random
    at += 1 + body[at]  # session id
    at += 2 + int.from_bytes(body[at : at + 2], "big")  # cipher suites
    at += 1 + body[at] + 2  # compression methods, length of the extensions
    while at + 4 <= len(body):
        kind, length = int.from_bytes(body[at : at + 2], "big"), int.from_bytes(body[at + 2 : at + 4], "big")
        if kind == _SUPPORTED_GROUPS:
            offered = [int.from_bytes(body[place : place + 2], "big") for place in range(at + 6, at + 4 + length, 2)]
            return tuple(GROUPS[group] for group in offered if group in GROUPS)
        at += 4 + length
    return ()


class TlsChannel:
    """One TLS connection without a socket.

    Arguments: ``credentials``; ``server``: which end this is; ``expected_pin``: the only pin a client in pin mode accepts.
    """

    def __init__(self, credentials: Credentials, *, server: bool, expected_pin: bytes | None = None) -> None:
        self._server = server
        self._ca_mode = bool(credentials.authorities) and expected_pin is None
        self._expected_pin = expected_pin
        self._wrong_pin = False
        self._chain_error = ""
        self.group: int | None = None
        self.established = False
        self._connection = SSL.Connection(self._context(credentials), None)
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()

    def _context(self, credentials: Credentials) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.use_privatekey(credentials.key)
        context.use_certificate(credentials.certificate)
        for certificate in credentials.chain:
            context.add_extra_chain_cert(certificate)
        for authority in credentials.authorities:
            if (store := context.get_cert_store()) is not None:  # it never is; without one nothing would be trusted
                store.add_cert(authority)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._judge)
        if self._server:
            context.set_alpn_select_callback(_select_alpn)
        else:
            context.set_alpn_protos([ALPN])
        return context

    def _judge(self, _connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, chain_holds: int) -> bool:
        """OpenSSL's verify callback (T3)."""
        if self._ca_mode:
            if not chain_holds:
                self._chain_error = _CHAIN_ERRORS.get(error, f"verification error {error}")
            return bool(chain_holds)
        if depth == 0 and self._expected_pin is not None and certificate_pin(certificate) != self._expected_pin:
            self._wrong_pin = True
            return False
        return True

    def start(self) -> None:
        """Make the ClientHello (a client's first step)."""
        self._advance()

    def _advance(self) -> None:
        """Go on with TLS's own handshake as far as the bytes so far allow."""
        self.established = self._guard(self._handshake) or False
        if self.established:
            self._check_negotiated()

    def _handshake(self) -> bool:
        """True when TLS's own handshake is over; SSL.WantReadError before."""
        self._connection.do_handshake()
        return True

    def _guard(self, step: Callable[[], T]) -> T | None:
        """Run one OpenSSL call; None when it wants more bytes. Raises AuthenticationError or ProtocolError."""
        try:
            return step()
        except SSL.WantReadError:
            return None
        except (SSL.ZeroReturnError, SSL.SysCallError):
            raise AuthenticationError("the peer ended TLS before the key exchange was complete") from None
        except SSL.Error as error:
            raise self._error(error) from None

    def _error(self, error: SSL.Error) -> AuthenticationError | ProtocolError:
        if self._wrong_pin:
            return AuthenticationError(_WRONG_PIN, impostor=True, cause=Cause.WRONG_TLS_KEY)
        if self._chain_error:
            return AuthenticationError(
                f"TLS: the peer's certificate is not accepted here: {self._chain_error}; see [trust] on both hosts",
                impostor=True,
                cause=Cause.WRONG_CERTIFICATE,
            )
        texts = [entry[-1] for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
        text = ", ".join(str(part) for part in texts if part) or "unknown error"
        if "certificate" in text or "unknown ca" in text:  # the latter: the peer's alert, RFC 8446 section 6.2
            return AuthenticationError(f"TLS: {text}; one side does not accept the other's certificate", cause=Cause.WRONG_CERTIFICATE)
        if "alert internal error" in text:  # what OpenSSL sends where a verify callback says no: it names no certificate
            return ProtocolError(f"TLS: {text}; the peer ended it: it does not accept this host's key or certificate, see [trust] on both hosts")
        return ProtocolError(f"TLS: {text}; the peer does not speak TLS 1.3 as xensecure does")

    def feed(self, record: bytes) -> bytes:
        """Give OpenSSL one whole record; returns the plaintext that came of it, if any."""
        if not self._server and self.group is None:
            self._note_group(record)
        self._connection.bio_write(record)
        if not self.established:
            self._advance()
        return self._read() if self.established else b""

    def _read(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            piece = self._guard(lambda: self._connection.recv(limits.TLS_RECORD_MAX))
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)

    def _check_negotiated(self) -> None:
        if self._connection.get_alpn_proto_negotiated() != ALPN:
            if self._server:
                raise ProtocolError("TLS: the peer did not offer xensecure/1: it is no xensecure")
            raise ProtocolError("TLS: the peer did not select xensecure/1: another service answers on this port, or a man in the middle")
        if self.group not in GROUPS:
            raise ProtocolError(f"TLS: the key-exchange group {self.group} was negotiated, which is not one of {', '.join(GROUPS.values())}")
        if self._expected_pin is not None and certificate_pin(self.peer_certificate()) != self._expected_pin:
            # Not reached unless OpenSSL came here without having asked _judge about the peer's own certificate.
            raise AuthenticationError(_WRONG_PIN, impostor=True, cause=Cause.WRONG_TLS_KEY)

    def send(self, plaintext: bytes) -> None:
        """Queue plaintext; ``drain`` gives the records."""
        self._guard(lambda: self._connection.send(plaintext))

    def drain(self) -> bytes:
        """The bytes that are ready for the network."""
        pieces: list[bytes] = []
        while True:
            try:
                pieces.append(self._connection.bio_read(1 << 16))
            except SSL.WantReadError:
                break
        data = b"".join(pieces)
        if self._server and self.group is None:
            self._note_group(data)
        return data

    def _note_group(self, data: bytes) -> None:
        length = RECORD_HEADER_LEN + int.from_bytes(data[3:5], "big")
        self.group = server_hello_group(data[:length])

    @property
    def group_name(self) -> str:
        """The negotiated group's registry name."""
        return GROUPS.get(self.group or 0, "none")

    def peer_certificate(self) -> crypto.X509:
        """The certificate the peer proved to own; only once established."""
        certificate = self._connection.get_peer_certificate()
        if certificate is None:
            raise AuthenticationError("the peer presented no certificate")
        return certificate

    def exporter(self) -> bytes:
        """EKM of C3, 64 bytes; only once established."""
        return self._connection.export_keying_material(EXPORTER_LABEL, limits.EXPORTER_LEN)


def record_length(buffered: bytes) -> int | None:
    """The length of the TLS record at the front of the buffer, header included; None if its header is not whole yet."""
    if len(buffered) < RECORD_HEADER_LEN:
        return None
    length = RECORD_HEADER_LEN + int.from_bytes(buffered[3:5], "big")
    # The version is not looked at: RFC 8446 section 5.1 says that it "MUST be ignored for all purposes".
    if buffered[0] not in _CONTENT_TYPES or length > limits.TLS_RECORD_MAX:
        raise ProtocolError("no TLS record as of RFC 8446; another service answers on this port, or a man in the middle")
    return length


def _select_alpn(_connection: SSL.Connection, offered: list[bytes]):  # type: ignore[no-untyped-def]  # pyOpenSSL 23 has no name for the type
    return ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS
