"""``openssl s_client`` against the real daemons, and ``openssl s_server`` against the real command, over loopback."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.inmemory import issue
from tests.pair import PATIENCE, Host, Pair, command, free_port, listens, wait_for
from xensecure.proto.errors import TRANSPORT_FAILURE

TLS_1_3 = ("-tls1_3",)
ALPN = ("-alpn", "xensecure/1")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two hosts that have met; no domain is ever sent here."""
    with Pair() as made:
        yield made


def identity(host: Host) -> tuple[str, ...]:
    """A host's own key and certificate as options."""
    return ("-key", str(host.state / "identity.key"), "-cert", str(host.state / "identity.crt"))


def s_client(host: Host, *options: str) -> str:
    """What s_client says of a connection to the receiver, which it keeps open until the receiver closes or a second has passed."""
    with tempfile.TemporaryFile() as output:
        words = ["openssl", "s_client", "-connect", f"127.0.0.1:{host.port}", *options]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=output) as process:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
        output.seek(0)
        return output.read().decode("utf-8", "replace")


CLIENTS = {
    "TLS 1.2": (("-tls1_2", *ALPN), "TLS: "),
    "no ALPN": (TLS_1_3, "did not offer xensecure/1"),
    "another ALPN": ((*TLS_1_3, "-alpn", "h2"), "TLS: "),
    "P-384 only": ((*TLS_1_3, *ALPN, "-groups", "P-384"), "key-exchange group 24"),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_receiver_refuses_foreign_client(pair: Pair, case: str) -> None:
    """A client with hv1's own certificate and one thing wrong is refused with one line that names it, and reaches no launcher."""
    options, said = CLIENTS[case]
    before, keeper = pair.destination.log("xensecured"), pair.destination.log("xensecure-launcher")
    s_client(pair.destination, *options, *identity(pair.source))
    wait_for(lambda: len(pair.destination.log("xensecured")) > len(before), "a line in the receiver's log")
    line = pair.destination.log("xensecured")[len(before) :]
    assert said in line
    assert line.count("\n") == 1
    assert pair.destination.log("xensecure-launcher") == keeper


def test_receiver_refuses_client_without_certificate(pair: Pair) -> None:
    """A client that presents no certificate is refused in TLS."""
    before = pair.destination.log("xensecured")
    output = s_client(pair.destination, *TLS_1_3, *ALPN)
    wait_for(lambda: len(pair.destination.log("xensecured")) > len(before), "a line in the receiver's log")
    assert "certificate" in pair.destination.log("xensecured")[len(before) :]
    assert "alert" in output


def test_receiver_speaks_tls_as_specified(pair: Pair) -> None:
    """Control: a client that does all right gets TLS 1.3, the protocol and the group, and then silence, for it says no hello."""
    output = s_client(pair.destination, *TLS_1_3, *ALPN, *identity(pair.source))
    assert "TLSv1.3" in output
    assert "ALPN protocol: xensecure/1" in output
    assert "Server Temp Key: X25519" in output


@contextlib.contextmanager
def s_server(*options: str) -> Iterator[int]:
    """An s_server on a free port."""
    port = free_port()
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-verify", "1", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: process.poll() is not None or listens(port), "s_server")
        assert process.poll() is None
        yield port
    finally:
        process.kill()
        process.communicate()


def run_source(pair: Pair, port: int) -> subprocess.CompletedProcess[str]:
    """`xensecure hv2 xl migrate-receive` to a port, with bytes of a domain waiting on its standard input."""
    words = [command("xensecure"), "-F", str(pair.source.config), "-p", str(port), "-o", "connect_timeout=3", "hv2", "xl", "migrate-receive"]
    return subprocess.run(words, input="a domain" * 1000, capture_output=True, text=True, timeout=PATIENCE, check=False)


SERVERS = {
    "TLS 1.2": (("-tls1_2", *ALPN), "TLS: "),
    "no ALPN": (TLS_1_3, "did not select xensecure/1"),
    "another ALPN": ((*TLS_1_3, "-alpn", "h2"), "TLS: "),
    "P-384 only": ((*TLS_1_3, *ALPN, "-groups", "P-384"), "TLS: "),
}


@pytest.mark.parametrize("case", SERVERS)
def test_command_refuses_foreign_server(pair: Pair, case: str) -> None:
    """A server with hv2's own certificate and one thing wrong is refused with one line and status 255; nothing is written to xl."""
    options, said = SERVERS[case]
    with s_server(*options, *identity(pair.destination)) as port:
        done = run_source(pair, port)
    assert done.returncode == TRANSPORT_FAILURE
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_command_refuses_another_pin(pair: Pair) -> None:
    """A server that does all right under another key is refused as one that may be a man in the middle."""
    other = issue("hv2")
    key, certificate = other.write(pair.folder, "other")
    with s_server(*TLS_1_3, *ALPN, "-key", str(key), "-cert", str(certificate)) as port:
        done = run_source(pair, port)
    assert done.returncode == TRANSPORT_FAILURE
    assert "another key than the peer we know; this may be a man in the middle" in done.stderr


def test_command_waits_for_no_silent_server(pair: Pair) -> None:
    """Control: a server that does all right in TLS and then is silent is given up after connect_timeout."""
    with s_server(*TLS_1_3, *ALPN, *identity(pair.destination)) as port:
        done = run_source(pair, port)
    assert done.returncode == TRANSPORT_FAILURE
    assert "did not answer in time" in done.stderr


def test_receiver_refuses_kinds_of_keys_it_cannot_read_with_a_line(pair: Pair) -> None:
    """Whatever key a stranger's certificate has, the receiver ends with one line of its own and no internal error."""
    key, certificate = pair.folder / "strange.key", pair.folder / "strange.crt"
    for kind in (("rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"), ("ED448",), ("rsa", "-pkeyopt", "rsa_keygen_bits:2048")):
        words = ["openssl", "req", "-x509", "-newkey", kind[0], *kind[1:], "-nodes", "-subj", "/CN=x", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(words, check=True, capture_output=True, timeout=PATIENCE)
        s_client(pair.destination, *TLS_1_3, *ALPN, "-key", str(key), "-cert", str(certificate))
    assert "internal error" not in pair.destination.log("xensecured")
    assert "Traceback" not in pair.destination.log("xensecured")
