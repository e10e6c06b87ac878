"""A man in the middle with certificates that both hosts trust, against real processes and the real xl: with the link key, and with it known to him.

The first test is the control: it shows that the attack is a real one. Nothing is switched off in the product for it. Its two hosts hold a link
key that he knows as well (32 zero bytes, written into both peer files by the test), which is what the link-key step is worth when it
contributes nothing; TLS with certificates from a CA, the rest of the protocol and both hosts are as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509

from tests.inmemory import Issued, issue
from tests.mitm import Loot, ManInTheMiddle
from tests.pair import Host, Pair, wait_for
from tests.xl.hosts import Outcome, running_copies
from tests.xl.records import PAGE_SIZE, LibxcType, parse
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link.config import load_config
from xensecure.link.peers import LinkKey, Peers

PLANT, INSTEAD = b"pay to Alice, 1000 EUR", b"pay to Mallory, 1M EUR"
PLANTS = 24  # one at least lies whole within a frame
KNOWN_KEY = b"\0" * 32


@dataclass
class Site:
    """Two hosts in CA mode, whose CA file holds a rogue root beside the site's own, and that root."""

    pair: Pair
    rogue: Issued
    folder: Path
    roots: Path


def names_of(name: str) -> tuple[x509.GeneralName, ...]:
    """What a certificate for a host of these tests carries."""
    return (x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


def trust_table(folder: Path, authority: Issued, rogue: Issued, name: str) -> str:
    """The [trust] table of a host whose certificate the site's CA has made, and whose CA file trusts the rogue root as well."""
    key, certificate = issue(name, authority, names=names_of(name)).write(folder, name)
    roots = folder / "roots.pem"
    roots.write_bytes(authority.certificate_pem + rogue.certificate_pem)
    return f'[trust]\nmode = "ca"\nca = "{roots}"\ncertificate = "{certificate}"\nkey = "{key}"\n'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Two hosts in CA mode that have met."""
    authority, rogue = issue("site CA", ca=True), issue("rogue CA", ca=True)
    with tempfile.TemporaryDirectory(prefix="xensecure-test-") as public:
        folder = Path(public)
        folder.chmod(0o755)  # pytest's own folders are private, and the receivers' user reads the CA file
        extras = [trust_table(folder, authority, rogue, name) for name in ("hv1", "hv2")]
        with Pair(source_extra=extras[0], destination_extra=extras[1]) as pair:
            yield Site(pair=pair, rogue=rogue, folder=tmp_path, roots=folder / "roots.pem")


def give_known_key(host: Host, peer: str) -> None:
    """Replace the link key in a peer file by the one that the attacker knows."""
    peers = Peers(load_config(str(host.config)))
    with peers.locked():
        known = peers.get(peer)
        assert known is not None
        peers.put(replace(known, keys=(LinkKey(generation=1, key=bytes(bytearray(KNOWN_KEY))),)))


def planted_stream(path: Path) -> Path:
    """A domain with the planted bytes in some of its pages."""
    make_stream(path, StreamSpec(mib=4, seed=3, zero_share=0.0))
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        pages = [record for record in parse(file) if record.kind is LibxcType.PAGE_DATA]
    for number in range(PLANTS):
        record = pages[number % len(pages)]
        end = record.offset + record.size - (number // len(pages)) * PAGE_SIZE
        data[end - 1000 : end - 1000 + len(PLANT)] = PLANT
    path.write_bytes(data)
    return path


def attacked_migration(pair: Pair, folder: Path, near: Issued, far: Issued, *, link_key: bytes | None, ca_file: str) -> tuple[Outcome, Loot, str]:
    """A migration through the man in the middle: xl's outcome, what he got, and the digest of what was sent."""
    stream = planted_stream(folder / "stream")
    pair.source.xen.create_domain("web1", stream)
    man = ManInTheMiddle(
        pair.destination.port,
        to_source=near.credentials(ca_file),
        to_destination=far.credentials(ca_file),
        link_key=link_key,
        plant=PLANT,
        instead=INSTEAD,
    )
    outcome = pair.migrate("web1", transport=f"-p {man.port}").wait(30)
    return outcome, man.close(), hashlib.sha256(stream.read_bytes()).hexdigest()


def attacked_site(site: Site, *, link_key: bytes | None) -> tuple[Outcome, Loot, str]:
    """The same with certificates of the rogue root for both names."""
    near, far = (issue(name, site.rogue, names=names_of(name)) for name in ("hv2", "hv1"))
    return attacked_migration(site.pair, site.folder, near, far, link_key=link_key, ca_file=str(site.roots))


def assert_nothing_happened(pair: Pair, outcome: Outcome, loot: Loot) -> None:
    """No byte read, no xl started, the guest runs on at the source, xl and xensecure say so by their status."""
    assert outcome.status != 0
    assert loot.read == 0
    assert loot.changed == 0
    assert pair.destination.xen.calls() == []
    assert "sends a domain" not in pair.destination.log("xensecure-launcher")
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.source.xen]
    assert pair.source.xen.domains() == {"web1": "running"}
    assert "Traceback" not in outcome.stderr + pair.destination.log("xensecured") + pair.destination.log("xensecure-launcher")


def test_rogue_root_succeeds_where_the_link_key_contributes_nothing(site: Site) -> None:
    """Control: with a link key that he knows, he reads the whole domain, changes it, and the migration reports success with another digest."""
    give_known_key(site.pair.source, "hv2")
    give_known_key(site.pair.destination, "hv1")
    outcome, loot, digest = attacked_site(site, link_key=KNOWN_KEY)
    assert outcome.status == 0, outcome.stderr + loot.end
    assert loot.read > 4 << 20
    assert loot.changed > 0
    assert running_copies("web1", site.pair.source.xen, site.pair.destination.xen) == [site.pair.destination.xen]
    assert site.pair.destination.xen.digest("web1") != digest


@pytest.mark.parametrize("guess", [None, KNOWN_KEY], ids=["proofs passed on", "key guessed"])
def test_rogue_root_fails_against_the_link_key(site: Site, guess: bytes | None) -> None:
    """The same man with the same certificates gets nothing: no byte read, no xl started, the guest goes on, one SECURITY line, a status."""
    outcome, loot, _ = attacked_site(site, link_key=guess)
    assert loot.source_hello != b""  # TLS itself did not stop him
    assert_nothing_happened(site.pair, outcome, loot)
    log = site.pair.destination.log("xensecure-launcher")
    assert log.count("SECURITY") == 1, log
    assert "wrong proof: another link key, or a man in the middle" in log
    assert "does not accept our proof" in outcome.stderr


def test_stranger_is_named_by_the_receiver(site: Site, tmp_path: Path) -> None:
    """By CA, whoever calls with a certificate of nobody's is refused inside TLS, with a SECURITY line that has his address."""
    key, certificate = issue("hv1", names=names_of("hv1")).write(tmp_path, "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["xensecure/1"])
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", site.pair.destination.port), 10) as sock,
        context.wrap_socket(sock) as tls,
    ):
        tls.recv(1)
    said = "xensecured: SECURITY: 127.0.0.1: TLS: the peer's certificate is not accepted here"
    wait_for(lambda: said in site.pair.destination.log("xensecured"), "the line")


def test_pins_stop_him_before_anything_is_said(tmp_path: Path) -> None:
    """In pin mode the source refuses his key inside TLS, whatever certificate and link key he has: not even a hello leaves it."""
    with Pair() as pair:
        give_known_key(pair.source, "hv2")
        give_known_key(pair.destination, "hv1")
        outcome, loot, _ = attacked_migration(pair, tmp_path, issue("hv2"), issue("hv1"), link_key=KNOWN_KEY, ca_file="")
        assert loot.source_hello == b""
        assert_nothing_happened(pair, outcome, loot)
        assert "SECURITY: 127.0.0.1: whoever answers has another key than the peer we know; this may be a man in the middle" in outcome.stderr
        assert "SECURITY" not in pair.destination.log("xensecure-launcher")
