"""Somebody on the network who has no key, and wants two hosts to part."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.pair import PATIENCE, Host, Pair, free_port, wait_for
from xensecure.link.config import load_config
from xensecure.link.peers import Peers

# The source's third piece inside one connection is its proof: ClientHello, Finished with the hello, proof.
PROOF = 3


def key_ids(host: Host, peer: str) -> list[bytes]:
    """The ids of the link keys that a host shares with a peer, oldest first."""
    found = Peers(load_config(str(host.config))).get(peer)
    return [key.id for key in found.keys] if found else []


class Withholder:
    """A proxy that keeps the proof of one connection back, ends that connection towards the source, and delivers the proof later."""

    def __init__(self, target: int, *, connection: int) -> None:
        self._target = target
        self._victim = connection
        self._held: tuple[socket.socket, bytes] | None = None
        self.delivered = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", free_port()))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                number += 1
                threading.Thread(target=self._carry, args=(near, number), daemon=True).start()

    def _carry(self, near: socket.socket, number: int) -> None:
        far = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=_forward, args=(far, near), daemon=True).start()
        with contextlib.suppress(OSError):
            for piece in range(1, 1000):
                data = near.recv(65536)
                if not data:
                    break
                if number == self._victim and piece == PROOF:
                    self._held = (far, data)
                    near.shutdown(socket.SHUT_RDWR)
                    near.close()
                    return
                far.sendall(data)
        if self._held is not None and number > self._victim:
            self._deliver()
        far.close()

    def _deliver(self) -> None:
        assert self._held is not None
        far, proof = self._held
        with contextlib.suppress(OSError):
            far.sendall(proof)
            far.settimeout(PATIENCE)
            far.recv(1)  # nobody reads on: the destination's answer, or its end
        self.delivered.set()


def _forward(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)


@pytest.fixture
def attacked(new_pair: Pair) -> Iterator[tuple[Pair, Withholder]]:
    """Two hosts, and somebody on the way from hv1 to hv2 who strikes at the proof of the new key (R5): the second connection."""
    attacker = Withholder(new_pair.destination.port, connection=2)
    with contextlib.closing(attacker.listener):
        yield new_pair, attacker


def test_withheld_proof_does_not_part_the_hosts(attacked: tuple[Pair, Withholder]) -> None:
    """A proof of the new key that is delivered after its connection was cut leaves a key that both hosts have."""
    pair, attacker = attacked
    pair.source.configure(f"[host.hv2]\nport = {attacker.port}\n")
    said = pair.source.ctl("rotate", "hv2", status=11).stderr
    assert "run 'xensecurectl rotate hv2' again" in said
    assert attacker.delivered.wait(PATIENCE)
    wait_for(lambda: len(key_ids(pair.destination, "hv1")) == 1, "the late proof to be judged")
    assert set(key_ids(pair.source, "hv2")) & set(key_ids(pair.destination, "hv1"))
    pair.source.configure()
    pair.source.ctl("rotate", "hv2")
    assert key_ids(pair.source, "hv2") == key_ids(pair.destination, "hv1")
