"""The neighbour guard on a real kernel's tables: an hour's worth of ageing, cables that are pulled, failovers, and routes that change."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.segment import ATTACKER, DESTINATION, DEVICE, SOURCE, SWITCH, Family, Segment, address
from tests.pair import wait_for
from xensecure.link.config import HostOptions
from xensecure.link.neighbours import NeighbourState, Watcher
from xensecure.proto.errors import ConnectError
from xensecure.source.guard import Guard

HOUR_OF_CYCLES = 3600 // 30  # an entry in use is looked after every base_reachable_time, half to one and a half of 30 s
NEWS = 8.0  # seconds until what the kernel gives no word of has been noticed, and that is not noticed what is none
ELSEWHERE = "203.0.113.2"  # an address of the destination's behind a gateway


class Line:
    """A connection from source to destination, and a guard on it."""

    def __init__(self, segment: Segment, family: Family = Family.IPV4, *, to: str = "", options: HostOptions | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self.woken = 0
        kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
        self.guard = Guard(options or HostOptions(), wake=self._wake)
        self._stack.callback(self.guard.end)
        with contextlib.ExitStack() as failed:
            failed.push(self._stack)
            with segment.inside(DESTINATION):
                server = self._stack.enter_context(socket.create_server(("", 0), family=kind))
            where = (to or address(DESTINATION, family), server.getsockname()[1])
            with segment.inside(SOURCE):
                self.sock = self._stack.enter_context(socket.create_connection(where, timeout=10))
                self.far = self._stack.enter_context(server.accept()[0])
                self.guard.watch(self.sock)  # its thread is the source's, as ours is meanwhile
            failed.pop_all()
        wait_for(lambda: any(watched.first.hardware for watched in self.guard._watched.values()), "the guard to know the way")

    def _wake(self) -> None:
        self.woken += 1

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Said:
    """What is said on standard error."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.text = ""

    def now(self) -> str:
        """All so far."""
        self.text += self._capture.readouterr().err
        return self.text

    def wait(self, words: str, seconds: float = NEWS) -> None:
        """Until it has been said."""
        wait_for(lambda: words in self.now(), f"{words!r} in {self.text!r}", seconds)


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    """Standard error as it grows."""
    return Said(capfd)


def settings(segment: Segment, host: str, family: Family, **values: int) -> None:
    """Set a host's timers of neighbour entries."""
    version = "ipv6" if family is Family.IPV6 else "ipv4"
    with segment.inside(host):
        for name, value in values.items():
            Path(f"/proc/sys/net/{version}/neigh/{DEVICE}/{name}").write_text(str(value))


@pytest.mark.parametrize("family", list(Family))
def test_an_hours_worth_of_ageing(segment: Segment, said: Said, family: Family) -> None:
    """Entries in use go round from REACHABLE to PROBE and back as often as in an hour, are deleted and learned again: not a word."""
    before = {"base_reachable_time_ms": 30000, "delay_first_probe_time": 5, "retrans_time_ms": 1000}
    settings(segment, SOURCE, family, base_reachable_time_ms=8, delay_first_probe_time=0, retrans_time_ms=8)
    seen: list[NeighbourState] = []
    gone = 0
    try:
        with segment.inside(SOURCE):
            watcher = Watcher()
        kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
        with Line(segment, family) as line, watcher, segment.inside(SOURCE), socket.socket(kind, socket.SOCK_DGRAM) as talk:
            end = time.monotonic() + 20
            while seen.count(NeighbourState.REACHABLE) < HOUR_OF_CYCLES and time.monotonic() < end:
                with contextlib.suppress(OSError):
                    talk.sendto(b"x", (address(DESTINATION, family), 9))
                time.sleep(0.002)
                seen += [entry.state for entry in watcher.read().neighbours if entry.address == address(DESTINATION, family)]
                if seen.count(NeighbourState.REACHABLE) // 20 > gone:
                    gone += 1
                    segment.run(SOURCE, "ip", "neigh", "flush", "dev", DEVICE)
            assert line.guard.stopped == ""
    finally:
        settings(segment, SOURCE, family, **before)
    assert seen.count(NeighbourState.REACHABLE) >= HOUR_OF_CYCLES, seen[-20:]
    assert NeighbourState.STALE in seen or NeighbourState.PROBE in seen
    assert gone >= 4
    assert said.now() == ""


def test_cut_cables_and_flaps(segment: Segment, said: Said) -> None:
    """A cable that is pulled until the entry has failed, and an interface that goes down and comes up with its routes: not a word."""
    options = HostOptions(interface=DEVICE, neighbour="refuse")
    settings(segment, SOURCE, Family.IPV4, base_reachable_time_ms=8, delay_first_probe_time=0, retrans_time_ms=8)
    with segment.inside(SOURCE):
        watcher = Watcher()
    with Line(segment, options=options) as line, watcher, segment.inside(SOURCE), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
        states: list[NeighbourState] = []

        def passed(wanted: NeighbourState) -> bool:
            with contextlib.suppress(OSError):
                talk.sendto(b"x", (address(DESTINATION), 9))
            states.extend(entry.state for entry in watcher.read().neighbours if entry.address == address(DESTINATION))
            return wanted in states

        for _ in range(3):
            segment.run(SWITCH, "ip", "link", "set", "to-hv2", "down")
            states.clear()
            wait_for(lambda: passed(NeighbourState.FAILED), "a failed entry")
            segment.run(SWITCH, "ip", "link", "set", "to-hv2", "up")
            states.clear()
            wait_for(lambda: passed(NeighbourState.REACHABLE), "a reachable entry")
            for state in ("down", "up"):
                segment.run(SOURCE, "ip", "link", "set", DEVICE, state)
            states.clear()
            wait_for(lambda: passed(NeighbourState.REACHABLE), "a reachable entry after a flap")
        line.sock.sendall(b"alive")
        assert line.far.recv(5) == b"alive"
        assert line.guard.stopped == ""
    segment.run(SOURCE, "ip", "addr", "add", f"{address(SOURCE, Family.IPV6)}/64", "dev", DEVICE)
    settings(segment, SOURCE, Family.IPV4, base_reachable_time_ms=30000, delay_first_probe_time=5, retrans_time_ms=1000)
    assert said.now() == ""


def test_failover(segment: Segment, said: Said) -> None:
    """The active port of a bond at the destination changes, announced by gratuitous ARP: not a word.

    Where the kernel has no bonds, a bridge of two ports of which one is up: as a bond with fail_over_mac=none it keeps its hardware address.
    """
    hardware = segment.hardware(DESTINATION)
    settings(segment, SOURCE, Family.IPV4, base_reachable_time_ms=8, delay_first_probe_time=0, retrans_time_ms=8)

    def ip(*words: str) -> None:
        segment.run(DESTINATION, "ip", *words)

    with segment.second_cable(DESTINATION, "eth1"):
        is_bond = segment.run(DESTINATION, "ip", "link", "add", "pair0", "type", "bond", "mode", "active-backup", check=False).returncode == 0
        if not is_bond:
            ip("link", "add", "pair0", "address", hardware, "type", "bridge")
        ip("addr", "flush", "dev", DEVICE)
        for port in (DEVICE, "eth1"):
            ip("link", "set", port, "down")
            ip("link", "set", port, "master", "pair0")
        ip("link", "set", "pair0", "address", hardware, "up")
        ip("addr", "add", f"{address(DESTINATION)}/24", "dev", "pair0")
        ip("link", "set", DEVICE, "up")
        try:
            with Line(segment) as line:
                for active, other in (("eth1", DEVICE), (DEVICE, "eth1"), ("eth1", DEVICE)):
                    ip("link", "set", other, "down")
                    ip("link", "set", active, "up")
                    announce(segment, DESTINATION, hardware, "pair0")
                    line.sock.sendall(b"alive")
                    line.far.settimeout(10)
                    assert line.far.recv(5) == b"alive"
        finally:
            ip("link", "del", "pair0")
            ip("link", "set", DEVICE, "up")
            ip("addr", "add", f"{address(DESTINATION)}/24", "dev", DEVICE)
            ip("addr", "add", f"{address(DESTINATION, Family.IPV6)}/64", "dev", DEVICE)
            settings(segment, SOURCE, Family.IPV4, base_reachable_time_ms=30000, delay_first_probe_time=5, retrans_time_ms=1000)
    assert said.now() == ""


def announce(segment: Segment, host: str, hardware: str, device: str = DEVICE) -> None:
    """A gratuitous ARP, as a bond sends it after a failover, and a host with a new card."""
    own, ip = bytes.fromhex(hardware.replace(":", "")), socket.inet_aton(address(host))
    packet = b"\xff" * 6 + own + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + own + ip + bytes(6) + ip
    with segment.inside(host), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        raw.send(packet)


@contextlib.contextmanager
def moved(segment: Segment, host: str, hardware: str) -> Iterator[None]:
    """A host with another hardware address, of which it tells."""
    before = segment.hardware(host)

    def change(to: str) -> None:
        for words in (["down"], ["address", to], ["up"]):
            segment.run(host, "ip", "link", "set", DEVICE, *words)
        time.sleep(1.1)  # no entry changes twice in a second (locktime of arp(7))
        announce(segment, host, to)

    change(hardware)
    try:
        yield
    finally:
        change(before)
        segment.run(host, "ip", "-6", "addr", "replace", f"{address(host, Family.IPV6)}/64", "dev", DEVICE)


def test_another_card_and_a_pinned_entry(segment: Segment, said: Said) -> None:
    """A new hardware address is said with the old one; pinned by the operator it is right, and that is said too."""
    old, new = segment.hardware(DESTINATION), "02:00:00:00:77:01"
    with Line(segment):
        with moved(segment, DESTINATION, new):
            said.wait(f"SECURITY: neighbour guard: the hardware address of {address(DESTINATION)} on {DEVICE} was {old}, and is {new} now")
            segment.run(SOURCE, "ip", "neigh", "replace", address(DESTINATION), "lladdr", new, "nud", "permanent", "dev", DEVICE)
            said.wait(f"neighbour guard: the way to {address(DESTINATION)} is as it was")
        segment.run(SOURCE, "ip", "neigh", "del", address(DESTINATION), "dev", DEVICE)
    segment.forget_neighbours()


@pytest.fixture
def behind_gateway(segment: Segment) -> Iterator[None]:
    """The attacker's host is a router here, and leads to an address of the destination's."""
    segment.run(DESTINATION, "ip", "addr", "add", f"{ELSEWHERE}/32", "dev", "lo")
    hops = {SOURCE: ATTACKER, ATTACKER: DESTINATION}
    for host, hop in hops.items():
        segment.run(host, "ip", "route", "add", f"{ELSEWHERE}/32", "via", address(hop))
    with segment.inside(ATTACKER):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    yield
    with segment.inside(ATTACKER):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    for host in hops:
        segment.run(host, "ip", "route", "del", f"{ELSEWHERE}/32", check=False)  # it goes with a card that goes down
        segment.run(host, "ip", "route", "flush", "cache")
    segment.run(DESTINATION, "ip", "addr", "del", f"{ELSEWHERE}/32", "dev", "lo")
    segment.forget_neighbours()


@pytest.mark.usefixtures("behind_gateway")
def test_gateway(segment: Segment, said: Said) -> None:
    """Behind a gateway its entry is watched: the line names it, and both hardware addresses."""
    router, other = segment.hardware(ATTACKER), "02:00:00:00:77:02"
    with Line(segment, to=ELSEWHERE), moved(segment, ATTACKER, other):
        said.wait(f"the hardware address of the gateway {address(ATTACKER)} to {ELSEWHERE} on {DEVICE} was {router}, and is {other} now")


@pytest.mark.usefixtures("behind_gateway")
def test_redirect(segment: Segment, said: Said) -> None:
    """An ICMP redirect to another gateway is said, a route of which the kernel gives no word."""
    with Line(segment, to=ELSEWHERE):
        with segment.inside(ATTACKER):
            for name in ("all", DEVICE):
                Path(f"/proc/sys/net/ipv4/conf/{name}/send_redirects").write_text("1")
        segment.run(ATTACKER, "ip", "route", "flush", "cache")
        with segment.inside(SOURCE), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
            for _ in range(10):  # after the first redirect the source only looks for the new gateway
                with contextlib.suppress(OSError):
                    talk.sendto(b"x", (ELSEWHERE, 9))
                time.sleep(0.1)
        words = f"went over {DEVICE} by {address(ATTACKER)}, and goes over {DEVICE} by {address(DESTINATION)} now"
        said.wait(f"SECURITY: neighbour guard: the route to {ELSEWHERE} {words}")
    with segment.inside(ATTACKER):
        for name in ("all", DEVICE):
            Path(f"/proc/sys/net/ipv4/conf/{name}/send_redirects").write_text("0")


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("interface", ["", DEVICE])
def test_another_interface(segment: Segment, said: Said, interface: str, family: Family) -> None:
    """A route that moves to another interface is said with both, and with "refuse" breaks the connection; it is over when the route is back."""
    bits = "128" if family is Family.IPV6 else "32"
    options = HostOptions(neighbour="refuse", interface=interface)
    with segment.second_cable(SOURCE, "eth1"), Line(segment, family, options=options) as line:
        segment.run(SOURCE, "ip", "link", "set", "eth1", "up")
        time.sleep(0.2)
        assert line.guard.stopped == ""
        segment.run(SOURCE, "ip", "route", "add", f"{address(DESTINATION, family)}/{bits}", "dev", "eth1")
        words = f"goes over eth1, and not over {DEVICE}" if interface else f"went over {DEVICE}, and goes over eth1 now"
        said.wait(f"SECURITY: neighbour guard: the route to {address(DESTINATION, family)} {words}")
        wait_for(lambda: line.woken == 1, "the word to the session")
        assert line.guard.stopped.startswith("SECURITY: neighbour guard: the route")
        assert line.guard.is_suspicious()
        with pytest.raises(OSError):
            line.sock.sendall(b"x")
        segment.run(SOURCE, "ip", "route", "del", f"{address(DESTINATION, family)}/{bits}", "dev", "eth1")
        said.wait("is as it was")
        assert line.guard.is_suspicious()  # for some seconds more
    segment.forget_neighbours()  # the second cable has answered for the first


def test_second_address_there_from_the_start(segment: Segment, said: Said) -> None:
    """Whoever shows his own address beside the forged one is seen before a byte is sent, and a connection is not to be used."""
    forged = segment.hardware(ATTACKER)
    for host in (DESTINATION, ATTACKER):
        segment.run(SOURCE, "ip", "neigh", "replace", address(host), "lladdr", forged, "nud", "reachable", "dev", DEVICE)
    with segment.inside(SOURCE), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address(DESTINATION), 9))
        guard = Guard(HostOptions(neighbour="refuse"), wake=lambda: None)
        both = f"{address(DESTINATION)} and {address(ATTACKER)} on {DEVICE} both have the hardware address {forged}"
        with pytest.raises(ConnectError, match=f"SECURITY: neighbour guard: {both}; nothing is sent over this connection"):
            guard.watch(sock)
        reporting = Guard(HostOptions(), wake=lambda: None)
        reporting.watch(sock)
        said.wait(both)
        reporting.end()
    segment.forget_neighbours()


def test_changes_cost_no_thread_that_stays(segment: Segment) -> None:
    """A guard that has ended leaves no thread."""
    with Line(segment):
        assert any(thread.name == "neighbour guard" for thread in threading.enumerate())
    wait_for(lambda: not any(thread.name == "neighbour guard" for thread in threading.enumerate()), "the thread's end")
