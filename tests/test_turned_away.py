"""A destination that has no room for strangers just now: a source that is turned away before it has heard a byte comes again, and only then (T6)."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Pair, wait_for
from xensecure.proto import limits, xlwords

BANNER = xlwords.BANNER
RESET = struct.pack("ii", 1, 0)  # struct linger: close at once, with a reset


class Doorman:
    """Stands before the destination: turns the first ``away`` connections away, in one of three ways, and lets the others through."""

    def __init__(self, port: int, *, away: int, how: str = "reset") -> None:
        self._port = port
        self._away = away
        self._how = how
        self.count = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.count += 1
                if self.count > self._away:
                    threading.Thread(target=self._pass_on, args=(sock,), daemon=True).start()
                    continue
                if self._how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                else:
                    sock.recv(1 << 16)  # a socket with unread bytes in it is reset when it is closed
                if self._how == "a byte":
                    sock.sendall(b"\x15")
                sock.close()

    def _pass_on(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, socket.create_connection(("127.0.0.1", self._port)) as there:
            ways = {sock: there, there: sock}
            while True:
                for each in select.select(list(ways), [], [])[0]:
                    data = each.recv(1 << 16)
                    if not data:
                        return
                    ways[each].sendall(data)

    def close(self) -> None:
        """Nobody else comes in."""
        self._listener.close()


@contextlib.contextmanager
def doorman(pair: Pair, *, away: int, how: str = "reset") -> Iterator[Doorman]:
    """A doorman before the pair's destination."""
    made = Doorman(pair.destination.port, away=away, how=how)
    try:
        yield made
    finally:
        made.close()


def said(pair: Pair, door: Doorman, *options: str) -> tuple[bytes, str]:
    """What xensecure gives its xl, which then ends, and what it says to people."""
    process = pair.pipe("-p", str(door.port), *options, "hv2", "xl", "migrate-receive")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    banner = process.stdout.read(len(BANNER))
    process.stdin.close()
    errors = process.stderr.read().decode()
    process.wait(20)
    process.stdout.close()
    process.stderr.close()
    return banner, errors


@pytest.mark.parametrize("how", ["reset", "end"])
def test_comes_again(pair: Pair, how: str) -> None:
    """Turned away three times, by a reset or an end, the source comes a fourth time and gets in, and says nothing of it."""
    with doorman(pair, away=3, how=how) as door:
        banner, errors = said(pair, door)
        assert banner == BANNER, errors
        assert door.count == 4
        assert "closed the connection" not in errors


def test_gives_up_in_time(pair: Pair) -> None:
    """Turned away again and again, it ends within connect_timeout with the reason, after waits that grow."""
    with doorman(pair, away=1000) as door:
        begun = time.monotonic()
        banner, errors = said(pair, door, "-o", "connect_timeout=2")
        assert (banner, time.monotonic() - begun < 5) == (b"", True)
        assert "xensecured" in errors
        assert 3 <= door.count <= 8


def test_heard_a_byte(pair: Pair) -> None:
    """Whoever has said something is not asked again: not even if it then hangs up."""
    with doorman(pair, away=1000, how="a byte") as door:
        assert said(pair, door)[0] == b""
        assert door.count == 1


def test_not_proved(pair: Pair) -> None:
    """A destination that does not take our proof is not asked again with the same key."""
    pair.destination.ctl("forget", "hv1")
    with doorman(pair, away=0) as door:
        banner, errors = said(pair, door)
        assert (banner, door.count) == (b"", 1)
        assert "does not accept our proof" in errors
    pair.source.ctl("forget", "hv2")
    pair.source.ctl("join", pair.destination.invite())


def test_24_at_once_from_one_address(pair: Pair, stream: Path) -> None:
    """24 domains that leave one address while it has as many strangers as it may are turned away, and all arrive."""
    names = [f"db{number:02}" for number in range(24)]
    for name in names:
        pair.source.xen.create_domain(name, stream)
    with contextlib.ExitStack() as strangers:
        for _ in range(limits.UNAUTHENTICATED_PER_ADDRESS_MAX):
            strangers.enter_context(socket.create_connection(("127.0.0.1", pair.destination.port)))
        running = [pair.migrate(name, "-e", transport="-o connect_timeout=60") for name in names]
        wait_for(lambda: "127.0.0.1: turned away" in pair.destination.log("xensecured"), "a source to be turned away")
    outcomes = [each.wait(90) for each in running]
    assert [outcome.status for outcome in outcomes] == [0] * 24, [outcome.stderr for outcome in outcomes if outcome.status]
    assert sorted(pair.destination.xen.running()) == names
