"""This host's TLS key and certificate."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

from ..proto.errors import StateError
from ..proto.tls import Credentials
from . import store
from .config import Config

_INIT_FIRST = "run 'xensecurectl init' as root"
_KEY = "identity.key"
_CERTIFICATE = "identity.crt"
# In pin mode nobody looks at the dates; these are the widest that RFC 5280 section 4.1.2.5 can write.
_NOT_BEFORE = datetime.datetime(2000, 1, 1)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59)


def make_identity(config: Config) -> bool:
    """Make the host's key and self-signed certificate unless they are there; whether they had to be made."""
    store.make_directory(config.state)
    for folder in ("peers", "invitations"):
        store.make_directory(config.state / folder)
    with store.locked(config.state):
        made = not (config.state / _KEY).exists()
        if (config.state / _CERTIFICATE).exists():
            if made:
                lost = config.state / _KEY
                raise StateError(
                    f"{lost}: lost, its certificate is not; restore it, or remove {_CERTIFICATE}, init again and pair with every peer anew"
                )
            return False
        # A key that is there stays: the pin is the key's, and any certificate of it serves.
        key = ed25519.Ed25519PrivateKey.generate() if made else _own_key(config.state / _KEY)
        certificate = _certificate(config.name, key)
        # The key first: a certificate without it would look like a key that was lost.
        if made:
            store.write_secret(config.state / _KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        store.write_secret(config.state / _CERTIFICATE, certificate.public_bytes(Encoding.PEM))
    return made


def _own_key(path: Path) -> ed25519.Ed25519PrivateKey:
    try:
        key = load_pem_private_key(store.read_secret(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise StateError(f"{path}: not a key that 'xensecurectl init' has made; restore it, or move it away and pair anew")
    return key


def _certificate(name: str, key: ed25519.Ed25519PrivateKey) -> x509.Certificate:
    # RFC 5280 appendix A.1 bounds a common name at 64 characters; the pin, not the name, is what peers compare.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), _NOT_BEFORE, _NOT_AFTER)
    return builder.sign(key, None)


def load_credentials(config: Config) -> Credentials:
    """The host's key and certificate: its own (pin mode) or the site's (CA mode); systemd's LoadCredential= comes first."""
    forbidden = 0o077
    if config.trust == "ca":
        stem, key_path, certificate_path = "trust", Path(config.key), Path(config.certificate)
    else:
        stem, key_path, certificate_path = "identity", config.state / _KEY, config.state / _CERTIFICATE
    given = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))
    if (given / f"{stem}.key").exists():
        key_path, certificate_path = given / f"{stem}.key", given / f"{stem}.crt"
        # systemd lets the unit's user in by an ACL, whose mask shows as the group's bits; the folder is that user's alone.
        forbidden = 0o037
    try:
        key = store.read_secret(key_path, forbidden)
    except FileNotFoundError:
        raise StateError(f"{key_path}: no such file; {'see [trust] key' if config.trust == 'ca' else _INIT_FIRST}") from None
    first, *chain = load_certificates(certificate_path, "see [trust] certificate" if config.trust == "ca" else _INIT_FIRST)
    authorities = load_certificates(Path(config.ca), "see [trust] ca") if config.trust == "ca" else ()
    return Credentials(key=_load_key(key, key_path, first), certificate=first, chain=tuple(chain), authorities=authorities)


def load_certificates(path: Path, remedy: str) -> tuple[crypto.X509, ...]:
    """The certificates in a PEM file, at least one; StateError with ``remedy`` if there are none."""
    begin = b"-----BEGIN CERTIFICATE-----"
    try:
        blocks = [begin + block for block in path.read_bytes().split(begin)[1:]]
        certificates = tuple(crypto.load_certificate(crypto.FILETYPE_PEM, block) for block in blocks)
    except FileNotFoundError:
        raise StateError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from None
    except (crypto.Error, ValueError):
        certificates = ()
    if not certificates:
        raise StateError(f"{path}: no certificate in PEM form; restore or remove it, and {remedy}")
    return certificates


def _load_key(key: bytes, path: Path, certificate: crypto.X509) -> crypto.PKey:
    try:
        private = crypto.load_privatekey(crypto.FILETYPE_PEM, key)
    except (crypto.Error, ValueError, TypeError):
        raise StateError(f"{path}: no private key in PEM form without a passphrase; restore it, or remove it and pair anew") from None
    if crypto.dump_publickey(crypto.FILETYPE_ASN1, private) != crypto.dump_publickey(crypto.FILETYPE_ASN1, certificate.get_pubkey()):
        raise StateError(f"{path}: not the key of the certificate beside it; restore the pair")
    return private
