"""A man in the middle on loopback: real TLS on both legs, with whatever certificates he could get, and frames opened and sealed again where he can.

He runs the protocol's own code, as an attacker would, with another will. Where he knows the link key he proves himself to both ends; where he
does not, he passes their proofs on as they are, which is the best that is left to him.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from dataclasses import dataclass, field

from xensecure.link.engine import Link, frame_length
from xensecure.proto import limits
from xensecure.proto.errors import XensecureError
from xensecure.proto.handshake import destination_link_keys, source_link_keys
from xensecure.proto.keyschedule import KeySchedule, Transcript
from xensecure.proto.messages import DestinationHello, FrameType, MessageType, SourceHello, push_message
from xensecure.proto.tls import Credentials, TlsChannel, certificate_pin, record_length

_PATIENCE = 20.0  # seconds on each socket
_HEADER = limits.FRAME_HEADER_LEN


@dataclass
class Loot:
    """What he got: the hello, stream bytes he read, how often he changed the planted bytes, and why it ended."""

    source_hello: bytes = b""
    read: int = 0
    changed: int = 0
    end: str = ""
    threads: list[threading.Thread] = field(default_factory=list)


class _Leg:
    """TLS with one end, over a socket."""

    def __init__(self, sock: socket.socket, credentials: Credentials, *, server: bool) -> None:
        self.sock = sock
        self.tls = TlsChannel(credentials, server=server)
        self._own_pin = credentials.pin
        self._server = server
        self._plaintext = b""
        if not server:
            self.tls.start()

    def handshake(self) -> None:
        """TLS's own."""
        self._flush()
        while not self.tls.established:
            self._feed()
            self._flush()

    def _flush(self) -> None:
        data = self.tls.drain()
        if data:
            self.sock.sendall(data)

    def exactly(self, size: int) -> bytes:
        """So many bytes from the socket; EOFError when it has ended."""
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _feed(self) -> None:
        head = self.exactly(5)
        self._plaintext += self.tls.feed(head + self.exactly((record_length(head) or 5) - 5))

    def message(self) -> bytes:
        """The next handshake message inside TLS."""
        while len(self._plaintext) < 3 or len(self._plaintext) < 3 + int.from_bytes(self._plaintext[1:3], "big"):
            self._feed()
        size = 3 + int.from_bytes(self._plaintext[1:3], "big")
        message, self._plaintext = self._plaintext[:size], self._plaintext[size:]
        return message

    def say(self, message: bytes) -> None:
        """Send one handshake message."""
        self.tls.send(message)
        self._flush()

    def schedule(self, link_key: bytes, source_hello: bytes, destination_hello: bytes) -> KeySchedule:
        """The key schedule of this leg, for one who knows the link key."""
        theirs = certificate_pin(self.tls.peer_certificate())
        source_pin, destination_pin = (theirs, self._own_pin) if self._server else (self._own_pin, theirs)
        transcript = Transcript(
            source_pin=source_pin,
            source_hello=source_hello,
            destination_pin=destination_pin,
            destination_hello=destination_hello,
            key_id=SourceHello.pull(source_hello).key_id,
        )
        return KeySchedule(link_key=link_key, ekm=self.tls.exporter(), transcript=transcript)


class ManInTheMiddle:
    """Answers on a port of loopback in the destination's place, and calls the destination in the source's.

    ``to_source``, ``to_destination``: his credentials on each leg; ``link_key``: the one he knows, or None; ``plant``: bytes that he looks for in
    the domain, and ``instead``, as many, that he puts there.
    """

    def __init__(
        self, target: int, *, to_source: Credentials, to_destination: Credentials, link_key: bytes | None, plant: bytes, instead: bytes
    ) -> None:
        assert len(plant) == len(instead)
        self._target = target
        self._to_source, self._to_destination = to_source, to_destination
        self._link_key = link_key
        self._plant, self._instead = plant, instead
        self.loot = Loot()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_PATIENCE)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="man in the middle")
        self._thread.start()

    def close(self) -> Loot:
        """Wait for his end; returns what he got."""
        self._thread.join(_PATIENCE * 2)
        assert not self._thread.is_alive()
        return self.loot

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._listener)
            try:
                source, _ = self._listener.accept()
                stack.enter_context(source)
                destination = stack.enter_context(socket.create_connection(("127.0.0.1", self._target), _PATIENCE))
                for sock in (source, destination):
                    sock.settimeout(_PATIENCE)
                self._attack(source, destination)
            except EOFError:
                self.loot.end = self.loot.end or "closed on him"
            except (OSError, XensecureError) as error:
                self.loot.end = f"{type(error).__name__}: {error}"

    def _attack(self, source: socket.socket, destination: socket.socket) -> None:
        near, far = _Leg(source, self._to_source, server=True), _Leg(destination, self._to_destination, server=False)
        near.handshake()
        far.handshake()
        self.loot.source_hello = near.message()
        far.say(self.loot.source_hello)
        far_answer = far.message()
        near_answer = far_answer if self._link_key is None else DestinationHello(challenge=secrets.token_bytes(32)).push()
        near.say(near_answer)
        proof = near.message()
        if self._link_key is None:
            far.say(proof)
            near.say(far.message())
            self._relay_blindly(near, far)
            return
        near_schedule = near.schedule(self._link_key, self.loot.source_hello, near_answer)
        far_schedule = far.schedule(self._link_key, self.loot.source_hello, far_answer)
        far.say(push_message(MessageType.SOURCE_PROOF, far_schedule.source_proof()))
        far.message()
        near.say(push_message(MessageType.DESTINATION_PROOF, near_schedule.destination_proof()))
        near_link, far_link = Link(destination_link_keys(near_schedule)), Link(source_link_keys(far_schedule))
        self._both_ways(lambda: self._relay(near, near_link, far, far_link, upwards=True), lambda: self._relay(far, far_link, near, near_link))

    def _both_ways(self, *ways: object) -> None:
        self.loot.threads = [threading.Thread(target=way) for way in ways]  # type: ignore[arg-type]
        for thread in self.loot.threads:
            thread.start()
        for thread in self.loot.threads:
            thread.join(_PATIENCE * 2)

    def _relay_blindly(self, near: _Leg, far: _Leg) -> None:
        def pass_on(one: _Leg, other: _Leg) -> None:
            with contextlib.suppress(OSError):
                while data := one.sock.recv(1 << 16):
                    other.sock.sendall(data)
                other.sock.shutdown(socket.SHUT_WR)

        self._both_ways(lambda: pass_on(near, far), lambda: pass_on(far, near))

    def _relay(self, one: _Leg, opens: Link, other: _Leg, seals: Link, *, upwards: bool = False) -> None:
        """Frames from one leg to the other, opened and sealed again."""
        try:
            while True:
                head = one.exactly(_HEADER)
                frame = opens.open(head + one.exactly(frame_length(head) - _HEADER))
                payload = frame.payload
                if upwards and frame.type is FrameType.DATA:
                    self.loot.read += len(payload)
                    self.loot.changed += payload.count(self._plant)
                    payload = payload.replace(self._plant, self._instead)
                other.sock.sendall(seals.seal(frame.type, payload, channel=frame.channel, offset=frame.offset, flags=frame.flags))
        except (EOFError, OSError, XensecureError):
            with contextlib.suppress(OSError):
                other.sock.shutdown(socket.SHUT_WR)
