"""The command line of xensecure: what it takes, and that it refuses everything else in one line, before any connection."""

from __future__ import annotations

import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Pair, command
from tests.xl.stream import StreamSpec, make_stream
from xensecure.cli.xensecure import parse
from xensecure.link.config import HostOptions
from xensecure.proto.errors import ConfigurationError, UsageError
from xensecure.proto.request import Flag, ReceiveRequest
from xensecure.source.migrate import Job

RECEIVE = ("xl", "migrate-receive")
TRANSPORT_FAILURE = 255


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two hosts that have met, the destination on the IPv6 loopback address alone."""
    with Pair(address="::1") as made:
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a section for one host."""
    path = tmp_path / "xensecure.toml"
    path.write_text('[defaults]\nkeepalive = 7\n[host.hv2]\nport = 8100\nverbose = 1\n')
    return path


def parsed(config: Path, *words: str) -> Job:
    """The job of a command line."""
    found = parse(["-F", str(config), *words])
    assert found is not None
    assert found[0].path == str(config)
    return found[1]


OPTIONS = {
    (): HostOptions(port=8100, keepalive=7, verbose=1),
    ("-4",): HostOptions(port=8100, keepalive=7, verbose=1, family="inet"),
    ("-6",): HostOptions(port=8100, keepalive=7, verbose=1, family="inet6"),
    ("-p", "9000"): HostOptions(port=9000, keepalive=7, verbose=1),
    ("-p9000", "-q"): HostOptions(port=9000, keepalive=7, verbose=1, quiet=True),
    ("-b", "192.0.2.1"): HostOptions(port=8100, keepalive=7, verbose=1, bind="192.0.2.1"),
    ("-b", "fe80::1%eth0"): HostOptions(port=8100, keepalive=7, verbose=1, bind="fe80::1%eth0"),
    ("-v", "-v", "-v"): HostOptions(port=8100, keepalive=7, verbose=3),
    ("-vv",): HostOptions(port=8100, keepalive=7, verbose=2),
    ("-o", "keepalive=9", "-o", "silence=30"): HostOptions(port=8100, keepalive=9, silence=30, verbose=1),
    ("-o", "address=10.0.0.7"): HostOptions(port=8100, keepalive=7, verbose=1, address=("10.0.0.7",)),
    ("-o", 'address=["10.0.0.7", "10.0.0.8"]'): HostOptions(port=8100, keepalive=7, verbose=1, address=("10.0.0.7", "10.0.0.8")),
    ("-o", "peer=hv3", "-p", "1", "-p", "2"): HostOptions(port=2, keepalive=7, verbose=1, peer="hv3"),
}


@pytest.mark.parametrize(("words", "options"), OPTIONS.items())
def test_options(config: Path, words: tuple[str, ...], options: HostOptions) -> None:
    """Every option before HOST sets what it names, over the host's section and the defaults."""
    assert parsed(config, *words, "hv2", *RECEIVE).options == options


HOSTS = {"hv2": "hv2", "root@hv2": "hv2", "a@b@hv2": "hv2", "root@fe80::1%eth0": "fe80::1%eth0", "::1": "::1"}


@pytest.mark.parametrize(("word", "host"), HOSTS.items())
def test_host(config: Path, word: str, host: str) -> None:
    """HOST may come with a user, as ssh's does; the user plays no part."""
    assert parsed(config, word, *RECEIVE).host == host


COMMANDS = {
    "xl migrate-receive": ReceiveRequest(),
    "xl -t migrate-receive -e": ReceiveRequest(flags=Flag.CARRIAGE_RETURNS | Flag.NO_MONITOR),
    "xl -t -T -vvv migrate-receive -e -d -p": ReceiveRequest(
        flags=Flag.CARRIAGE_RETURNS | Flag.TIMESTAMPS | Flag.NO_MONITOR | Flag.DEBUG | Flag.PAUSED, verbosity=3
    ),
    "xl migrate-receive -r -e": ReceiveRequest(flags=Flag.REMUS | Flag.NO_MONITOR),
    "xl -v -v migrate-receive -p": ReceiveRequest(flags=Flag.PAUSED, verbosity=2),
    "xl migrate-receive --colo --coloft-script /etc/xen/scripts/x --userspace-colo-proxy": ReceiveRequest(
        flags=Flag.COLO | Flag.USERSPACE_COLO_PROXY, coloft_script="/etc/xen/scripts/x"
    ),
}


@pytest.mark.parametrize(("words", "request_"), COMMANDS.items())
def test_command(config: Path, words: str, request_: ReceiveRequest) -> None:
    """Option parsing stops at HOST: what follows is xl's, and is understood as such."""
    assert parsed(config, "hv2", *words.split()).request == request_


WRONG_COMMANDS = (
    "",
    "xl",
    "xl list",
    "xl migrate-receive; reboot",
    "xl migrate-receive -x",
    "xl migrate-receive -ed",
    "xl migrate-receive hv3",
    "xl migrate-receive -e --",
    "xl -N migrate-receive",
    "xl -vx migrate-receive",
    "xl - migrate-receive",
    "xl -vvvvvvvvvvvvvvvvv migrate-receive",
    "xl migrate-receive --coloft-script",
    "xl migrate-receive --coloft-script relative",
    "xl migrate-receive --coloft-script /a --coloft-script /b",
    "/usr/sbin/xl migrate-receive",
    "sudo xl migrate-receive",
    "uptime",
    "-p 9000 xl migrate-receive",
)


def refused(pair: Pair, *words: str) -> str:
    """What xensecure says as it refuses a command line: one line, status 255, nothing on stdout."""
    environment = pair.source.environment()
    done = subprocess.run([command("xensecure"), *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == TRANSPORT_FAILURE
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("xensecure: ")
    assert "internal error" not in line
    return line


@pytest.mark.parametrize("words", WRONG_COMMANDS)
def test_wrong_command(config: Path, words: str) -> None:
    """Anything but xl migrate-receive with xl's own flags is refused."""
    with pytest.raises(UsageError):
        parse(["-F", str(config), "hv2", *words.split()])


@pytest.mark.parametrize("words", ["", "uptime", "xl migrate-receive -x", "xl list", "xl migrate-receive; reboot"])
def test_nothing_is_connected_for_a_wrong_command(pair: Pair, words: str) -> None:
    """A command that is refused never reaches the network: a socket that listens in the peer's place sees no connection."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        port = trap.getsockname()[1]
        line = refused(pair, "-o", "address=127.0.0.1", "-p", str(port), "hv2", *words.split())
        assert "migrate-receive" in line
        assert not select.select([trap], [], [], 0)[0]


WRONG_LINES = {
    (): "no HOST",
    ("",): "is no host",
    ("root@",): "is no host",
    ("-p", "0", "hv2", *RECEIVE): "'port' must be",
    ("-p", "x", "hv2", *RECEIVE): "'port' must be",
    ("-b", "eth0", "hv2", *RECEIVE): "'bind' must be",
    ("-o", "nonsense=1", "hv2", *RECEIVE): "KEY=VALUE with one of peer, address",
    ("-o", "keepalive", "hv2", *RECEIVE): "KEY=VALUE",
    ("-o", "silence=1", "hv2", *RECEIVE): "'silence' must be seconds, 2 to 86400",
    ("-o", "port=true", "hv2", *RECEIVE): "'port' must be",
    ("-o", "StrictHostKeyChecking=no", "hv2", *RECEIVE): "KEY=VALUE",
    ("-i", "key", "hv2", *RECEIVE): "option -i not recognized",
    ("--nonsense", "hv2", *RECEIVE): "not recognized",
    ("-p",): "requires argument",
    ("-F", "/nonexistent/xensecure.toml", "hv2", *RECEIVE): "no such file",
    ("nobody-has-met-it", *RECEIVE): "no link key for 'nobody-has-met-it'; run 'xensecurectl invite'",
    ("hv\n2", *RECEIVE): "no link key",
    ("hv/../2", *RECEIVE): "no link key",
}


@pytest.mark.parametrize(("words", "said"), WRONG_LINES.items())
def test_wrong_line(pair: Pair, words: tuple[str, ...], said: str) -> None:
    """A command line that means nothing gets one line that says what is wrong, status 255 and an empty stdout."""
    assert said in refused(pair, *words)


def test_dead_port(pair: Pair) -> None:
    """A port where nobody listens: one line with the port, the address and what to look at."""
    with socket.socket(socket.AF_INET6) as unused:
        unused.bind(("::1", 0))
        port = unused.getsockname()[1]
        line = refused(pair, "-p", str(port), "hv2", *RECEIVE)
    assert f"cannot connect to port {port} (::1: Connection refused); is xensecured running there" in line


def test_ipv4_wanted_of_an_ipv6_peer(pair: Pair) -> None:
    """-4 with a peer that has an IPv6 address alone: one line that names the address."""
    assert "::1: " in refused(pair, "-4", "hv2", *RECEIVE)


def test_bind_address_of_another_host(pair: Pair) -> None:
    """-b with an address that this host does not have: one line."""
    assert "cannot connect" in refused(pair, "-b", "2001:db8::1", "hv2", *RECEIVE)


def test_someone_else_answers(pair: Pair) -> None:
    """A peer's port where something else answers: one line, within the time for a handshake."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        process = pair.pipe("-o", "connect_timeout=1", "-p", str(other.getsockname()[1]), "hv2", *RECEIVE)
        connection, _ = other.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == TRANSPORT_FAILURE
    assert stdout == b""
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith(b"xensecure: ")
    assert b"internal error" not in stderr


def test_someone_else_says_nothing(pair: Pair) -> None:
    """A port that takes the connection and stays silent: given up after connect_timeout."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as silent:
        line = refused(pair, "-o", "connect_timeout=1", "-p", str(silent.getsockname()[1]), "hv2", *RECEIVE)
    assert "did not answer in time" in line


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_unsafe_configuration(config: Path, mode: int) -> None:
    """A configuration that others can write is refused: it names what root runs."""
    config.chmod(mode)
    with pytest.raises(ConfigurationError):
        parse(["-F", str(config), "hv2", *RECEIVE])


@pytest.mark.parametrize("word", ["--help", "-h", "--version", "-V"])
def test_help_and_version(pair: Pair, word: str) -> None:
    """Help and version are what was asked for: on stdout, with status 0."""
    done = subprocess.run([command("xensecure"), word], env=pair.source.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "xensecure" in done.stdout


@pytest.mark.parametrize("options", ["", "-6", "-b ::1", "-q", "-vv"])
def test_options_through_xl(pair: Pair, tmp_path: Path, options: str) -> None:
    """`xl migrate -s "xensecure OPTIONS"` over IPv6, with user@host: the domain arrives."""
    pair.reset()
    pair.source.xen.create_domain("web1", make_stream(tmp_path / "stream", StreamSpec(1)))
    outcome = pair.migrate("web1", "-e", transport=f"{options} -p {pair.destination.port}", host="root@hv2").wait()
    assert outcome.status == 0, outcome.stderr
    assert pair.destination.xen.running() == ["web1"]
    assert ("xensecure: web1 moved" in outcome.stderr) == (options != "-q")
    assert ("xensecure: connected to hv2 (" in outcome.stderr) == (options == "-vv")
    assert ("xensecure: session " in outcome.stderr) == (options == "-vv")


def test_quoted_options_in_xendomains_form(pair: Pair, tmp_path: Path) -> None:
    """An option that xl's unquoted words cannot carry is taken from the host's section of the configuration."""
    pair.reset()
    pair.source.xen.create_domain("web1", make_stream(tmp_path / "stream", StreamSpec(1)))
    pair.source.configure(f'[host.elsewhere]\npeer = "hv2"\naddress = ["::1"]\nport = {pair.destination.port}\nquiet = true\n')
    try:
        outcome = pair.migrate("web1", "-e", host="elsewhere").wait()
    finally:
        pair.source.configure()
    assert outcome.status == 0, outcome.stderr
    assert "xensecure: " not in outcome.stderr
