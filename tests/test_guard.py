"""The neighbour guard without a network: its verdict, the ageing of entries, a missing pyroute2, a broken connection."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pair import Pair
from xensecure.link.config import HostOptions
from xensecure.link.connection import discard
from xensecure.link.neighbours import Endpoints, Neighbour, NeighbourState, Way, endpoints_of, plain_address
from xensecure.proto.errors import ConfigurationError
from xensecure.source import guard as module
from xensecure.source.alarms import First, Kind, Known, Seen, is_certain, judge, remember
from xensecure.source.guard import Guard

TRUE, FORGED, OTHER = "02:00:00:00:00:02", "02:00:00:00:00:66", "02:00:00:00:00:07"
HV2, MALLORY, GATEWAY = "192.0.2.2", "192.0.2.66", "192.0.2.254"
DIRECT = Way(3, "eth0", HV2)
ROUTED = Way(3, "eth0", GATEWAY)
REACHABLE, STALE = NeighbourState.REACHABLE, NeighbourState.STALE
FAILED, PERMANENT = NeighbourState.FAILED, NeighbourState.PERMANENT


def entry(address: str, hardware: str, state: NeighbourState = REACHABLE, interface: int = 3) -> Neighbour:
    return Neighbour(interface, address, hardware, state)


def seen(way: Way | None, *entries: Neighbour, peer: str = HV2) -> Seen:
    return Seen(Endpoints(peer), way, entries)


KNOWN_FIRST = First(DIRECT, TRUE)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (seen(DIRECT, entry(HV2, FORGED)), (HV2, "eth0", TRUE, FORGED)),
        (seen(DIRECT, entry(HV2, FORGED, STALE)), (HV2, "eth0", TRUE, FORGED)),
    ],
)
def test_changed_hardware_address(now: Seen, words: tuple[str, ...]) -> None:
    """Another hardware address of the destination is an alarm that names both."""
    (alarm,) = judge(KNOWN_FIRST, now, Known())
    assert alarm.kind is Kind.HARDWARE
    assert all(word in alarm.text for word in words)


def test_gateway_is_watched_where_there_is_one() -> None:
    """Behind a gateway the entry that counts is the gateway's, and the line says so."""
    first = First(ROUTED, TRUE)
    peer = "198.51.100.2"
    (alarm,) = judge(first, seen(ROUTED, entry(GATEWAY, FORGED), entry(HV2, OTHER), peer=peer), Known())
    assert alarm.kind is Kind.HARDWARE
    assert f"the gateway {GATEWAY} to {peer}" in alarm.text
    assert judge(first, seen(ROUTED, entry(GATEWAY, TRUE), entry(HV2, FORGED), peer=peer), Known()) == []


def test_second_address_with_the_same_hardware_address() -> None:
    """Who answers for the destination and for himself is an alarm, also where the destination's entry was forged from the start."""
    first = First(DIRECT, FORGED)
    (alarm,) = judge(first, seen(DIRECT, entry(HV2, FORGED), entry(MALLORY, FORGED, STALE)), Known())
    assert alarm.kind is Kind.SHARED
    assert HV2 in alarm.text
    assert MALLORY in alarm.text
    assert FORGED in alarm.text


@pytest.mark.parametrize(
    ("other", "known"),
    [
        pytest.param(entry("192.0.2.3", TRUE), Known(addresses=frozenset({HV2, "192.0.2.3"})), id="peer's other address"),
        pytest.param(entry("2001:db8::2", TRUE), Known(), id="its IPv6 address"),
        pytest.param(entry("192.0.2.3", TRUE, PERMANENT), Known(), id="pinned"),
        pytest.param(entry("192.0.2.3", TRUE, FAILED | NeighbourState.NOARP), Known(), id="no ARP"),
        pytest.param(entry("192.0.2.3", OTHER), Known(), id="its own"),
    ],
)
def test_second_addresses_that_are_right(other: Neighbour, known: Known) -> None:
    """Two addresses of one host are no alarm where that is known."""
    assert judge(KNOWN_FIRST, seen(DIRECT, entry(HV2, TRUE), other), known) == []


def test_peer_by_one_of_two_shared_addresses() -> None:
    """That the peer is known by one of two addresses does not excuse the other."""
    known = Known(addresses=frozenset({HV2}))
    assert [alarm.kind for alarm in judge(KNOWN_FIRST, seen(DIRECT, entry(HV2, TRUE), entry(MALLORY, TRUE)), known)] == [Kind.SHARED]


@pytest.mark.parametrize(
    ("own", "other", "alarms"), [("2001:db8::2", "fe80::2", 0), ("fe80::2", "2001:db8::2", 0), ("2001:db8::2", "2001:db8::66", 1)]
)
def test_addresses_of_ipv6(own: str, other: str, alarms: int) -> None:
    """Every host of IPv6 has a link-local address beside its others; two others are an alarm."""
    way = Way(3, "eth0", own)
    assert len(judge(First(way, TRUE), seen(way, entry(own, TRUE), entry(other, TRUE), peer=own), Known())) == alarms


@pytest.mark.parametrize("hardware", ["00:00:5e:00:01:0a", "00:00:5e:00:02:0a", "00:00:0c:07:ac:01", "00:00:0c:9f:f0:01", "00:07:b4:00:01:01"])
def test_virtual_router(hardware: str) -> None:
    """A virtual router has several addresses; that its hardware address changes is an alarm all the same."""
    first = First(ROUTED, hardware)
    peer = "198.51.100.2"
    assert judge(first, seen(ROUTED, entry(GATEWAY, hardware), entry("192.0.2.253", hardware), peer=peer), Known()) == []
    assert [alarm.kind for alarm in judge(first, seen(ROUTED, entry(GATEWAY, FORGED), peer=peer), Known())] == [Kind.HARDWARE]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (Way(4, "eth1", HV2), ("went over eth0, and goes over eth1 now",)),
        (Way(3, "eth0", MALLORY), (f"went over eth0, and goes over eth0 by {MALLORY} now",)),
    ],
)
def test_changed_route(way: Way, words: tuple[str, ...]) -> None:
    """A route over another interface or by another gateway is an alarm that names both."""
    (alarm,) = judge(KNOWN_FIRST, seen(way, entry(way.hop, OTHER, interface=way.interface)), Known())
    assert alarm.kind is Kind.ROUTE
    assert all(word in alarm.text for word in (*words, HV2))


def test_migration_interface() -> None:
    """A route that is not over the named interface is an alarm from the start; one that is, is none."""
    (alarm,) = judge(First(), seen(DIRECT, entry(HV2, TRUE)), Known(interface="mig0"))
    assert alarm.kind is Kind.INTERFACE
    assert "goes over eth0, and not over mig0" in alarm.text
    assert judge(First(), seen(DIRECT, entry(HV2, TRUE)), Known(interface="eth0")) == []


def test_interface_made_anew() -> None:
    """An interface that has gone and come back, with another index, is the same one."""
    assert judge(KNOWN_FIRST, seen(None), Known(interface="eth0")) == []
    assert judge(KNOWN_FIRST, seen(replace(DIRECT, interface=9), entry(HV2, TRUE, interface=9)), Known(interface="eth0")) == []


def test_pinned_entry_is_the_operators_word() -> None:
    """A permanent entry is never an alarm, and what it says is what counts from then on."""
    now = seen(DIRECT, entry(HV2, OTHER, PERMANENT), entry(MALLORY, OTHER))
    assert judge(KNOWN_FIRST, now, Known()) == []
    first = remember(KNOWN_FIRST, now)
    assert first == First(DIRECT, OTHER)
    assert judge(first, seen(DIRECT, entry(HV2, OTHER)), Known()) == []
    assert [alarm.kind for alarm in judge(first, seen(DIRECT, entry(HV2, TRUE)), Known())] == [Kind.HARDWARE]


def test_what_is_first_stays_first() -> None:
    """The hardware address counts that was known first, whenever that was; another way's does not."""
    first = remember(First(), seen(DIRECT))
    assert first == First(DIRECT, "")
    first = remember(first, seen(Way(4, "eth1", HV2), entry(HV2, OTHER, interface=4)))
    assert first == First(DIRECT, "")
    first = remember(first, seen(DIRECT, entry(HV2, TRUE)))
    assert remember(first, seen(DIRECT, entry(HV2, FORGED))) == remember(first, seen(None)) == KNOWN_FIRST


def test_silence_is_no_all_clear() -> None:
    """An entry that has gone ends no alarm: only one that is there says that all is as it was."""
    assert not is_certain(KNOWN_FIRST, seen(DIRECT, entry(HV2, "", FAILED)))
    assert not is_certain(KNOWN_FIRST, seen(None))
    assert is_certain(KNOWN_FIRST, seen(DIRECT, entry(HV2, TRUE)))
    assert is_certain(First(Way(5, "wg0", HV2)), seen(Way(5, "wg0", HV2)))  # no hardware addresses there at all


def test_an_hour_of_ageing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """All states that the kernel takes an entry through in an hour, entries that go, links that are cut, other hosts that come: not a word."""
    guard, sock = watching(monkeypatch)
    rng = random.Random(6)
    seconds, changes = 0.0, 0
    states = itertools.cycle((STALE, NeighbourState.DELAY, NeighbourState.PROBE, REACHABLE))
    while seconds < 3600:
        seconds += rng.uniform(0.1, 45)  # base_reachable_time is 30 s, and an entry takes half to one and a half of it
        changes += 1
        guard._heed(module.Change(neighbours=[entry(HV2, TRUE, next(states))], ways=True))
        if changes % 7 == 0:
            guard._heed(module.Change(neighbours=[entry(HV2, "", FAILED), entry(HV2, "", NeighbourState.INCOMPLETE), entry(HV2, TRUE)]))
        if changes % 11 == 0:
            guard._heed(module.Change(neighbours=[entry(f"192.0.2.{rng.randrange(70, 250)}", f"02:00:00:00:01:{rng.randrange(256):02x}", STALE)]))
        if changes % 13 == 0:
            monkeypatch.setattr(module, "find_way", lambda _: None)
            guard._heed(module.Change(neighbours=[entry(HV2, "", FAILED)], ways=True))
            monkeypatch.setattr(module, "find_way", lambda _: DIRECT)
            guard._heed(module.Change(neighbours=[entry(HV2, TRUE)], ways=True))
    assert changes > 120
    assert guard.stopped == ""
    assert capfd.readouterr().err == ""
    guard._heed(module.Change(neighbours=[entry(HV2, FORGED), entry(HV2, TRUE)]))  # for a moment, and yet
    assert TRUE in (said := capfd.readouterr().err)
    assert FORGED in said
    sock.close()


def watching(monkeypatch: pytest.MonkeyPatch, mode: str = "report") -> tuple[Guard, socket.socket]:
    """A guard with one connection in a network that is ours to say; it has no thread."""
    monkeypatch.setattr(module, "endpoints_of", lambda _: Endpoints(HV2, "192.0.2.1"))
    monkeypatch.setattr(module, "find_way", lambda _: DIRECT)
    monkeypatch.setattr(module, "neighbours", lambda: [entry(HV2, TRUE)])
    guard = Guard(HostOptions(neighbour=mode), wake=lambda: None)
    guard._thread = threading.current_thread()
    sock = socket.socket()
    guard.watch(sock)
    guard._heed(module.Change(overrun=True))
    return guard, sock


def test_alarm_that_comes_and_goes(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where forger and true host answer in turn, a minute has two lines, and not sixty."""
    guard, sock = watching(monkeypatch)
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    for _ in range(60):
        now += 1
        guard._heed(module.Change(neighbours=[entry(HV2, FORGED)]))
        guard._heed(module.Change(neighbours=[entry(HV2, TRUE)]))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "SECURITY: neighbour guard: the hardware address of" in lines[0]
    assert lines[1] == f"xensecure: neighbour guard: the way to {HV2} is as it was"
    now += 1
    guard._heed(module.Change(neighbours=[entry(HV2, FORGED)]))
    assert len(capfd.readouterr().err.splitlines()) == 1
    sock.close()


def test_stop_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With "refuse" the connections are broken before anybody is told: whoever reads that may be slow."""
    guard, sock = watching(monkeypatch, "refuse")
    order: list[str] = []
    monkeypatch.setattr(module, "discard", lambda _: order.append("broken"))
    guard._tell = lambda _: order.append("told")
    guard._heed(module.Change(neighbours=[entry(HV2, FORGED)]))
    assert order == ["broken", "told"]
    sock.close()


def test_sprayed_addresses_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that have nothing to do with the way are not judged, and those that are gone are not kept."""
    guard, sock = watching(monkeypatch)
    looks: list[object] = []
    monkeypatch.setattr(guard, "_look", lambda *_, **__: looks.append(None))
    many = [f"198.51.100.{number}" for number in range(200)]
    guard._heed(module.Change(neighbours=[entry(address, "02:00:00:00:99:99") for address in many]))
    assert len(guard._table) == 201
    guard._heed(module.Change(neighbours=[entry(address, "") for address in many]))
    assert (len(guard._table), looks) == (1, [])
    guard._heed(module.Change(neighbours=[entry(many[0], TRUE)]))
    assert len(looks) == 1
    sock.close()


def test_moments_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way on which there has just been an alarm is used again only when it has been quiet for longer than a forger pauses."""
    guard, sock = watching(monkeypatch, "refuse")
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    assert not guard.is_suspicious()
    for pause in (2.0, 5.0):
        guard._heed(module.Change(neighbours=[entry(HV2, FORGED)]))
        guard._heed(module.Change(neighbours=[entry(HV2, TRUE)]))
        now += pause
        assert guard.is_suspicious()
    now += 1.1
    assert not guard.is_suspicious()
    sock.close()


def test_lost_words(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the kernel could not tell all changes, the tables are read anew."""
    guard, sock = watching(monkeypatch)
    monkeypatch.setattr(module, "neighbours", lambda: [entry(HV2, FORGED)])
    guard._heed(module.Change(overrun=True))
    assert FORGED in capfd.readouterr().err
    sock.close()


@pytest.mark.parametrize("mode", ["report", "refuse"])
def test_without_pyroute2(mode: str, tmp_path: Path) -> None:
    """Where pyroute2 is missing, "refuse" does not begin, and "report" has said so when it would have been needed."""
    (tmp_path / "pyroute2.py").write_text("raise ImportError('not here')\n")
    script = """
import socket, sys, time
from xensecure.link.config import HostOptions
from xensecure.link.neighbours import Endpoints
from xensecure.source import guard
guard.endpoints_of = lambda _: Endpoints("192.0.2.2", "192.0.2.1")
try:
    watching = guard.Guard(HostOptions(neighbour=sys.argv[1]), wake=lambda: None)
    for sock in (socket.socket(), socket.socket()):
        watching.watch(sock)
        time.sleep(1)
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}"}
    words = [sys.executable, "-c", script, mode]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=True).stderr.splitlines()
    assert len(said) == 1
    assert "python3-pyroute2 is not installed; install it, or set neighbour = " in said[0]
    assert said[0].startswith("ConfigurationError" if mode == "refuse" else "xensecure: neighbour guard: the way to the destination is not watched")


def test_refuses_to_begin_without_pyroute2(pair: Pair, tmp_path: Path) -> None:
    """The real command: xl keeps the domain, and the line says why."""
    (tmp_path / "pyroute2.py").write_text("raise ImportError('not here')\n")
    running = pair.pipe("-o", "neighbour=refuse", "hv2", "xl", "migrate-receive", env={"PYTHONPATH": str(tmp_path)})
    _, stderr = running.communicate(timeout=20)
    assert running.returncode == 255
    assert b'xensecure: neighbour = "refuse" cannot be kept: python3-pyroute2 is not installed; install it' in stderr
    assert pair.destination.xen.calls() == []


def test_guard_that_fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A guard that can watch no more says so; one that is to refuse lets nothing leave unwatched."""

    def fail() -> None:
        raise ConfigurationError("no more")

    for mode in ("report", "refuse"):
        guard, sock = watching(monkeypatch, mode)
        monkeypatch.setattr(module, "Watcher", fail)
        guard._run()
        assert "neighbour guard: the way to the destination is not watched: no more" in capfd.readouterr().err
        assert bool(guard.stopped) is (mode == "refuse")
        sock.close()


def test_discarded_connection_sends_no_more() -> None:
    """What the kernel holds of a broken connection never leaves, and its peer sees a reset."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        near.settimeout(0)
        sent = got = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += near.send(bytes(1 << 16))
        discard(near)
        discard(near)
        with far, contextlib.suppress(ConnectionResetError):
            while True:
                piece = far.recv(1 << 20)
                assert piece, "an end that nobody made"
                got += len(piece)
        assert 0 < got < sent
        with pytest.raises(OSError):
            near.send(b"more")
    discard(near)


def test_endpoints() -> None:
    """Addresses are compared in one form, and a connection within this host has no way to watch."""
    assert plain_address("::ffff:192.0.2.2") == "192.0.2.2"
    assert plain_address("fe80::1%eth0") == "fe80::1"
    assert plain_address("2001:DB8:0::2") == "2001:db8::2"
    assert Endpoints("127.0.0.1").is_local
    assert Endpoints("192.0.2.1", "192.0.2.1").is_local
    assert not Endpoints("192.0.2.2", "192.0.2.1").is_local
    one, other = socket.socketpair()
    with one, other, socket.socket() as unconnected:
        assert endpoints_of(one) is None
        assert endpoints_of(unconnected) is None
