"""One TCP connection from its first byte to authenticated frames: the handshakes of ``proto`` with a socket and a clock."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..proto import limits
from ..proto.errors import AuthenticationError, Cause, ConnectError, LinkLostError, ProtocolError, RefusedError, TurnedAwayError
from ..proto.handshake import DestinationHandshake, LinkKeys, SourceHandshake, State
from ..proto.messages import FrameType, Refusal
from .engine import Frame, Link, frame_length, wipe

_Candidate: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]  # as getaddrinfo gives them
_SOCKADDR_SIZE = 16  # bytes of struct sockaddr; AF_UNSPEC is 0
_FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


class Deadline:
    """A point in time, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self._end - time.monotonic())


@dataclass(frozen=True)
class Target:
    """Where to connect: addresses or names to try in order, port, own address ("" for any), family ("any", "inet", "inet6").

    ``segment``: bytes that a TCP segment may have in either direction, for a path that loses larger ones; 0: as many as the path takes.
    ``why_not``: why a socket address must not be connected to, in words; "" if it may.
    """

    addresses: tuple[str, ...]
    port: int
    bind: str = ""
    family: str = "any"
    segment: int = 0
    why_not: Callable[[tuple[Any, ...]], str] = field(default=lambda _: "", compare=False)


def connect(target: Target, deadline: Deadline) -> socket.socket:
    """A non-blocking connected socket to the first address that answers; ConnectError with every failure if none does.

    TurnedAwayError, if one was there and has reset the connection while we looked.
    """
    failures: list[str] = []
    kind_of_failure: type[ConnectError | TurnedAwayError] = ConnectError
    candidates = [found for address in target.addresses for found in _resolve(address, target, failures)]
    for number, (family, kind, protocol, _name, where) in enumerate(candidates):
        if why_not := target.why_not(where):
            failures.append(f"{where[0]}: {why_not}")
            continue
        # What is left of the time is shared out among those still to try, so that a silent first address leaves some for the rest.
        share = deadline.left() / (len(candidates) - number)
        try:
            return _connect_one((family, kind, protocol), where, target, share)
        except OSError as error:
            failures.append(f"{where[0]}: {error.strerror or 'timed out'}")
            if isinstance(error, ConnectionResetError):
                kind_of_failure = TurnedAwayError
    tried = "; ".join(failures) or "no address is known"
    raise kind_of_failure(f"cannot connect to port {target.port} ({tried}); is xensecured running there, and the port open?")


def _resolve(address: str, target: Target, failures: list[str]) -> Sequence[_Candidate]:
    """What a name or address stands for; why it stands for nothing goes to ``failures``."""
    try:
        return socket.getaddrinfo(address, target.port, _FAMILIES[target.family], socket.SOCK_STREAM)
    except OSError as error:
        failures.append(f"{address}: {error.strerror}")
    except UnicodeError:  # from the IDNA codec: an empty or overlong label
        failures.append(f"{address}: not a host's name")
    return []


def _connect_one(of: tuple[int, int, int], where: tuple[object, ...], target: Target, seconds: float) -> socket.socket:
    sock = socket.socket(*of)
    try:
        if target.bind:
            sock.bind((target.bind, 0))
        if target.segment:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, target.segment)
        sock.settimeout(max(0.001, seconds))
        sock.connect(where)
        prepare(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket) -> None:
    """Settings of every connection: non-blocking; nothing waits to fill a segment (F9)."""
    sock.settimeout(0)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # EINVAL: it has been reset already, which the first read or write says better
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def discard(sock: socket.socket) -> None:
    """Break a connection at once: what the kernel has taken and not yet sent is never sent, which neither shutdown(2) nor close(2) promises."""
    with contextlib.suppress(OSError):
        # connect(2) with AF_UNSPEC dissolves the association. PyDLL keeps other threads from closing the descriptor, and from its number, meanwhile.
        if sock.fileno() < 0 or ctypes.PyDLL(None).connect(sock.fileno(), bytes(_SOCKADDR_SIZE), _SOCKADDR_SIZE) == 0:
            return
        sock.shutdown(socket.SHUT_RDWR)


class Wire:
    """Whole pieces to and from a non-blocking socket, each before a deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._heard = False
        self.deadline = deadline

    def lost(self, why: str) -> LinkLostError:
        """The error for a connection that has ended: TurnedAwayError if the other side has not sent a byte."""
        return LinkLostError(why) if self._heard else TurnedAwayError(why)

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._sock, events)
        if not poll.poll(self.deadline.left() * 1000):
            raise ConnectError("the peer did not answer in time; see connect_timeout, and whether a firewall drops its packets", silent=True)

    def send(self, data: bytes) -> None:
        """Send it all."""
        view = memoryview(data)
        while view:
            try:
                sent = self._sock.send(view)
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            except OSError as error:
                raise self.lost(f"the connection broke: {error.strerror}; xensecured's log on the other host may say why") from None
            view = view[sent:]

    def receive(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes; b"" at the end of the stream."""
        while True:
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                self._wait(select.POLLIN)
            except OSError as error:
                raise self.lost(f"the connection broke: {error.strerror}; xensecured's log on the other host may say why") from None
            else:
                self._heard = self._heard or bool(data)
                return data

    def receive_exactly(self, size: int) -> bytes:
        """Exactly ``size`` bytes; LinkLostError if the stream ends before."""
        pieces = bytearray()
        while len(pieces) < size:
            piece = self.receive(size - len(pieces))
            if not piece:
                raise LinkLostError("the peer closed the connection")
            pieces += piece
        return bytes(pieces)


def run_handshake(wire: Wire, handshake: SourceHandshake | DestinationHandshake, until: State) -> None:
    """Exchange bytes until the handshake is in the state ``until``."""
    while True:
        try:
            _flush(wire, handshake)
            if handshake.state is until:
                return
            data = wire.receive(handshake.bytes_wanted())
            if not data:
                raise _ended(wire, handshake)
            handshake.receive_data(data)
        except (AuthenticationError, ProtocolError):
            with contextlib.suppress(LinkLostError, ConnectError):
                _flush(wire, handshake)  # OpenSSL's alert, so that the peer can say why
            raise


def _flush(wire: Wire, handshake: SourceHandshake | DestinationHandshake) -> None:
    data = handshake.data_to_send()
    if data:
        wire.send(data)


def _ended(wire: Wire, handshake: SourceHandshake | DestinationHandshake) -> AuthenticationError | LinkLostError:
    if handshake.state is State.WAIT_DESTINATION_PROOF:
        return AuthenticationError(
            "the peer does not accept our proof, or somebody cut the connection just then; try again; xensecure-launcher's log there may say why",
            cause=Cause.NOT_ACCEPTED,
        )
    if isinstance(handshake, DestinationHandshake):
        return LinkLostError("the source went away during the key exchange ('xensecurectl doctor' does that)")
    return wire.lost("the peer closed the connection during the key exchange; is xensecure-launcher running? xensecured's log there says more")


class FrameChannel:
    """Control frames, one at a time, before a pump takes over or where none is needed (PAIR, ROTATE)."""

    def __init__(self, sock: socket.socket, wire: Wire, keys: LinkKeys, *, cipher: str = "auto") -> None:
        self.sock = sock
        self.wire = wire
        self.link = Link(keys, cipher=cipher)

    def send(self, kind: FrameType, payload: bytes = b"") -> None:
        """Seal and send one frame on channel 0."""
        self.wire.send(self.link.seal(kind, payload))

    def receive(self, most: int = limits.CONTROL_PAYLOAD_MAX) -> Frame:
        """The next frame, whole and authenticated, of at most ``most`` bytes of payload; RefusedError if it is ABORT."""
        header = self.wire.receive_exactly(limits.FRAME_HEADER_LEN)
        length = frame_length(header)
        if length > limits.FRAME_HEADER_LEN + most + limits.FRAME_TAG_LEN:
            raise ProtocolError(f"a control frame of {length} bytes")
        frame = self.link.open(header + self.wire.receive_exactly(length - limits.FRAME_HEADER_LEN))
        if frame.flags:
            raise ProtocolError("an elided or compressed frame where a control frame belongs")
        if frame.channel or frame.offset:
            raise ProtocolError(f"{frame.type.name} on channel {frame.channel} at {frame.offset}, where 0 and 0 belong")
        if frame.type is FrameType.ABORT:
            given_up = Refusal.pull(frame.payload)
            raise RefusedError(f"the peer gave up: {given_up.text}", given_up.reason)
        return frame

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


def frames_after(
    sock: socket.socket, wire: Wire, handshake: SourceHandshake | DestinationHandshake, keys: LinkKeys, *, cipher: str
) -> FrameChannel:
    """The frames that follow a confirmed handshake (T5): whole TLS records are read until then, so none of their bytes can be here yet.

    ``keys`` are wiped: the link holds them now. ``cipher``: as in ``Link``.
    """
    require_nothing_behind(handshake)
    return frames_under(sock, wire, keys, cipher=cipher)


def require_nothing_behind(handshake: SourceHandshake | DestinationHandshake) -> None:
    """ProtocolError if bytes have come behind a handshake's last message."""
    if handshake.trailing_data():
        raise ProtocolError("bytes behind the key exchange before it was answered")


def frames_under(sock: socket.socket, wire: Wire, keys: LinkKeys, *, cipher: str) -> FrameChannel:
    """The frames of a connection whose ``keys`` are there; they are wiped: the link holds them now."""
    channel = FrameChannel(sock, wire, keys, cipher=cipher)
    for direction in (keys.send, keys.receive):
        wipe(direction.key)
        wipe(direction.iv)
    return channel


def peer_address(sock: socket.socket) -> str:
    """The address at the other end, as text."""
    try:
        name = sock.getpeername()
    except OSError:
        return "unknown"
    address = name[0] if isinstance(name, tuple) else os.fsdecode(name) or "local"
    return str(address).removeprefix("::ffff:")
