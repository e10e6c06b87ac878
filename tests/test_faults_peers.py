"""Peers that behave as none should: many, silent, deaf, talking nonsense. A destination's effort is bounded, and others are served."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

from tests.faults.limits import cpu_seconds, memory_kib
from tests.pair import Pair, wait_for
from tests.xl.hosts import Point
from xensecure.link.config import load_config
from xensecure.link.identity import load_credentials
from xensecure.link.peers import Peers
from xensecure.proto import limits
from xensecure.proto.messages import FrameType, Purpose
from xensecure.proto.request import ReceiveRequest
from xensecure.source.establish import Connection, find_route, reach
from xensecure.source.migrate import open_session

SESSIONS = 50
STRANGERS = 1000


def expect_served(pair: Pair) -> None:
    """A migration arrives."""
    outcome = pair.migrate("web1", "-e").wait(30)
    assert outcome.status == 0, outcome.stderr
    assert pair.destination.xen.running() == ["web1"]


def test_fifty_sessions_at_once(pair: Pair, stream: Path) -> None:
    """Fifty domains from seven addresses are all under way at the same time, and all arrive."""
    names = [f"db{number:02}" for number in range(SESSIONS)]
    for name in names:
        pair.source.xen.create_domain(name, stream)
    pair.destination.xen.set_hold(Point.READY)
    running = [pair.migrate(name, "-e", transport=f"-b 127.0.4.{1 + number % 7} -o connect_timeout=60") for number, name in enumerate(names)]
    wait_for(lambda: len(pair.destination.children("xensecured")) == SESSIONS, "as many receivers", 60)
    wait_for(lambda: len(pair.destination.xen.calls("hold")) == SESSIONS, "all of them to be there", 90)
    assert pair.destination.xen.running() == []
    pair.destination.xen.release(Point.READY)
    assert [one.wait(60).status for one in running] == [0] * SESSIONS
    assert sorted(pair.destination.xen.running()) == names


def strangers(pair: Pair, number: int) -> list[socket.socket]:
    """So many connections from as many addresses as it takes that none of them is over its share."""
    made = []
    for count in range(number):
        address = f"127.0.{5 + count // 1600}.{1 + count // limits.UNAUTHENTICATED_PER_ADDRESS_MAX % 200}"
        made.append(socket.create_connection(("127.0.0.1", pair.destination.port), 10, source_address=(address, 0)))
    return made


def test_thousand_connections_without_a_handshake(pair: Pair) -> None:
    """Of a thousand connections that say nothing a bounded number has a process, each for the time of a handshake; then all is as before."""
    listener = pair.destination.processes["xensecured"].pid
    before = memory_kib(listener)
    most = 0
    made: list[socket.socket] = []
    try:
        for _ in range(STRANGERS // 50):
            made += strangers(pair, 50)
            most = max(most, len(pair.destination.children("xensecured")))
        begun = time.monotonic()
        assert most <= limits.UNAUTHENTICATED_MAX
        wait_for(lambda: not pair.destination.children("xensecured"), "the strangers' processes to end", limits.HANDSHAKE_SECONDS + 15)
        assert time.monotonic() - begun < limits.HANDSHAKE_SECONDS + 15
    finally:
        for sock in made:
            sock.close()
    assert memory_kib(listener) - before < 4 << 10
    assert "connections have not authenticated yet" in pair.destination.log("xensecured")
    expect_served(pair)


def test_garbage_at_line_rate(pair: Pair) -> None:
    """Peers that send random bytes as fast as they go are hung up on at once, cost the listener nothing that stays, and hold up nobody."""
    listener = pair.destination.processes["xensecured"].pid
    before = memory_kib(listener)
    over = threading.Event()
    sent = [0] * 3

    def flood(number: int) -> None:
        noise = os.urandom(1 << 16)
        while not over.is_set():
            where, own = ("127.0.0.1", pair.destination.port), (f"127.0.6.{number}", 0)
            with contextlib.suppress(OSError), socket.create_connection(where, 5, source_address=own) as sock:
                sent[number - 1] += 1
                while not over.is_set():
                    sock.sendall(noise)

    threads = [threading.Thread(target=flood, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    try:
        expect_served(pair)
        time.sleep(2)
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert min(sent) > 3, "each was hung up on, and came again"
    assert memory_kib(listener) - before < 4 << 10


def confirmed(pair: Pair) -> Connection:
    """A connection of a source that has proved itself."""
    config = load_config(str(pair.source.config))
    peers = Peers(config)
    return reach(config, peers, load_credentials(config), find_route(config, peers, "hv2", config.defaults), Purpose.MIGRATE)


def test_garbage_from_a_peer(pair: Pair) -> None:
    """A peer that has proved itself and then sends noise as fast as it goes has lost its link: xl sees its input end, nothing of it is delivered."""
    connection = confirmed(pair)
    open_session(connection, ReceiveRequest())
    sock = connection.channel.sock
    sock.settimeout(10)
    session = pair.destination.session()
    with contextlib.suppress(OSError):
        for _ in range(1 << 12):
            sock.sendall(os.urandom(1 << 16))
    wait_for(session.gone, "the session's end")
    connection.channel.close()
    end = pair.destination.last_end()
    assert end["outcome"].startswith("failed: SECURITY: ")
    assert not pair.destination.xen.domains()
    expect_served(pair)


def test_peer_that_does_not_read(pair: Pair, tmp_path: Path) -> None:
    """A peer that sends keepalives and reads nothing: what xl says is held up to its window and no further, without turning in circles."""
    noisy = tmp_path / "xl"
    noisy.write_text("#!/bin/sh\nhead -c 67108864 /dev/zero\ncat >/dev/null\n")
    noisy.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    tmp_path.parent.parent.chmod(0o755)
    with Pair(xl=noisy) as deaf:
        connection = confirmed(deaf)
        open_session(connection, ReceiveRequest())
        receiver = deaf.destination.session().receiver
        time.sleep(1)
        before, used, begun = memory_kib(receiver), cpu_seconds(receiver), time.monotonic()
        for _ in range(6):
            connection.channel.send(FrameType.KEEPALIVE)
            time.sleep(0.5)
        share = (cpu_seconds(receiver) - used) / (time.monotonic() - begun)
        assert memory_kib(receiver) - before < 1 << 10
        assert share < 0.1, f"{share:.0%} of a processor"
        connection.channel.close()
        wait_for(deaf.quiet, "the session's end")
