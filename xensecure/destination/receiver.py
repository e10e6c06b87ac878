"""The receiver: one connection from its first byte to its last, by a process that has no link key and no privilege."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..link.config import Config
from ..link.connection import Deadline, FrameChannel, Wire, frames_after, peer_address, require_nothing_behind, run_handshake
from ..link.engine import Compression, compiled_features, find_backend, wipe
from ..proto import launcher, limits
from ..proto.errors import AuthenticationError, Cause, LinkLostError, ProtocolError, Reason, RefusedError, SystemFailure
from ..proto.handshake import DestinationHandshake, State
from ..proto.launcher import Kind
from ..proto.messages import OF_A_SESSION, Accept, Exit, ExitKind, Feature, FrameType, Open, Outcome, Purpose, Refusal
from ..proto.tls import Credentials
from .held import sealed_file
from .packets import Packets
from .relay import Relay

# The launcher answers from memory and a few small files; xl's start is a fork and exec.
_LAUNCHER_SECONDS = 10.0


def connect_launcher(path: Path) -> Packets:
    """A connection to the launcher; SystemFailure if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise SystemFailure(f"{path}: {error.strerror}; is xensecure-launcher running, and [receive] user right?") from None
    return Packets(sock)


class Receiver:
    """Serves one connection; ``sock`` is connected and non-blocking. ``on_authenticated`` is called when the source has proved itself."""

    def __init__(self, sock: socket.socket, *, config: Config, credentials: Credentials) -> None:
        self._sock = sock
        self._config = config
        self._handshake = DestinationHandshake(credentials=credentials, features=compiled_features())
        self._address = peer_address(sock)
        self.peer = ""
        self.on_authenticated: Callable[[], None] = lambda: None

    def run(self) -> None:
        """The key exchange, then what the source came for. Raises what went wrong, for one line in the log."""
        find_backend(self._config.cipher)
        wire = Wire(self._sock, Deadline(limits.HANDSHAKE_SECONDS))
        run_handshake(wire, self._handshake, State.WAIT_CHALLENGE)
        with contextlib.closing(connect_launcher(self._config.launcher_socket)) as packets:
            channel = self._authenticate(wire, packets)
            self.on_authenticated()
            if channel is None:
                return  # it is the session's now that it was made for
            if self._handshake.source_hello.purpose is Purpose.MIGRATE:
                self._migrate(channel, packets)
            elif self._handshake.source_hello.purpose in OF_A_SESSION:
                self._answer(channel, packets)
            elif self._handshake.source_hello.purpose is Purpose.CHECK:
                self._check(channel, packets)
            else:
                self._pair(channel, packets)

    def _authenticate(self, wire: Wire, packets: Packets) -> FrameChannel | None:
        """The key exchange to its end; None for a connection that was given up to another session's receiver (J4)."""
        challenge, _ = packets.receive(_LAUNCHER_SECONDS)
        if not challenge:
            raise SystemFailure("the launcher closed its socket at once; its log says why")
        self._handshake.challenge(launcher.pull_challenge(challenge))
        run_handshake(wire, self._handshake, State.WAIT_VERDICT)
        packets.send(launcher.Authenticate(request=self._handshake.request(), address=self._address).push())
        packet, _ = packets.receive(_LAUNCHER_SECONDS)
        if not packet or launcher.kind_of(packet) is Kind.REFUSED:
            # Said to the network by closing the connection, whatever the reason (C7); the launcher's log has it.
            raise AuthenticationError("authentication failed; the launcher's log says why", cause=Cause.NOT_ACCEPTED)
        answer = launcher.Claimed.pull(packet) if launcher.kind_of(packet) is Kind.CLAIMED else launcher.Authenticated.pull(packet)
        wipe(packet)
        self.peer = answer.peer
        self._handshake.accept(answer.proof)
        wire.send(self._handshake.data_to_send())
        if isinstance(answer, launcher.Claimed):
            require_nothing_behind(self._handshake)
            packets.send(launcher.push_empty(Kind.SURRENDER), (self._sock.fileno(),))
            return None
        return frames_after(self._sock, wire, self._handshake, answer.keys, cipher=self._config.cipher)

    def _expect(self, packet: bytes, kind: Kind, channel: FrameChannel) -> None:
        """The launcher's answer must be ``kind``; its refusal goes to the source and is raised."""
        if not packet or launcher.kind_of(packet) is not kind:
            self._refuse(packet, channel)

    def _refuse(self, packet: bytes, channel: FrameChannel) -> NoReturn:
        """Say the launcher's no to the source."""
        refusal = launcher.pull_refused(packet) if packet else Refusal(Reason.LAUNCHER_LOST, "the launcher there has ended; its log says why")
        channel.send(FrameType.REFUSE, refusal.push())
        raise RefusedError(f"refused: {refusal.text}", refusal.reason)

    def _answer(self, channel: FrameChannel, packets: Packets) -> None:
        """JOIN, RESUME and QUERY where the connection is not given up: pass the launcher's no, or its word on the session, on."""
        if self._handshake.source_hello.purpose is Purpose.QUERY:
            payload = self._receive_frame(channel, FrameType.OUTCOME)
            if payload is None:
                return
            packets.send(launcher.push_outcome(Outcome.pull(payload)))
        packet, _ = packets.receive(_LAUNCHER_SECONDS)
        self._expect(packet, Kind.OUTCOME, channel)
        channel.send(FrameType.OUTCOME, launcher.pull_outcome(packet).push())

    def _check(self, channel: FrameChannel, packets: Packets) -> None:
        """CHECK (K1 to K4): the launcher says how this host is; a configuration goes to it as it came."""
        channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
        head = self._receive_frame(channel, FrameType.OPEN, limits.CONFIGURATION_MAX)
        if head is None:
            return
        descriptor = sealed_file(head)
        try:
            packets.send(launcher.push_configuration(len(head)), (descriptor,))
        finally:
            os.close(descriptor)
        packet, _ = packets.receive(limits.CHECK_SECONDS)
        self._expect(packet, Kind.REPORT, channel)
        channel.wire.deadline = Deadline(limits.HANDSHAKE_SECONDS)
        channel.send(FrameType.ACCEPT, launcher.pull_report(packet).push())

    def _pair(self, channel: FrameChannel, packets: Packets) -> None:
        """PAIR and ROTATE: the launcher stores, we pass it on (section 5)."""
        if self._receive_empty(channel, FrameType.OPEN) is None:
            return  # the proof of a new link key is all it came for (R5)
        packets.send(launcher.push_empty(Kind.STORE))
        packet, _ = packets.receive(_LAUNCHER_SECONDS)
        self._expect(packet, Kind.STORED, channel)
        channel.send(FrameType.ACCEPT)
        if self._receive_empty(channel, FrameType.END) is None:
            raise ProtocolError(f"{self.peer} went away before it had stored the link key")
        packets.send(launcher.push_empty(Kind.DONE))
        packet, _ = packets.receive(_LAUNCHER_SECONDS)
        self._expect(packet, Kind.COMPLETED, channel)
        channel.send(FrameType.EXIT, Exit(ExitKind.EXITED, 0).push())

    def _receive_empty(self, channel: FrameChannel, kind: FrameType) -> bytes | None:
        """As ``_receive_frame``, for frames that say all by their type."""
        payload = self._receive_frame(channel, kind)
        if payload:
            raise ProtocolError(f"{kind.name} with {len(payload)} bytes of payload")
        return payload

    def _receive_frame(self, channel: FrameChannel, kind: FrameType, most: int = limits.CONTROL_PAYLOAD_MAX) -> bytes | None:
        """The payload of the next frame, which must be ``kind``; None if the source closes instead. ``most``: bytes of it."""
        try:
            frame = channel.receive(most)
        except LinkLostError:
            return None
        if frame.type is not kind:
            raise ProtocolError(f"{frame.type.name} where {kind.name} belongs")
        return frame.payload

    def _migrate(self, channel: FrameChannel, packets: Packets) -> None:
        payload = self._receive_frame(channel, FrameType.OPEN)
        if payload is None:
            raise LinkLostError(f"{self.peer} went away before it said what it wants")
        opened = Open.pull(payload)
        packets.send(launcher.push_start(opened.request))
        packet, descriptors = packets.receive(_LAUNCHER_SECONDS, descriptors=3)
        self._expect(packet, Kind.STARTED, channel)
        if len(descriptors) != 3:
            raise SystemFailure("the launcher sent no pipes; restart it with the same release")
        window = limits.REMUS_WINDOW if opened.request.checkpointed else self._config.window
        started = launcher.Started.pull(packet)
        accept = Accept(session_id=started.session_id, window0=window)
        channel.send(FrameType.ACCEPT, accept.push())
        compress = Compression.ZSTD if Feature.ZSTD in self._handshake.features else Compression.OFF
        ends = (descriptors[0], descriptors[1], descriptors[2])
        relay = Relay(channel, packets, opened, started.wish, window, ends, self._config, compress)
        relay.whom = f"{self.peer} ({self._address})"
        relay.run()
