"""The modified key exchange as a state machine without I/O: docs/protocol.md, section 3.

Rules of this file: all that decides which message may come when is in ``TABLE``; the diagram in docs/architecture.md is drawn from it.
A handshake that has failed stays failed. No message is acted on outside its state, and no byte is left over inside TLS at the end.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from dataclasses import dataclass

from . import limits
from .errors import AuthenticationError, Cause, ProtocolError
from .keyschedule import DirectionKeys, KeySchedule, Transcript, proofs_equal
from .messages import MESSAGE_HEADER_LEN, DestinationHello, Feature, MessageType, SourceHello, message_body, push_message
from .tls import RECORD_HEADER_LEN, Credentials, TlsChannel, certificate_names, certificate_pin, record_length


class Role(enum.Enum):
    """Which end of the connection."""

    SOURCE = "source"
    DESTINATION = "destination"


class State(enum.Enum):
    """Where a handshake stands."""

    TLS = "TLS"
    WAIT_DESTINATION_HELLO = "WAIT_DESTINATION_HELLO"
    WAIT_LINK_KEY = "WAIT_LINK_KEY"
    WAIT_DESTINATION_PROOF = "WAIT_DESTINATION_PROOF"
    WAIT_SOURCE_HELLO = "WAIT_SOURCE_HELLO"
    WAIT_CHALLENGE = "WAIT_CHALLENGE"
    WAIT_SOURCE_PROOF = "WAIT_SOURCE_PROOF"
    WAIT_VERDICT = "WAIT_VERDICT"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"


class Input(enum.Enum):
    """What moves a handshake on: a message of the peer's, or a word of our own side's."""

    TLS_ESTABLISHED = "TLS established"
    SOURCE_HELLO = "SOURCE_HELLO"
    DESTINATION_HELLO = "DESTINATION_HELLO"
    SOURCE_PROOF = "SOURCE_PROOF"
    DESTINATION_PROOF = "DESTINATION_PROOF"
    LINK_KEY = "link key given"
    CHALLENGE = "challenge given"
    ACCEPTED = "launcher accepts"


TABLE: dict[Role, dict[State, dict[Input, State]]] = {
    Role.SOURCE: {
        State.TLS: {Input.TLS_ESTABLISHED: State.WAIT_DESTINATION_HELLO},
        State.WAIT_DESTINATION_HELLO: {Input.DESTINATION_HELLO: State.WAIT_LINK_KEY},
        State.WAIT_LINK_KEY: {Input.LINK_KEY: State.WAIT_DESTINATION_PROOF},
        State.WAIT_DESTINATION_PROOF: {Input.DESTINATION_PROOF: State.CONFIRMED},
    },
    Role.DESTINATION: {
        State.TLS: {Input.TLS_ESTABLISHED: State.WAIT_SOURCE_HELLO},
        State.WAIT_SOURCE_HELLO: {Input.SOURCE_HELLO: State.WAIT_CHALLENGE},
        State.WAIT_CHALLENGE: {Input.CHALLENGE: State.WAIT_SOURCE_PROOF},
        State.WAIT_SOURCE_PROOF: {Input.SOURCE_PROOF: State.WAIT_VERDICT},
        State.WAIT_VERDICT: {Input.ACCEPTED: State.CONFIRMED},
    },
}

# While one of these lasts, a message of the peer's is looked at; otherwise what comes is kept back, still in its TLS records.
_LISTENING = {State.TLS, State.WAIT_DESTINATION_HELLO, State.WAIT_DESTINATION_PROOF, State.WAIT_SOURCE_HELLO, State.WAIT_SOURCE_PROOF}


@dataclass(frozen=True)
class AuthenticationRequest:
    """What the destination's launcher judges (C6): EKM, the transcript's parts, the source's proof, the names in its certificate."""

    ekm: bytes
    source_pin: bytes
    destination_pin: bytes
    source_hello: bytes
    destination_hello: bytes
    proof: bytes
    names: tuple[str, ...]

    def transcript(self) -> Transcript:
        """The transcript that the proof must be about."""
        return Transcript(
            source_pin=self.source_pin,
            source_hello=self.source_hello,
            destination_pin=self.destination_pin,
            destination_hello=self.destination_hello,
            key_id=SourceHello.pull(self.source_hello).key_id,
        )


class _Handshake:
    """What both roles share: records in, messages out of them, the table."""

    role: Role

    def __init__(self, tls: TlsChannel) -> None:
        self.state = State.TLS
        self.tls = tls
        self._buffer = bytearray()
        self._plaintext = bytearray()
        self._received = 0

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the network. Raises ProtocolError or AuthenticationError; the handshake has then failed."""
        with self._failing_for_good():
            if self.state is State.FAILED:
                raise ProtocolError("more bytes for a key exchange that has failed")
            self._buffer += data
            if self.state is State.CONFIRMED:
                return
            self._received += len(data)
            if self._received > limits.HANDSHAKE_BYTES_MAX:
                raise ProtocolError(f"more than {limits.HANDSHAKE_BYTES_MAX} bytes before the key exchange was complete")
            self._advance()

    def bytes_wanted(self) -> int:
        """How many bytes to read for the TLS record that is coming, and none of what follows it: that may be a frame's (T4)."""
        have = len(self._buffer)
        length = record_length(bytes(self._buffer[:RECORD_HEADER_LEN]))
        return max(1, (RECORD_HEADER_LEN if length is None else length) - have)

    @contextlib.contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        """Whatever is raised inside, the handshake has failed: no way out of here leaves it in a state that goes on."""
        try:
            yield
        except BaseException:
            self.state = State.FAILED
            raise

    def _advance(self) -> None:
        while self.state in _LISTENING:
            length = record_length(bytes(self._buffer[:RECORD_HEADER_LEN]))
            if length is None or length > len(self._buffer):
                return
            record = bytes(self._buffer[:length])
            del self._buffer[:length]
            self._plaintext += self.tls.feed(record)
            if self.state is State.TLS and self.tls.established:
                self._move(Input.TLS_ESTABLISHED)
                self._on_established()
            self._take_messages()

    def _take_messages(self) -> None:
        while self.state in _LISTENING and len(self._plaintext) >= MESSAGE_HEADER_LEN:
            length = MESSAGE_HEADER_LEN + int.from_bytes(self._plaintext[1:3], "big")
            if length > limits.MESSAGE_MAX:
                raise ProtocolError(f"a handshake message of {length} bytes, at most {limits.MESSAGE_MAX} are allowed")
            if length > len(self._plaintext):
                return
            message = bytes(self._plaintext[:length])
            del self._plaintext[:length]
            self._on_message(message)

    def _on_message(self, message: bytes) -> None:
        try:
            kind = MessageType(message[0])
        except ValueError:
            raise ProtocolError(f"an unknown handshake message, type {message[0]}") from None
        following = self._following(Input[kind.name])
        self._act(kind, message)
        self.state = following  # only now: CONFIRMED is never the state of a proof that has not been checked

    def _on_established(self) -> None:
        raise NotImplementedError

    def _act(self, kind: MessageType, message: bytes) -> None:
        raise NotImplementedError

    def _following(self, what: Input) -> State:
        """The state that the table gives; ProtocolError if it has none."""
        following = TABLE[self.role].get(self.state, {}).get(what)
        if following is None:
            raise ProtocolError(f"{what.value} in state {self.state.value}")
        if following is State.CONFIRMED and self._plaintext:
            raise ProtocolError("more bytes inside TLS than the key exchange has")
        return following

    def _move(self, what: Input) -> None:
        self.state = self._following(what)

    def data_to_send(self) -> bytes:
        """What must go to the network now."""
        return self.tls.drain()

    def trailing_data(self) -> bytes:
        """What came behind the last TLS record: the first bytes of frames (T4). Only once confirmed."""
        return bytes(self._buffer)


class SourceHandshake(_Handshake):
    """The source's side.

    Usage: ``start``; then ``receive_data`` and ``data_to_send`` until the state is WAIT_LINK_KEY; ``prove(link_key)``; again until CONFIRMED.
    Arguments: ``credentials``; ``hello``; ``expected_pin``: the destination's pin (32 bytes), None in CA mode; ``accepted_names``: in CA mode,
    those of which the destination's certificate must carry one.
    """

    role = Role.SOURCE

    def __init__(self, *, credentials: Credentials, hello: SourceHello, expected_pin: bytes | None, accepted_names: tuple[str, ...] = ()) -> None:
        super().__init__(TlsChannel(credentials, server=False, expected_pin=expected_pin))
        if expected_pin is None and not credentials.authorities:
            raise ValueError("without a CA the destination's pin is needed")
        self._own_pin = credentials.pin
        self._hello = hello
        self._accepted_names = accepted_names if expected_pin is None else None
        self._answer = b""
        self.features = Feature.NONE  # selected by the destination, and certain once the handshake is confirmed
        self.schedule: KeySchedule | None = None

    def start(self) -> None:
        """Make the first bytes."""
        self.tls.start()

    def _on_established(self) -> None:
        if self._accepted_names is not None:
            require_name(certificate_names(self.tls.peer_certificate()), self._accepted_names)
        self.tls.send(self._hello.push())

    def _act(self, kind: MessageType, message: bytes) -> None:
        if kind is MessageType.DESTINATION_HELLO:
            self.features = Feature(DestinationHello.pull(message, offered=self._hello.features).features)
            self._answer = message
        elif self.schedule is None or not proofs_equal(
            self.schedule.destination_proof(), message_body(message, MessageType.DESTINATION_PROOF)
        ):
            raise AuthenticationError(
                "the destination's proof is wrong: it does not hold our link key; this may be a man in the middle",
                impostor=True,
                cause=Cause.WRONG_PROOF,
            )

    def prove(self, link_key: bytes) -> None:
        """Give the link key (32 bytes); the proof is then ready to send (C6)."""
        with self._failing_for_good():
            self._move(Input.LINK_KEY)
            transcript = Transcript(
                source_pin=self._own_pin,
                source_hello=self._hello.push(),
                destination_pin=certificate_pin(self.tls.peer_certificate()),
                destination_hello=self._answer,
                key_id=self._hello.key_id,
            )
            self.schedule = KeySchedule(link_key=link_key, ekm=self.tls.exporter(), transcript=transcript)
            self.tls.send(push_message(MessageType.SOURCE_PROOF, self.schedule.source_proof()))
            self._take_messages()
            self._advance()


class DestinationHandshake(_Handshake):
    """The destination's side, as the receiver runs it: without any link key.

    Usage: ``receive_data`` and ``data_to_send`` until the state is WAIT_CHALLENGE; ``challenge`` with the launcher's 32 bytes; again until
    WAIT_VERDICT; give ``request()`` to the launcher; ``accept(proof)`` with its answer, or drop the connection.
    Arguments: ``credentials``; ``features``: those that are selected where the source offers them.
    """

    role = Role.DESTINATION

    def __init__(self, *, credentials: Credentials, features: Feature = Feature.NONE) -> None:
        super().__init__(TlsChannel(credentials, server=True))
        self._own_pin = credentials.pin
        self._known_features = features
        self.features = Feature.NONE  # selected, once the source is answered
        self._hello = b""
        self._source_hello = b""
        self._proof = b""

    def _on_established(self) -> None:
        """The source speaks first (C1)."""

    def _act(self, kind: MessageType, message: bytes) -> None:
        if kind is MessageType.SOURCE_HELLO:
            SourceHello.pull(message)
            self._source_hello = message
        else:
            self._proof = message_body(message, MessageType.SOURCE_PROOF)
            if len(self._proof) != limits.MAC_LEN:
                raise ProtocolError(f"a proof of {len(self._proof)} bytes")

    def challenge(self, challenge: bytes) -> None:
        """Answer the source's hello (C2)."""
        with self._failing_for_good():
            self._move(Input.CHALLENGE)
            self.features = Feature(self.source_hello.features & self._known_features)
            self._hello = DestinationHello(challenge=challenge, features=self.features).push()
            self.tls.send(self._hello)
            self._take_messages()
            self._advance()

    @property
    def source_hello(self) -> SourceHello:
        """What the source said; only once it has."""
        return SourceHello.pull(self._source_hello)

    def request(self) -> AuthenticationRequest:
        """What the launcher must judge; only in state WAIT_VERDICT."""
        certificate = self.tls.peer_certificate()
        return AuthenticationRequest(
            ekm=self.tls.exporter(),
            source_pin=certificate_pin(certificate),
            destination_pin=self._own_pin,
            source_hello=self._source_hello,
            destination_hello=self._hello,
            proof=self._proof,
            names=certificate_names(certificate),
        )

    def accept(self, proof: bytes) -> None:
        """Send the launcher's proof (32 bytes); frames follow."""
        with self._failing_for_good():
            self._move(Input.ACCEPTED)
            self.tls.send(push_message(MessageType.DESTINATION_PROOF, proof))


def require_name(names: tuple[str, ...], accepted: tuple[str, ...]) -> None:
    """CA mode: one of the certificate's names must be one of the peer's (T3); AuthenticationError otherwise."""
    if not {name.lower() for name in names} & {name.lower() for name in accepted}:
        shown = ", ".join(names) or "no name"
        raise AuthenticationError(f"the certificate is for {shown}, not for {' or '.join(accepted)}", impostor=True, cause=Cause.WRONG_CERTIFICATE)


@dataclass(frozen=True)
class LinkKeys:
    """The keys of one confirmed connection as one end uses them."""

    send: DirectionKeys
    receive: DirectionKeys


def source_link_keys(schedule: KeySchedule) -> LinkKeys:
    """What the source seals and opens frames with."""
    return LinkKeys(send=schedule.source_keys(), receive=schedule.destination_keys())


def destination_link_keys(schedule: KeySchedule) -> LinkKeys:
    """What the destination seals and opens frames with."""
    return LinkKeys(send=schedule.destination_keys(), receive=schedule.source_keys())
