"""What ``doctor`` makes of two hosts, without the hosts: the pure parts, and its table of findings."""

from __future__ import annotations

import ast
import datetime
import re
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

from tests.test_docs import code, rows, section, text
from xensecure import __version__
from xensecure.cli import findings
from xensecure.cli.doctor_compare import compare_hosts, compare_options, judge_domain_there, missing_features
from xensecure.cli.doctor_local import examine_certificate
from xensecure.cli.doctor_path import Way, examine_buffers, examine_way
from xensecure.cli.findings import EXIT_STATUS, KINDS, Examination, Finding, Severity
from xensecure.link.config import HostOptions
from xensecure.link.connection import Target
from xensecure.link.xl import XenInfo
from xensecure.proto.errors import StateError, XensecureError
from xensecure.proto.hostreport import HostReport

MIB = 1 << 20
NOW = 1_800_000_000
CAPS = "bfebfbff:77faf3ff"
HERE = XenInfo(version="4.17.5", memory_total=0, memory_free=0, cpus=8, hw_caps=CAPS, virt_caps="pv hvm hap")
REPORT = HostReport(
    xensecure=__version__,
    clock=NOW,
    xen="4.17.3",
    memory_total=1024 * MIB,
    memory_free=512 * MIB,
    cpu_vendor="GenuineIntel",
    cpu_features=CAPS,
    virtualization="pv hvm hap shadow",
    sessions_max=1,
    lanes=8,
    zstd=True,
    cipher="libcrypto",
)


def hosts(report: HostReport, here: XenInfo | None = HERE, vendor: str = "GenuineIntel", now: float = NOW) -> dict[str, str]:
    """What is found between two hosts."""
    return {finding.kind: finding.text for finding in compare_hosts("hv2", report, here, vendor, now)}


def test_equal_hosts() -> None:
    """Nothing; nor where either Xen says nothing, which is a finding elsewhere."""
    assert hosts(REPORT) == {}
    assert hosts(REPORT, here=None) == {}
    assert hosts(replace(REPORT, xen="", cpu_features="", virtualization="")) == {}


@pytest.mark.parametrize(("seconds", "found"), [(0, False), (30, False), (-30, False), (31, True), (-31, True), (-86400, True)])
def test_clocks(seconds: int, found: bool) -> None:
    """Two clocks may be 30 s apart, in either direction."""
    said = hosts(replace(REPORT, clock=NOW + seconds)).get("clock", "")
    assert bool(said) is found
    assert not found or f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} this host's" in said


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        ("4.17.5", "4.17.3", False),
        ("4.17.5", "4.18.0", False),
        ("4.17.5", "4.16.9", True),
        ("4.9.1", "4.17.0", False),
        ("5.0", "4.20", True),
        ("4.17-unstable", "4.17.0", False),
    ],
)
def test_xen_releases(here: str, there: str, found: bool) -> None:
    """Minor numbers are numbers; what stands behind them does not count."""
    assert ("xen" in hosts(replace(REPORT, xen=there), replace(HERE, version=here))) is found


@pytest.mark.parametrize(
    ("here", "there", "missing"),
    [
        ("ffffffff", "ffffffff", ""),
        ("0000000f", "ffffffff", ""),
        ("0000000f:00000001", "0000000c:00000001", "00000003:00000000"),
        ("00000001:00000001", "00000001", "00000000:00000001"),
        ("00000001", "00000001:ffffffff", ""),
        ("", "", ""),
        ("00000001", "what a peer may write: zz", "00000001"),
    ],
)
def test_missing_features(here: str, there: str, missing: str) -> None:
    """What the first has and the second has not, word by word; no text of a peer's is more than that."""
    assert missing_features(here, there) == missing


def test_vendors() -> None:
    """Another vendor's CPU is an error, an unknown one is none."""
    assert "AuthenticAMD's" in hosts(replace(REPORT, cpu_vendor="AuthenticAMD"))["cpu"]
    assert hosts(replace(REPORT, cpu_vendor="")) == {}
    assert hosts(REPORT, vendor="") == {}


def options(report: HostReport, chosen: HostOptions, *, cipher: str = "libcrypto", zstd: bool = True) -> dict[str, str]:
    """What is found between this host's options and a destination."""
    return {finding.kind: finding.text for finding in compare_options("hv2", report, chosen, cipher=cipher, zstd=zstd)}


def test_options() -> None:
    """Ciphers that differ, compression that one of the two cannot do, lanes that are too many."""
    asked = HostOptions(compress="zstd", lanes=8)
    assert options(REPORT, asked) == {}
    assert options(REPORT, asked, cipher="ipsec-mb").keys() == {"cipher-there"}
    assert "hv2 has no libzstd" in options(replace(REPORT, zstd=False), asked)["compress"]
    assert "this host has no libzstd" in options(REPORT, asked, zstd=False)["compress"]
    assert options(replace(REPORT, zstd=False), HostOptions()) == {}
    assert "takes 2" in options(replace(REPORT, lanes=2), asked)["lanes"]


def test_domains() -> None:
    """Memory (519 MiB with what Xen needs beside) to the byte, a kind that Xen there has not, and a refusal in the destination's words."""
    configuration = {"c_info": {"type": "hvm"}, "b_info": {"target_memkb": 512 << 10}}
    assert list(judge_domain_there("web1", configuration, "hv2", replace(REPORT, memory_free=519 * MIB), HERE)) == []
    less = replace(REPORT, memory_free=519 * MIB - 1, virtualization="pv", refusal="disk /dev/sda is not allowed; see [policy] disks there")
    found = {finding.kind: finding for finding in judge_domain_there("web1", configuration, "hv2", less, HERE)}
    assert found.keys() == {"memory", "domain-type", "refused"}
    assert found["refused"].text == "hv2 would refuse web1: disk /dev/sda is not allowed"
    assert found["refused"].remedy == "see [policy] disks there"


WAY = Way("192.0.2.2", "192.0.2.1", mss=1448, path_mtu=1500, rtt=0.0002, interface="eth0", interface_mtu=1500, speed=1_250_000_000)
TARGET = Target(addresses=("192.0.2.2",), port=8003)


@pytest.mark.parametrize(
    ("mtu", "path_mtu", "mss", "found"),
    [
        (1500, 1500, 1448, False),
        (1500, 1420, 1368, False),  # a tunnel on a network that nobody has set for more
        (9000, 9000, 8948, False),
        (9000, 9000, 1448, True),  # the other host has said less
        (9000, 1500, 1448, True),
        (65536, 65535, 32741, False),  # loopback
        (0, 1500, 1448, False),  # no pyroute2
    ],
)
def test_path_mtu(mtu: int, path_mtu: int, mss: int, found: bool) -> None:
    """A warning where the interface is set for more than the path carries."""
    said = Examination("hv1")
    examine_way(said, replace(WAY, interface_mtu=mtu, path_mtu=path_mtu, mss=mss), 0.01, "X25519MLKEM768", TARGET)
    assert said.has("path-mtu") is found
    assert not said.has("group", "address")


@pytest.mark.parametrize(
    ("through", "migration", "found"), [("eth0", "", False), ("eth0", "eth0", False), ("eth0", "mig0", True), ("", "mig0", False)]
)
def test_migration_interface(through: str, migration: str, found: bool) -> None:
    """A warning where packets leave by another interface than the one that is named; without pyroute2 nobody knows."""
    said = Examination("hv1")
    examine_way(said, replace(WAY, interface=through), 0.01, "X25519MLKEM768", TARGET, migration)
    assert said.has("interface") is found


@pytest.mark.parametrize(
    ("rtt", "speed", "window", "buffer", "words"),
    [
        (0.0001, 1_250_000_000, 64 * MIB, 4 * MIB, ""),
        (0.01, 1_250_000_000, 64 * MIB, 4 * MIB, "the third value of sysctl net.ipv4.tcp_wmem"),
        (0.01, 1_250_000_000, MIB, 4 * MIB, "[receive] window there"),
        (0.01, 0, MIB, MIB, ""),
        (0.0, 1_250_000_000, MIB, MIB, ""),
        (0.01, 1_250_000_000, 64 * MIB, 0, ""),
    ],
)
def test_buffers(rtt: float, speed: int, window: int, buffer: int, words: str) -> None:
    """Whichever holds less is named; without the line's speed or the round trip nothing is."""
    said = Examination("hv1")
    examine_buffers(said, replace(WAY, rtt=rtt, speed=speed), window, buffer)
    assert [words in finding.remedy for finding in said.findings] == ([True] if words else [])


def _certificate(begins: datetime.datetime, ends: datetime.datetime) -> crypto.X509:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hv1")])
    return crypto.X509.from_cryptography(x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends).sign(key, None))


@pytest.mark.parametrize(
    ("day", "kinds"),
    [(-1, ["certificate"]), (0, []), (69, []), (71, ["certificate-expires"]), (99, ["certificate-expires"]), (100, ["certificate"])],
)
def test_certificates(day: int, kinds: list[str]) -> None:
    """A certificate of 100 days: not yet valid, valid, for less than 30 days more, expired."""
    begins = datetime.datetime(2026, 1, 1)
    said = Examination("hv1")
    now = begins.replace(tzinfo=datetime.UTC).timestamp() + day * 86400
    examine_certificate(said, _certificate(begins, begins + datetime.timedelta(days=100)), now)
    assert [finding.kind for finding in said.findings] == kinds


# ---- the collection


def test_status_is_of_the_worst() -> None:
    """0, 1 and 4, whatever the order."""
    said = Examination("hv1")
    assert said.status == 0
    for kind, status in (("group", 0), ("key-age", 1), ("group", 1), ("connect", 4), ("key-age", 4)):
        said.find(kind, "what", "how")
        assert said.status == status
    assert sorted(EXIT_STATUS.values()) == [0, 1, StateError.exit_code]


def test_errors_become_findings() -> None:
    """What stands behind an error's semicolon is its remedy; one that has none gets the check's."""
    said = Examination("hv1")
    for words in ("no; do this", "no", "no; do this; and that"):
        with said.check("state", "do that"):
            raise XensecureError(words)
    assert [(finding.text, finding.remedy) for finding in said.findings] == [("no", "do this"), ("no", "do that"), ("no", "do this; and that")]
    assert Finding("state", "no", "do this").line() == "no; do this"
    assert Finding("key-age", "no", "do this").line() == "warning: no; do this"


def _kinds_in_code() -> set[str]:
    """The first argument of every Finding(), find() and check() of the package."""
    found = set()
    for path in Path(findings.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if name in ("Finding", "find", "check") and isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                found |= set(re.findall(r"^[a-z-]+$", str(node.args[0].value)))
    return found


def test_table_of_findings() -> None:
    """The code makes every kind that it knows, and the operations page explains each with its severity."""
    assert _kinds_in_code() == set(KINDS)
    table = rows(section(text("docs/operations.md"), "## Checking a host"))
    listed = {kind: severity for cell, severity, *_ in table for kind in code(cell) if severity in ("note", "warning", "error")}
    assert listed == {kind: severity.word for kind, severity in KINDS.items()}
    statuses = {int(cell): words for cell, words, *_ in table if cell.isdecimal()}
    assert statuses.keys() == set(EXIT_STATUS.values())
    assert statuses[EXIT_STATUS[Severity.WARNING]].startswith("warnings")
