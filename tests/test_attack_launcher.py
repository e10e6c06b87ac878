"""A receiver that was taken over, at the launcher's socket: the real xensecure-launcher, and packets of the attacker's choice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.inmemory import HV1, Exchange, World, made_up_key
from tests.pair import Host, wait_for
from xensecure.destination.held import sealed_file
from xensecure.link.config import load_config
from xensecure.link.identity import load_credentials
from xensecure.link.peers import LinkKey, Peer, Peers
from xensecure.proto import launcher, limits, xlwords
from xensecure.proto.handshake import AuthenticationRequest
from xensecure.proto.launcher import Authenticate, Kind, Started, Wish
from xensecure.proto.messages import DestinationHello, Purpose
from xensecure.proto.request import ReceiveRequest


class Keeper:
    """hv2's launcher, running, which knows hv1; and what a source of that name would give a receiver."""

    def __init__(self, host: Host, world: World) -> None:
        self.host = host
        self.xl_calls = host.folder / "xl-was-started"
        self.xl_input = host.folder / "xl-was-given"
        self.hook_ran = host.folder / "hook-was-run"
        self.world = world
        self._said_before = 0
        host.ctl("init")
        config = load_config(str(host.config))
        peers = Peers(config)
        with peers.locked():
            peers.put(Peer(contact=HV1, pin=world.source.pin, keys=(LinkKey(generation=1, key=made_up_key("link key")),), since=0))
        world.destination = load_credentials(config)
        host.start("xensecure-launcher")
        wait_for(lambda: "ready for receivers" in self.log(), "the launcher")

    def log(self) -> str:
        """What launcher and keepers have said in this test."""
        return self.host.log("xensecure-launcher")[self._said_before :]

    def start_afresh(self) -> None:
        """Forget what earlier tests left."""
        wait_for(self.idle, "the keepers of an earlier test to end")
        self.xl_calls.unlink(missing_ok=True)
        shutil.rmtree(self.host.hooks, ignore_errors=True)
        self.hook_ran.unlink(missing_ok=True)
        self._said_before = len(self.host.log("xensecure-launcher"))

    def request(self, challenge: bytes, purpose: Purpose = Purpose.MIGRATE) -> AuthenticationRequest:
        """A right request: hv1 has proved itself for this challenge."""
        hello = replace(self.world.hello(), purpose=purpose)
        exchange = Exchange(self.world, source=self.world.source_handshake(hello=hello))
        exchange.challenge = challenge
        exchange.run()
        return exchange.destination.request()

    @contextlib.contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, bytes]]:
        """A receiver's connection, and its challenge."""
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as sock:
            sock.settimeout(10)
            sock.connect(str(self.host.folder / "run" / "launcher.sock"))
            yield sock, launcher.pull_challenge(sock.recv(limits.LAUNCHER_MESSAGE_MAX))

    def idle(self) -> bool:
        """Whether no keeper is left."""
        return not self.host.children("xensecure-launcher")

    def assert_nothing_started(self, said: str) -> None:
        """No xl was started, every keeper has ended, and the log has one line on it and no traceback."""
        wait_for(self.idle, "the keepers to end")
        assert not self.xl_calls.exists()
        assert said in self.log()
        assert "Traceback" not in self.log()
        assert "internal error" not in self.log()


@contextlib.contextmanager
def launcher_running(tmp_path: Path, extra: str = "") -> Iterator[Keeper]:
    """A running launcher whose xl leaves a mark when it is to receive."""
    folder = tmp_path / "hv2"
    folder.mkdir()
    program = tmp_path / "xl"
    receive = f"touch {folder / 'xl-was-started'}; exec cat >{folder / 'xl-was-given'}"
    program.write_text(f'#!/bin/sh\n[ "$1" = migrate-receive ] || exit 1\n{receive}\n')
    program.chmod(0o755)
    host = Host(folder, "hv2", xl=program, extra=extra)
    # The test itself plays the receiver.
    host.config.write_text(host.config.read_text().replace('user = "nobody"', 'user = "root"') if os.geteuid() == 0 else host.config.read_text())
    try:
        yield Keeper(host, World(tmp_path / "world"))
    finally:
        host.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """Such a launcher, for many tests."""
    with launcher_running(tmp_path_factory.mktemp("launcher")) as made:
        yield made


@pytest.fixture
def keeper(running: Keeper) -> Keeper:
    """The same, with nothing started and nothing said yet."""
    running.start_afresh()
    return running


def authenticated(sock: socket.socket) -> bool:
    """Whether the launcher's answer is yes."""
    packet = sock.recv(limits.LAUNCHER_MESSAGE_MAX)
    return bool(packet) and launcher.kind_of(packet) is Kind.AUTHENTICATED


def refused_or_gone(sock: socket.socket) -> bool:
    """Whether the launcher says no, or has closed."""
    try:
        packet = sock.recv(limits.LAUNCHER_MESSAGE_MAX)
    except ConnectionResetError:
        return True
    return not packet or launcher.kind_of(packet) is Kind.REFUSED


def push(request: AuthenticationRequest) -> bytes:
    """AUTHENTICATE."""
    return Authenticate(request=request, address="192.0.2.1").push()


START = launcher.push_start(ReceiveRequest())


def test_right_proof_starts_xl_once(keeper: Keeper) -> None:
    """Control: the right request is accepted, START starts xl and gives three pipes."""
    with keeper.connection() as (sock, challenge):
        sock.send(push(keeper.request(challenge)))
        assert authenticated(sock)
        sock.send(START)
        packet, descriptors, _, _ = socket.recv_fds(sock, limits.LAUNCHER_MESSAGE_MAX, 3)
        assert launcher.kind_of(packet) is Kind.STARTED
        assert len(descriptors) == 3
        wait_for(keeper.xl_calls.exists, "xl")
        for descriptor in descriptors:
            os.close(descriptor)
    wait_for(keeper.idle, "the keeper to end")


def test_proof_is_good_for_its_own_connection_alone(keeper: Keeper) -> None:
    """A request that was accepted once is refused on a new connection, as it is and with the new challenge written into it (C8)."""
    with keeper.connection() as (sock, challenge):
        recorded = keeper.request(challenge)
        sock.send(push(recorded))
        assert authenticated(sock)
    for rewrite in (False, True):
        with keeper.connection() as (sock, fresh):
            request = replace(recorded, destination_hello=DestinationHello(challenge=fresh).push()) if rewrite else recorded
            sock.send(push(request))
            assert refused_or_gone(sock)
            assert refused_or_gone(sock)
    keeper.assert_nothing_started("SECURITY: authentication from 192.0.2.1 failed: the receiver answered with another challenge")
    assert "wrong proof" in keeper.log()


def test_stale_challenge_is_refused(keeper: Keeper) -> None:
    """A proof made for the challenge of another connection that is still open is refused."""
    with keeper.connection() as (first, challenge), keeper.connection() as (second, _):
        request = keeper.request(challenge)
        second.send(push(request))
        assert refused_or_gone(second)
        first.close()
    keeper.assert_nothing_started("another challenge")


def test_second_attempt_on_a_connection_is_not_looked_at(keeper: Keeper) -> None:
    """After a wrong proof the right one comes too late, for the challenge is used up (C8)."""
    with keeper.connection() as (sock, challenge):
        request = keeper.request(challenge)
        sock.send(push(replace(request, proof=bytes(32))))
        assert refused_or_gone(sock)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.send(push(request))
        assert refused_or_gone(sock)
    keeper.assert_nothing_started("wrong proof")


def test_authenticating_twice_ends_the_keeper(keeper: Keeper) -> None:
    """A second AUTHENTICATE after a yes is no START, and ends the keeper with a line."""
    with keeper.connection() as (sock, challenge):
        request = keeper.request(challenge)
        sock.send(push(request))
        assert authenticated(sock)
        sock.send(push(request))
        assert refused_or_gone(sock)
    keeper.assert_nothing_started("AUTHENTICATE between receiver and launcher where START belongs")


BEFORE_AUTHENTICATING: dict[str, tuple[bytes, str]] = {
    "START": (START, "START between receiver and launcher where AUTHENTICATE belongs"),
    "STORE": (launcher.push_empty(Kind.STORE), "STORE between receiver and launcher where AUTHENTICATE belongs"),
    "DONE": (launcher.push_empty(Kind.DONE), "DONE between receiver and launcher where AUTHENTICATE belongs"),
    "the launcher's own word": (launcher.push_empty(Kind.AUTHENTICATED), "AUTHENTICATED between"),
    "unknown": (b"\xff", "unknown message"),
    "zero": (b"\x00" * 100, "unknown message"),
    "one byte": (b"\x02", "malformed AUTHENTICATE: it ends too early"),
    "garbage": (b"\x02" + bytes(range(256)) * 3, "malformed AUTHENTICATE"),
    "as long as may be": (b"\x02" * limits.LAUNCHER_MESSAGE_MAX, "malformed AUTHENTICATE"),
    "longer": (b"\x02" * (limits.LAUNCHER_MESSAGE_MAX + 1), "longer than any of ours"),
    "much longer": (b"\x02" * (limits.LAUNCHER_MESSAGE_MAX * 4), "longer than any of ours"),
}


@pytest.mark.parametrize("case", BEFORE_AUTHENTICATING)
def test_nonsense_before_authenticating_ends_the_keeper(keeper: Keeper, case: str) -> None:
    """What is no AUTHENTICATE starts nothing and ends the keeper with a line that says what it was."""
    packet, said = BEFORE_AUTHENTICATING[case]
    with keeper.connection() as (sock, _):
        sock.send(packet)
        assert refused_or_gone(sock)
    keeper.assert_nothing_started(said)


def test_truncated_requests_are_refused(keeper: Keeper) -> None:
    """A right AUTHENTICATE cut at some places, or with a byte too many, starts nothing."""
    with keeper.connection() as (sock, challenge):
        whole = push(keeper.request(challenge))
        sock.send(whole + b"\x00")
        assert refused_or_gone(sock)
    for length in range(1, len(whole), 37):
        with keeper.connection() as (sock, _):
            sock.send(whole[:length])
            assert refused_or_gone(sock)
    keeper.assert_nothing_started("malformed AUTHENTICATE")


def bad_start(change: Callable[[bytearray], object]) -> bytes:
    """START with a change."""
    packet = bytearray(START)
    change(packet)
    return bytes(packet)


AFTER_AUTHENTICATING: dict[str, tuple[bytes, str]] = {
    "unknown flag": (bad_start(lambda packet: packet.__setitem__(1, 0x80)), "unknown flags"),
    "verbosity": (bad_start(lambda packet: packet.__setitem__(3, 200)), "times -v"),
    "trailing byte": (bad_start(lambda packet: packet.append(0)), "bytes too many"),
    "script not configured": (launcher.push_start(ReceiveRequest(coloft_script="/bin/sh")), "not one that this host runs"),
    "relative script": (launcher.push_start(ReceiveRequest(coloft_script="-x")), "not one that this host runs"),
    "STORE after MIGRATE": (launcher.push_empty(Kind.STORE), "STORE between receiver and launcher where START belongs"),
    "DONE": (launcher.push_empty(Kind.DONE), "DONE between"),
    "garbage": (b"\x05" + b"\xff" * 50, "malformed START"),
    "too long": (b"\x05" * (limits.LAUNCHER_MESSAGE_MAX + 1), "longer than any of ours"),
}


@pytest.mark.parametrize("case", AFTER_AUTHENTICATING)
def test_nonsense_after_authenticating_starts_nothing(keeper: Keeper, case: str) -> None:
    """Also for a source that has proved itself, nothing but a well-formed request that this host allows starts xl."""
    packet, said = AFTER_AUTHENTICATING[case]
    with keeper.connection() as (sock, challenge):
        sock.send(push(keeper.request(challenge)))
        assert authenticated(sock)
        sock.send(packet)
        assert refused_or_gone(sock)
    keeper.assert_nothing_started(said)


def test_descriptors_with_a_packet_end_the_keeper(keeper: Keeper) -> None:
    """A packet that brings descriptors is refused, whatever else it says; the keeper keeps none of them."""
    with keeper.connection() as (sock, challenge), open(os.devnull, "rb") as null:
        socket.send_fds(sock, [push(keeper.request(challenge))], [null.fileno()] * 200)
        assert refused_or_gone(sock)
    keeper.assert_nothing_started("longer than any of ours")


# ---- what a receiver shows the hooks

CONFIGURATION = b'{"c_info": {"name": "web1"}}'


def add_hook(keeper: Keeper, status: int = 0) -> None:
    """A pre-receive hook that leaves what it was shown."""
    keeper.host.add_hook("pre-receive", "hook", f"#!/bin/sh\ncat >{keeper.hook_ran}.tmp; mv {keeper.hook_ran}.tmp {keeper.hook_ran}; exit {status}\n")


@contextlib.contextmanager
def started(keeper: Keeper) -> Iterator[tuple[socket.socket, Started, list[int]]]:
    """A session whose xl runs: the connection, STARTED and its descriptors, which are closed in the end."""
    with keeper.connection() as (sock, challenge):
        sock.send(push(keeper.request(challenge)))
        assert authenticated(sock)
        sock.send(START)
        packet, descriptors, _, _ = socket.recv_fds(sock, limits.LAUNCHER_MESSAGE_MAX, 3)
        wait_for(keeper.xl_calls.exists, "xl")
        try:
            yield sock, Started.pull(packet), descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    wait_for(keeper.idle, "the keeper to end")


def show(sock: socket.socket, *descriptors: int, length: int = len(CONFIGURATION)) -> None:
    """CONFIGURATION with these descriptors, which are closed."""
    socket.send_fds(sock, [launcher.push_configuration(length)], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def unsealed() -> int:
    """A memory file that can still be changed."""
    descriptor = os.memfd_create("x")
    os.write(descriptor, CONFIGURATION)
    return descriptor


def half_sealed() -> int:
    """The same, that can be changed in place."""
    descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(descriptor, CONFIGURATION)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


NO_CONFIGURATION: dict[str, tuple[Callable[[socket.socket], object], str]] = {
    "no descriptor": (show, "0 descriptors where a domain's configuration belongs"),
    "two descriptors": (lambda sock: show(sock, sealed_file(CONFIGURATION), sealed_file(CONFIGURATION)), "longer than any of ours"),
    "not sealed": (lambda sock: show(sock, unsealed()), "not sealed"),
    "half sealed": (lambda sock: show(sock, half_sealed()), "not sealed"),
    "a pipe": (lambda sock: show(sock, os.pipe()[0]), "not sealed"),
    "a file": (lambda sock: show(sock, os.open("/etc/passwd", os.O_RDONLY)), "not sealed"),
    "another length": (lambda sock: show(sock, sealed_file(CONFIGURATION + b" ")), "of another length"),
    "too long": (lambda sock: sock.send(b"\x0d\xff\xff\xff\xff"), "malformed CONFIGURATION: 4294967295 bytes"),
    "a descriptor with a note": (
        lambda sock: socket.send_fds(sock, [launcher.Note(launcher.Milestone.DOMAIN).push()], [sock.fileno()]),
        "a descriptor with a packet that has none",
    ),
}


@pytest.mark.parametrize("case", NO_CONFIGURATION)
def test_no_configuration(keeper: Keeper, case: str) -> None:
    """What is no sealed memory file of the length that is said is shown to no hook, and xl sees the end of its input."""
    attack, said = NO_CONFIGURATION[case]
    add_hook(keeper)
    with started(keeper) as (sock, message, _):
        assert message.wish is Wish.ASKED
        attack(sock)
        assert refused_or_gone(sock)
    assert "SECURITY: the receiver of session" in keeper.log()
    assert said in keeper.log()
    assert not keeper.hook_ran.exists()
    assert keeper.xl_input.read_bytes() == b""


def test_configuration_that_nobody_asked_for(tmp_path: Path) -> None:
    """Where there are neither hooks nor a policy, a configuration is nonsense."""
    with launcher_running(tmp_path, '[policy]\ncheck = "off"\n') as keeper:
        with started(keeper) as (sock, message, _):
            assert message.wish is Wish.NOTHING
            show(sock, sealed_file(CONFIGURATION))
            assert refused_or_gone(sock)
        assert "SECURITY: the receiver of session" in keeper.log()


def test_policy_is_asked_without_hooks(keeper: Keeper) -> None:
    """What the policy does not let pass gives xl nothing, whoever shows it; and what has been judged is what xl gets, whatever is sent after it."""
    with started(keeper) as (sock, message, _):
        assert message.wish is Wish.ASKED
        evil = CONFIGURATION.replace(b"}}", b'}, "b_info": {"device_model": "/opt/evil"}}')
        show(sock, sealed_file(evil), length=len(evil))
        packet, descriptors, _, _ = socket.recv_fds(sock, limits.LAUNCHER_MESSAGE_MAX, 1)
        assert "b_info.device_model = '/opt/evil'" in launcher.pull_refused(packet).text
        assert not descriptors
    assert keeper.xl_input.read_bytes() == b""


@pytest.mark.parametrize(
    ("policy", "evil", "destroyed"),
    [("", False, "web1--incoming"), ("", True, ""), ('[policy]\ncheck = "off"\n', False, "victim--incoming")],
)
def test_name_of_another_domain(tmp_path: Path, policy: str, evil: bool, destroyed: str) -> None:
    """A killed xl's copy is destroyed by the name that was judged, not by the one that the receiver says; unless nothing is judged at all."""
    calls = tmp_path / "destroyed"
    with launcher_running(tmp_path, policy) as keeper:
        (tmp_path / "xl").write_text(
            f'#!/bin/sh\n[ "$1" = destroy ] && echo -n "$2" >>{calls} && exit 0\ntouch {keeper.xl_calls}\ncat >{keeper.xl_input}\nkill -9 $$\n'
        )
        with started(keeper) as (sock, message, _):
            if message.wish is Wish.ASKED:
                shown = CONFIGURATION.replace(b"}}", b'}, "b_info": {"device_model": "/opt/evil"}}') if evil else CONFIGURATION
                show(sock, sealed_file(shown), length=len(shown))
                packet, more, _, _ = socket.recv_fds(sock, limits.LAUNCHER_MESSAGE_MAX, 1)
                assert launcher.kind_of(packet) is (Kind.REFUSED if evil else Kind.ADMITTED)
                for descriptor in more:
                    os.close(descriptor)
            sock.send(launcher.Note(launcher.Milestone.DOMAIN, domain="victim").push())
        assert "killed by SIGKILL" in keeper.log()
    assert (calls.read_text() if calls.exists() else "") == destroyed


def test_second_configuration(keeper: Keeper) -> None:
    """A session shows one configuration: the second is shown to nobody."""
    add_hook(keeper)
    with started(keeper) as (sock, _, _):
        show(sock, sealed_file(CONFIGURATION))
        packet, descriptors, _, _ = socket.recv_fds(sock, limits.LAUNCHER_MESSAGE_MAX, 1)
        assert launcher.kind_of(packet) is Kind.ADMITTED
        keeper.hook_ran.unlink()
        sock.send(launcher.push_configuration(0))
        assert refused_or_gone(sock)
        os.close(descriptors[0])
    assert "CONFIGURATION that nobody has asked for, or the second one" in keeper.log()
    assert not keeper.hook_ran.exists()


@pytest.mark.parametrize("status", [0, 1])
def test_xl_has_no_input_before_the_yes(keeper: Keeper, status: int) -> None:
    """What stands in the place of xl's input takes no byte; a yes brings the input, a no ends it."""
    add_hook(keeper, status)
    with started(keeper) as (sock, _, descriptors):
        with pytest.raises(BlockingIOError):
            os.write(descriptors[0], b"x")
        show(sock, sealed_file(CONFIGURATION))
        packet, more, _, _ = socket.recv_fds(sock, limits.LAUNCHER_MESSAGE_MAX, 1)
        assert launcher.kind_of(packet) is (Kind.REFUSED if status else Kind.ADMITTED)
        assert len(more) == 1 - status
        for descriptor in more:
            os.write(descriptor, b"domain")
            os.close(descriptor)
        with pytest.raises((BlockingIOError, BrokenPipeError)):
            os.write(descriptors[0], b"x")
    assert keeper.xl_input.read_bytes() == (b"" if status else xlwords.stream_head(CONFIGURATION) + b"domain")
    assert b'"web1"' in keeper.hook_ran.read_bytes()


@pytest.mark.parametrize("case", [*sorted(NO_CONFIGURATION.keys() - {"a descriptor with a note"}), "START"])
def test_no_question(keeper: Keeper, case: str) -> None:
    """With CHECK too, a configuration is a sealed memory file of the length that is said, and nothing else is answered; xl is asked nothing."""
    attack, said = NO_CONFIGURATION.get(case, (lambda sock: sock.send(START), "START between receiver and launcher where CONFIGURATION belongs"))
    with keeper.connection() as (sock, challenge):
        sock.send(push(keeper.request(challenge, Purpose.CHECK)))
        assert authenticated(sock)
        attack(sock)
        assert refused_or_gone(sock)
    keeper.assert_nothing_started(said)
