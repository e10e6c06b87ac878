"""``xensecurectl doctor HOST`` on two real hosts: a pair that is well, and each finding, provoked."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.inmemory import issue
from tests.pair import Host, Pair, wait_for
from tests.xl.hosts import Fault, Point
from xensecure.link.config import load_config
from xensecure.link.engine import compiled_backends, find_backend
from xensecure.link.peers import Peers
from xensecure.proto import limits
from xensecure.proto.tls import offered_groups

YEAR = 365 * 86400


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts for all tests of this file; the destination takes one migration at a time, over three connections."""
    with Pair(destination_extra="sessions = 1\nlanes = 3\n") as made:
        yield made


def examine(host: Host, *arguments: str, status: int, config: str = "") -> dict[str, Any]:
    """What doctor says as JSON; its findings' kinds are the keys of "kinds", their texts and remedies the values."""
    options = ("--config", config) if config else ()
    done = host.ctl(*options, "doctor", *arguments, "--json", status=status)
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.stderr == ""
    said["kinds"] = {finding["kind"]: f"{finding['text']}; {finding['remedy']}" for finding in said["findings"]}
    assert all(finding["text"] and finding["remedy"] for finding in said["findings"])
    return said


def changed(host: Host, folder: Path, text: str) -> str:
    """Another configuration for a host, with more at its end; returns its path."""
    path = folder / "other.toml"
    path.write_text(host.config.read_text() + text)
    path.chmod(0o644)
    return str(path)


# What depends on this machine's OpenSSL and is no fault of a pair.
NOTES = set() if "X25519MLKEM768" in offered_groups() else {"group"}


def test_a_pair_that_is_well(pair: Pair) -> None:
    """Status 0, a line for everything, and nothing but notes on stderr."""
    done = pair.source.ctl("doctor", "hv2", "--domain", "web1")
    assert all(line.startswith("xensecurectl: note: ") for line in done.stderr.splitlines())
    for words in (
        "identity: hv1, pin ",
        "cipher speed: ",
        "Xen: 4.17.5, 8 CPUs, 8192 of 16384 MiB free\n",
        "domain: web1 needs 6 MiB\n",
        "link key with hv2: generation 1, 0 d old\n",
        "route: 127.0.0.1 to 127.0.0.1 through lo\n",
        "path MTU: ",
        "key exchange: ",
        "hv2: xensecure ",
        ", 0 of 1 migrations arriving, cipher ",
    ):
        assert words in done.stdout, words
    assert "launcher" not in done.stdout
    assert pair.source.journal() == pair.destination.journal() == []
    assert "SECURITY" not in pair.destination.log("xensecured") + pair.destination.log("xensecure-launcher")


def test_json(pair: Pair) -> None:
    """The same for programs, under the names that the operations page has."""
    said = examine(pair.source, "hv2", "--domain", "web1", status=0)
    assert {name: said[name] for name in ("format", "host", "peer", "domain", "result")} == {
        "format": 1,
        "host": "hv1",
        "peer": "hv2",
        "domain": "web1",
        "result": "well",
    }
    assert abs(said["time"] - time.time()) < 30
    assert said["kinds"].keys() == NOTES
    facts = {fact["kind"]: fact["data"] for fact in said["facts"]}
    assert facts["there"]["memory_free"] == 8192 << 20
    assert facts["there"]["sessions_max"] == 1
    assert facts["route"]["interface"] == "lo"
    assert facts["route"]["path_mtu"] > 1500
    assert facts["route"]["rtt"] < 1
    assert facts["cipher-speed"] > 10_000_000
    assert facts["xen"]["version"] == "4.17.5"
    assert facts["key"]["generation"] == 1


def test_names_and_addresses(pair: Pair) -> None:
    """HOST may be an address, as for a migration; --domain without HOST, and a name that xl would take for an option, are slips."""
    assert examine(pair.source, "127.0.0.1", status=0)["peer"] == "hv2"
    assert "name HOST too" in pair.source.ctl("doctor", "--domain", "web1", status=2).stderr
    assert "is no domain's name" in pair.source.ctl("doctor", "hv2", "--domain=-l", status=2).stderr


def test_strangers(pair: Pair) -> None:
    """A host that this one has not met: what is known of this host is said all the same."""
    said = examine(pair.source, "hv9", status=4)
    assert "no link key for 'hv9'; run 'xensecurectl invite' there" in said["kinds"]["peer"]
    assert said["peer"] is None
    assert any(fact["kind"] == "identity" for fact in said["facts"])


# ---- this host


@contextmanager
def mode(path: Path, other: int) -> Iterator[None]:
    """Another mode for a while."""
    before = path.stat().st_mode & 0o7777
    path.chmod(other)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.mark.parametrize(
    ("where", "other", "kind", "words"),
    [
        ("state", 0o755, "state", "others can enter this folder (mode 0755); chmod 700 it"),
        ("state/identity.key", 0o640, "identity", "others can read this secret (mode 0640)"),
        ("state/peers/hv2.peer", 0o644, "state", "others can read this secret (mode 0644)"),
    ],
)
def test_modes(pair: Pair, where: str, other: int, kind: str, words: str) -> None:
    """Secrets that others can read: one error, and nothing further is tried with them."""
    with mode(pair.source.folder / where, other):
        said = examine(pair.source, "hv2", status=4)
    assert words in said["kinds"][kind]
    assert not {"peer", "connect"} & said["kinds"].keys()


def test_hooks(pair: Pair) -> None:
    """A pre-send hook that others can change would refuse every migration from here; one of pre-receive is not looked at."""
    pair.source.add_hook("pre-receive", "10-open", "#!/bin/sh\n").chmod(0o777)
    assert examine(pair.source, "hv2", status=0)["kinds"].keys() == NOTES
    pair.source.add_hook("pre-send", "10-open", "#!/bin/sh\n").chmod(0o777)
    said = examine(pair.source, "hv2", status=4)
    assert "others can write to it" in said["kinds"]["hooks"]


@contextmanager
def peer_file(host: Host, change: Callable[[Any], Any]) -> Iterator[None]:
    """The peer hv2 of a host changed for a while."""
    peers = Peers(load_config(str(host.config)))
    kept = (host.state / "peers/hv2.peer").read_bytes()
    with peers.locked():
        peers.put(change(peers.get("hv2")))
    try:
        yield
    finally:
        (host.state / "peers/hv2.peer").write_bytes(kept)


def test_key_age(pair: Pair) -> None:
    """A link key of more than a year, by its pairing or its last rotation, is a warning; a rotation mends it."""
    old = int(time.time()) - limits.LINK_KEY_AGE_DAYS * 86400 - 60
    with peer_file(pair.source, lambda peer: replace(peer, since=old)):
        said = examine(pair.source, "hv2", status=1)
        assert "the link key with hv2 is 365 days old; xensecurectl rotate hv2" in said["kinds"]["key-age"]
        assert said["result"] == "warnings"
        assert "warning: the link key with hv2 is 365 days old" in pair.source.ctl("doctor", status=4).stderr
    with peer_file(pair.source, lambda peer: replace(peer, since=old, rotated=old + YEAR)):
        assert examine(pair.source, "hv2", status=0)["kinds"].keys() == NOTES


def test_key_renewal(pair: Pair) -> None:
    """A rotation that was cut short is a note, for both keys work."""
    with peer_file(pair.source, lambda peer: peer.with_next_key(bytes(range(32)), int(time.time()))):
        said = examine(pair.source, "hv2", status=0)
    assert "xensecurectl rotate hv2 finishes it" in said["kinds"]["key-renewal"]


def test_xl_here(pair: Pair, tmp_path: Path) -> None:
    """An xl here that cannot be run: neither Xen nor the domain are known, and the destination is asked all the same."""
    text = pair.source.config.read_text().replace(f'xl = "{pair.source.xl}"', 'xl = "/nonexistent/xl"')
    config = tmp_path / "other.toml"
    config.write_text(text)
    config.chmod(0o644)
    said = examine(pair.source, "hv2", "--domain", "web1", status=4, config=str(config))
    assert "'xl info' cannot be run (/nonexistent/xl: No such file or directory); set [receive] xl" in said["kinds"]["xl"]
    assert "'xl list' cannot be run" in said["kinds"]["domain"]
    assert any(fact["kind"] == "there" for fact in said["facts"])


def test_cipher(pair: Pair, tmp_path: Path) -> None:
    """A cipher that is not to be had is an error; another one than the destination's a note."""
    said = examine(pair.source, "hv2", status=0, config=changed(pair.source, tmp_path, '[engine]\ncipher = "libcrypto"\n'))
    assert said["kinds"].keys() == NOTES | ({"cipher-there"} if find_backend() != "libcrypto" else set())
    if "ipsec-mb" not in compiled_backends():
        said = examine(pair.source, "hv2", status=4, config=changed(pair.source, tmp_path, '[engine]\ncipher = "ipsec-mb"\n'))
        assert "this build of xensecure does not have it" in said["kinds"]["cipher"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").read_text().count(" aes"), reason="this CPU has no AES instructions that could be hidden")
def test_slow_cipher(pair: Pair, tmp_path: Path) -> None:
    """A CPU without AES instructions (OpenSSL is told so) encrypts too slowly for a fast line: a warning."""
    config = changed(pair.source, tmp_path, '[engine]\ncipher = "libcrypto"\n')
    environment = {**pair.source.environment(), "OPENSSL_ia32cap": "~0x200000200000000:~0"}
    words = [sys.executable, "-c", "from xensecure.cli.ctl import main; raise SystemExit(main())", "--config", config, "doctor", "hv2", "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=False)
    kinds = {finding["kind"]: finding["text"] for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert "GB/s, less than a line of 10 Gbit/s carries" in kinds["cipher-slow"]


def test_certificate_that_is_about_to_end(tmp_path: Path) -> None:
    """CA mode: the source's certificate is good for ten days more."""
    authority = issue("site CA", ca=True)
    soon = datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0) + datetime.timedelta(days=10)
    with tempfile.TemporaryDirectory(prefix="xensecure-test-") as public:  # pytest's own folders are private, and the receivers' user reads the CA
        folder = Path(public)
        folder.chmod(0o755)
        (folder / "ca.pem").write_bytes(authority.certificate_pem)
        tables = []
        for name in ("hv1", "hv2"):
            names = (x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
            key, certificate = issue(name, authority, names=names, ends=soon).write(folder, name)
            tables.append(f'[trust]\nmode = "ca"\nca = "{folder}/ca.pem"\ncertificate = "{certificate}"\nkey = "{key}"\n')
        with Pair(source_extra=tables[0], destination_extra=tables[1]) as site:
            said = examine(site.source, "hv2", status=1)
    assert said["kinds"].keys() == {"certificate-expires"} | NOTES
    assert f"expires on {soon:%Y-%m-%d %H:%M:%S} UTC" in said["kinds"]["certificate-expires"]


# ---- the way there


def test_nobody_answers(pair: Pair, tmp_path: Path) -> None:
    """A port on which nobody listens."""
    said = examine(pair.source, "hv2", status=4, config=changed(pair.source, tmp_path, "[host.hv2]\nport = 1\n"))
    assert "cannot connect to port 1 (127.0.0.1: Connection refused)" in said["kinds"]["connect"]
    assert "is xensecured running there, and the port open?" in said["kinds"]["connect"]


def test_first_address_does_not_answer(pair: Pair, tmp_path: Path) -> None:
    """Each migration would try the wrong address first."""
    said = examine(pair.source, "hv2", status=1, config=changed(pair.source, tmp_path, '[host.hv2]\naddress = ["127.0.0.9", "127.0.0.1"]\n'))
    assert "127.0.0.9 does not answer, 127.0.0.1 does" in said["kinds"]["address"]


def test_forgotten_there(new_pair: Pair) -> None:
    """The destination does not know this host any more."""
    new_pair.destination.ctl("forget", "hv1")
    said = examine(new_pair.source, "hv2", status=4)
    assert "the peer does not accept our proof" in said["kinds"]["connect"]


# ---- the other host


def test_memory(pair: Pair) -> None:
    """A domain that does not fit there; without --domain it is no finding."""
    pair.destination.xen.set_fault(Fault.FREE_MEMORY, 1)
    assert examine(pair.source, "hv2", status=0)["kinds"].keys() == NOTES
    said = examine(pair.source, "hv2", "--domain", "web1", status=4)
    assert "web1 needs 6 MiB, and hv2 has 1 MiB free of 16384" in said["kinds"]["memory"]


def test_domain_that_is_not_here(pair: Pair) -> None:
    """A name that no domain has."""
    said = examine(pair.source, "hv2", "--domain", "web9", status=4)
    words = "there is no domain 'web9' here; 'xl list' shows them"
    assert said["kinds"]["domain"].startswith(words)
    assert pair.source.ctl("policy", "check", "web9", status=4).stderr == f"xensecurectl: {words}\n"


def test_domain_that_is_refused(pair: Pair) -> None:
    """The destination's own judgement of the domain's configuration, beforehand."""
    config = next((pair.source.xen.path / "configs").glob("*.json"))
    kept = config.read_text()
    config.write_text(kept.rstrip().removesuffix("}") + ', "deep": ' + "[" * 40 + "]" * 40 + "}\n")
    said = examine(pair.source, "hv2", "--domain", "web1", status=4)
    assert "hv2 would refuse web1: malformed configuration of a domain: too deep" in said["kinds"]["refused"]
    assert pair.source.xen.running() == ["web1"]


def test_older_xen_and_lesser_cpu(pair: Pair) -> None:
    """What a guest would miss there: an older Xen, features of the CPU, and hardware help for its kind."""
    for fault, value in ((Fault.XEN_MINOR, 14), (Fault.HW_CAPS, "bfebfbfc"), (Fault.NO_HVM, 1)):
        pair.destination.xen.set_fault(fault, value)
    said = examine(pair.source, "hv2", status=1)
    assert said["kinds"].keys() == {"xen", "cpu-features", "virtualization"} | NOTES
    assert "Xen is 4.14.5 on hv2, older than 4.17.5 here" in said["kinds"]["xen"]
    assert "lacks 2 features" in said["kinds"]["cpu-features"]
    assert "'xen-cpuid 00000003:00000000:" in said["kinds"]["cpu-features"]
    assert "Xen on hv2 lacks hvm, hap" in said["kinds"]["virtualization"]
    said = examine(pair.source, "hv2", "--domain", "web1", status=4)
    assert "web1 is a pvh domain, and Xen on hv2 cannot run these" in said["kinds"]["domain-type"]


def test_what_is_wrong_there(pair: Pair) -> None:
    """Hooks there that cannot be trusted, and an xl that does not answer, would keep every domain away."""
    pair.destination.add_hook("pre-receive", "10-open", "#!/bin/sh\n").chmod(0o777)
    said = examine(pair.source, "hv2", status=4)
    assert "no domain can arrive on hv2: the hooks there cannot be trusted" in said["kinds"]["there"]


def test_no_room_for_a_session(pair: Pair) -> None:
    """The destination has as many migrations as it takes."""
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1")
    pair.destination.xen.wait_held(Point.READY)
    said = examine(pair.source, "hv2", status=4)
    pair.destination.xen.release(Point.READY)
    assert running.wait().status == 0
    assert "1 migrations are arriving on hv2, and no more may" in said["kinds"]["full"]


def test_more_lanes_than_there_may_be(pair: Pair, tmp_path: Path) -> None:
    """The configuration asks for more connections than the destination gives."""
    said = examine(pair.source, "hv2", status=1, config=changed(pair.source, tmp_path, "[host.hv2]\nlanes = 8\n"))
    assert "lanes = 8 here, and hv2 takes 3" in said["kinds"]["lanes"]


@contextmanager
def daemon_instead(host: Host, name: str, module: str, change: str, *arguments: str) -> Iterator[None]:
    """One of a host's daemons, run with something changed in it first."""
    first = host.processes.pop(name)
    first.terminate()
    first.wait()
    log = host.folder / "changed.log"
    script = f"{change}\nimport sys\nfrom xensecure.cli.{module} import main\nsys.exit(main())"
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", script, *arguments], env=host.environment(), stdout=stream, stderr=stream)
    try:
        wait_for(lambda: "listening" in log.read_text() or "ready for receivers" in log.read_text(), name)
        yield
    finally:
        process.terminate()
        process.wait()
        host.start_until_ready(name, *arguments)


def test_clock_and_release_of_another_host(pair: Pair) -> None:
    """A destination whose clock is an hour ahead and whose release is another one."""
    change = "import time, xensecure\nreal = time.time\ntime.time = lambda: real() + 3600\nxensecure.__version__ = '0.0.9'"
    with daemon_instead(pair.destination, "xensecure-launcher", "launcher", change):
        said = examine(pair.source, "hv2", status=1)
    assert re.match(r"the clock of hv2 is (35[89][0-9]|36[01][0-9]) s ahead of this host's; have both set by NTP", said["kinds"]["clock"])
    assert "and 0.0.9 on hv2" in said["kinds"]["release"]


def test_older_destination(pair: Pair) -> None:
    """A destination of before this question: a warning, for it may well take a migration."""
    change = "from xensecure.proto.messages import Purpose\ndel Purpose._member_map_['CHECK']"
    with daemon_instead(pair.destination, "xensecured", "xensecured", change, "--listen"):
        said = examine(pair.source, "hv2", status=1)
    assert "the xensecure on hv2 is older than this one" in said["kinds"]["release"]


def test_somebody_else_on_the_port(pair: Pair, tmp_path: Path) -> None:
    """What answers there is no xensecure: that is no older release, but no migration either."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=_says_hello, args=(other,))
        thread.start()
        said = examine(pair.source, "hv2", status=4, config=changed(pair.source, tmp_path, f"[host.hv2]\nport = {other.getsockname()[1]}\n"))
        thread.join()
    assert said["kinds"].keys() == {"connect"}


def _says_hello(server: socket.socket) -> None:
    """A mail server, to one client."""
    client = server.accept()[0]
    with client, suppress(ConnectionResetError):
        client.sendall(b"220 mail.example.org ESMTP\r\n")
        while client.recv(4096):
            pass
