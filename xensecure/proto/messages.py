"""The four handshake messages and the payloads of the control frames: docs/protocol.md, sections 3 and 4."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from . import limits
from .errors import ProtocolError, Reason
from .request import ReceiveRequest
from .wire import Reader, pull_texts, push_text, push_texts, push_uint, push_vector

VERSION = 1
MESSAGE_HEADER_LEN = 1 + 2  # bytes: type, length


class Feature(enum.IntFlag):
    """What a source offers and a destination selects in ``features`` (section 3); the other bits are free."""

    NONE = 0
    ZSTD = 1  # DATA of channel 0 may be compressed (F17)


class MessageType(enum.IntEnum):
    """Handshake messages (section 3)."""

    SOURCE_HELLO = 1
    DESTINATION_HELLO = 2
    SOURCE_PROOF = 3
    DESTINATION_PROOF = 4


class Purpose(enum.IntEnum):
    """What a connection is for; part of the source's hello and so of the transcript."""

    MIGRATE = 1
    PAIR = 2
    ROTATE = 3
    JOIN = 4  # a further link of a session
    RESUME = 5  # a link in the place of those that a session has lost
    QUERY = 6  # what became of a session
    CHECK = 7  # how the destination is, and what it would say to a domain


# Those whose hello names a session.
OF_A_SESSION = (Purpose.JOIN, Purpose.RESUME, Purpose.QUERY)


class FrameType(enum.IntEnum):
    """Frames (section 4)."""

    OPEN = 1
    ACCEPT = 2
    REFUSE = 3
    DATA = 4
    ACK = 5
    END = 6
    EXIT = 7
    KEEPALIVE = 8
    OUTCOME = 9
    ABORT = 12


def push_message(kind: MessageType, body: bytes) -> bytes:
    """A handshake message with its header."""
    return push_uint(kind, 1) + push_vector(body, 2)


def message_body(message: bytes, kind: MessageType) -> bytes:
    """The body of one whole message of the given type."""
    reader = Reader(message, kind.name)
    if reader.pull_uint(1) != kind:
        raise ProtocolError(f"another message where {kind.name} belongs")
    body = reader.pull_vector(2)
    reader.finish()
    return body


def _pull_version(reader: Reader) -> None:
    version = reader.pull_uint(1)
    if version != VERSION:
        raise ProtocolError(f"the peer speaks version {version} of the protocol, this host version {VERSION}; install the same release on both")


@dataclass(frozen=True)
class Contact:
    """Under which name, TCP port and addresses a host can be reached."""

    name: str
    port: int
    addresses: tuple[str, ...]

    def push(self) -> bytes:
        """The contact on the wire."""
        return push_text(self.name, 1) + push_uint(self.port, 2) + push_texts(self.addresses)

    @classmethod
    def pull(cls, reader: Reader) -> Contact:
        """Read a contact."""
        return cls(name=reader.pull_text(1), port=reader.pull_uint(2), addresses=pull_texts(reader, limits.ADDRESSES_MAX))


NO_CONTACT = Contact(name="", port=0, addresses=())


@dataclass(frozen=True)
class SourceHello:
    """What the source says first (C1); ``contact`` is NO_CONTACT unless the purpose is PAIR, ``session_id`` 16 bytes with JOIN, RESUME
    and QUERY alone.
    """

    purpose: Purpose
    key_id: bytes
    contact: Contact = NO_CONTACT
    features: int = Feature.NONE
    session_id: bytes = b""

    def push(self) -> bytes:
        """The whole message."""
        body = push_uint(VERSION, 1) + push_uint(self.features, 4) + push_uint(self.purpose, 1) + self.key_id + self.contact.push()
        return push_message(MessageType.SOURCE_HELLO, body + self.session_id)

    @classmethod
    def pull(cls, message: bytes) -> SourceHello:
        """Read a whole message."""
        reader = Reader(message_body(message, MessageType.SOURCE_HELLO), "SOURCE_HELLO")
        _pull_version(reader)
        features = reader.pull_uint(4)
        purpose = reader.pull_uint(1)
        if purpose not in Purpose.__members__.values():
            raise reader.fault(f"purpose {purpose}")
        hello = cls(
            purpose=Purpose(purpose),
            key_id=reader.pull_bytes(limits.KEY_ID_LEN),
            contact=Contact.pull(reader),
            features=features,
            session_id=reader.pull_bytes(limits.SESSION_ID_LEN) if purpose in OF_A_SESSION else b"",
        )
        reader.finish()
        if (hello.purpose is Purpose.PAIR) == (hello.contact == NO_CONTACT):
            raise reader.fault("a contact belongs to PAIR, and to nothing else")
        if hello.purpose is Purpose.PAIR and not (hello.contact.name and hello.contact.port):
            raise reader.fault("a contact without a name or a port")
        return hello


@dataclass(frozen=True)
class DestinationHello:
    """What the destination answers (C2); ``challenge`` is 32 bytes from the launcher."""

    challenge: bytes
    features: int = Feature.NONE

    def push(self) -> bytes:
        """The whole message."""
        return push_message(MessageType.DESTINATION_HELLO, push_uint(VERSION, 1) + push_uint(self.features, 4) + self.challenge)

    @classmethod
    def pull(cls, message: bytes, *, offered: int = Feature.NONE) -> DestinationHello:
        """Read a whole message; ``offered`` are the features that the source named."""
        reader = Reader(message_body(message, MessageType.DESTINATION_HELLO), "DESTINATION_HELLO")
        _pull_version(reader)
        hello = cls(features=reader.pull_uint(4), challenge=reader.pull_bytes(limits.CHALLENGE_LEN))
        reader.finish()
        if hello.features & ~int(offered):  # int: the complement of a Feature has no bits but those that are known
            raise reader.fault("it selects features that were not offered")
        return hello


@dataclass(frozen=True)
class Open:
    """The first frame of a migration: what the source has room for on channels 1 and 2 (bytes), and the request."""

    window1: int
    window2: int
    request: ReceiveRequest

    def push(self) -> bytes:
        """The payload of OPEN."""
        return push_uint(self.window1, 4) + push_uint(self.window2, 4) + self.request.push()

    @classmethod
    def pull(cls, payload: bytes) -> Open:
        """Read the payload of OPEN."""
        reader = Reader(payload, "OPEN")
        opened = cls(window1=_pull_window(reader), window2=_pull_window(reader), request=ReceiveRequest.pull(reader))
        reader.finish()
        return opened


@dataclass(frozen=True)
class Accept:
    """The destination's answer to a migration's OPEN: the session's id and what it has room for on channel 0 (bytes)."""

    session_id: bytes
    window0: int

    def push(self) -> bytes:
        """The payload of ACCEPT."""
        return self.session_id + push_uint(self.window0, 4)

    @classmethod
    def pull(cls, payload: bytes) -> Accept:
        """Read the payload of ACCEPT."""
        reader = Reader(payload, "ACCEPT")
        accepted = cls(session_id=reader.pull_bytes(limits.SESSION_ID_LEN), window0=_pull_window(reader))
        reader.finish()
        return accepted


def _pull_window(reader: Reader) -> int:
    window = reader.pull_uint(4)
    if window < limits.WINDOW_MIN:
        raise reader.fault(f"a window of {window} bytes, at least {limits.WINDOW_MIN} are needed")
    return window


@dataclass(frozen=True)
class Refusal:
    """Why a peer refuses (REFUSE) or ends (ABORT): the reason and one line of text."""

    reason: Reason
    text: str

    def push(self) -> bytes:
        """The payload; text past the limit is cut."""
        return push_uint(self.reason, 2) + self.text.encode("utf-8")[: limits.REASON_TEXT_MAX]

    @classmethod
    def pull(cls, payload: bytes) -> Refusal:
        """Read the payload; text is for people, so what does not print is replaced, not refused."""
        reader = Reader(payload[:2], "refusal")
        number = reader.pull_uint(2)
        reason = Reason(number) if number in Reason.__members__.values() else Reason.PROTOCOL
        return cls(reason=reason, text=printable(payload[2 : 2 + limits.REASON_TEXT_MAX].decode("utf-8", "replace")))


def printable(text: str) -> str:
    """Text from a peer as one harmless line: everything that could move a terminal's cursor becomes '?'."""
    return "".join(char if char.isprintable() else "?" for char in text)


class OutcomeState(enum.IntEnum):
    """What became of a session (section 7)."""

    UNKNOWN = 0
    GOING_ON = 1
    REPORTED = 2
    NOT_CLEARED = 3
    CLEARED = 4
    FAILED_OVER = 5

    @property
    def words(self) -> str:
        """As the journal and docs/protocol.md have it."""
        return self.name.lower().replace("_", " ")

    @classmethod
    def named(cls, words: str) -> OutcomeState:
        """The state of these words; KeyError if there is none."""
        return cls[words.upper().replace(" ", "_")]


@dataclass(frozen=True)
class Outcome:
    """The payload of OUTCOME: what one host knows of a session; ``status``: xl's, with REPORTED (else 0); ``text`` is for people."""

    state: OutcomeState
    status: int = 0
    text: str = ""

    def push(self) -> bytes:
        """The payload; text past the limit is cut."""
        return push_uint(self.state, 1) + push_uint(self.status, 1) + self.text.encode("utf-8")[: limits.REASON_TEXT_MAX]

    @classmethod
    def pull(cls, payload: bytes) -> Outcome:
        """Read the payload."""
        reader = Reader(payload[:2], "OUTCOME")
        state, status = reader.pull_uint(1), reader.pull_uint(1)
        if state not in OutcomeState.__members__.values() or (status and state != OutcomeState.REPORTED):
            raise reader.fault(f"state {state} with status {status}")
        return cls(OutcomeState(state), status, printable(payload[2 : 2 + limits.REASON_TEXT_MAX].decode("utf-8", "replace")))


class ExitKind(enum.IntEnum):
    """How the destination's xl ended (F11)."""

    EXITED = 0
    SIGNALLED = 1
    UNKNOWN = 2


@dataclass(frozen=True)
class Exit:
    """How the destination's xl ended: a status or a signal number."""

    kind: ExitKind
    value: int

    def push(self) -> bytes:
        """The payload of EXIT."""
        return push_uint(self.kind, 1) + push_uint(self.value, 1)

    @classmethod
    def pull(cls, payload: bytes) -> Exit:
        """Read the payload of EXIT."""
        reader = Reader(payload, "EXIT")
        kind, value = reader.pull_uint(1), reader.pull_uint(1)
        reader.finish()
        if kind not in ExitKind.__members__.values():
            raise reader.fault(f"kind {kind}")
        return cls(kind=ExitKind(kind), value=value)

    @classmethod
    def from_returncode(cls, code: int) -> Exit:
        """From subprocess's returncode, where a signal is negative."""
        return cls(kind=ExitKind.SIGNALLED, value=-code) if code < 0 else cls(kind=ExitKind.EXITED, value=code & 0xFF)

    def describe(self) -> str:
        """In words."""
        if self.kind is ExitKind.EXITED:
            return f"exit status {self.value}"
        if self.kind is ExitKind.SIGNALLED:
            return f"killed by {_signal_name(self.value)}"
        return "unknown end"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
