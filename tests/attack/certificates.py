"""Who is trusted on the segment: the site's CA, a rogue root that has got into both hosts' trust stores, and the certificates made with either.

RSA keys, for what the tools and the older key exchanges of TLS can do with them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.attack.segment import DESTINATION, SOURCE, Family, address
from tests.inmemory import Issued, issue

_RSA_BITS = 2048


@dataclass(frozen=True)
class Pem:
    """A key and a certificate, each in a file, and both in one, as socat wants them."""

    key: Path
    certificate: Path
    both: Path


class Certificates:
    """Everything in one folder: NAME.key, NAME.crt, NAME.pem (both), and roots.pem, what both hosts trust."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        folder.chmod(0o755)  # receivers that have dropped root read the roots
        site, rogue = (issue(f"{name} CA", ca=True, key=_new_key()) for name in ("site", "rogue"))
        self.rogue_ca = self._write("rogue-ca", rogue)
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(site.certificate_pem + rogue.certificate_pem)
        for host in (SOURCE, DESTINATION):
            self._write(f"{host}-site", issue(host, site, names=_names(host), key=_new_key()))
            self._write(f"{host}-rogue", issue(host, rogue, names=_names(host), key=_new_key()))
            self._write(f"{host}-own", issue(host, names=_names(host), key=_new_key()))  # signed by nobody

    def get(self, host: str, kind: str) -> Pem:
        """A host's certificate: of the ``site``, of the ``rogue`` root, or the attacker's ``own``, signed by nobody."""
        return self._pem(f"{host}-{kind}")

    def _pem(self, stem: str) -> Pem:
        return Pem(*(self.folder / f"{stem}.{ending}" for ending in ("key", "crt", "pem")))

    def _write(self, stem: str, issued: Issued) -> Pem:
        issued.write(self.folder, stem)
        pem = self._pem(stem)
        pem.both.write_bytes(issued.key_pem + issued.certificate_pem)
        pem.both.chmod(0o600)
        return pem


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, _RSA_BITS)


def _names(host: str) -> tuple[x509.GeneralName, ...]:
    return (x509.DNSName(host), *(x509.IPAddress(ipaddress.ip_address(address(host, family))) for family in Family))
