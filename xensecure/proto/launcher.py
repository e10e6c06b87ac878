"""What receiver and launcher say to each other on their SOCK_SEQPACKET socket: one message a packet, typed, never a command line.

    receiver                                 launcher
                     ←  CHALLENGE            on connecting
    AUTHENTICATE     →
                     ←  AUTHENTICATED        or REFUSED, and the end
    START            →                       (MIGRATE)
                     ←  STARTED              with xl's three pipe ends, or REFUSED
    NOTE             →                       any number
                     ←  NOTED                after GO alone: the journal has it (S7)
    CONFIGURATION    →                       where STARTED has asked for it: a sealed memfd goes with it
                     ←  ADMITTED             with xl's standard input, which has the head by then (Wish.ASKED), or REFUSED
                     ←  EXITED
    STORE, DONE      →                       (PAIR, ROTATE)
                     ←  STORED, COMPLETED    or REFUSED
                     ←  CLAIMED              (JOIN) in AUTHENTICATED's place; without it AUTHENTICATED, and then REFUSED
    SURRENDER        →                       the TCP connection goes with it
                     ←  LANE                 to the receiver that has the session, at any time: that connection goes with it
                     ←  OUTCOME              (RESUME) behind AUTHENTICATED, where the session is over; (QUERY) as the answer to OUTCOME
    OUTCOME          →                       (QUERY) what the source knows
    CONFIGURATION    →                       (CHECK) a sealed memfd goes with it, empty where no domain is asked about
                     ←  REPORT               or REFUSED

RESUME begins as JOIN does.

A keeper that has judged a JOIN or RESUME hands the connection to the keeper that has the session, on that one's socket (docs/protocol.md, J2 to
J4, S3 to S5):

    judge                                    keeper of the session
    JOIN             →
                     ←  GRANTED              or REFUSED, or (RESUME) OVER: its receiver has gone, and xl there is ending; and the end
    LANE             →                       the TCP connection goes with it
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from . import limits
from .errors import ProtocolError, Reason
from .handshake import AuthenticationRequest, LinkKeys
from .hostreport import HostReport
from .keyschedule import DirectionKeys
from .memory import Memory
from .messages import Exit, Outcome, Refusal
from .request import ReceiveRequest
from .wire import Reader, pull_texts, push_text, push_texts, push_uint, push_vector


class Kind(enum.IntEnum):
    """Messages by their first byte."""

    CHALLENGE = 1
    AUTHENTICATE = 2
    AUTHENTICATED = 3
    REFUSED = 4
    START = 5
    STARTED = 6
    NOTE = 7
    EXITED = 8
    STORE = 9
    STORED = 10
    DONE = 11
    COMPLETED = 12
    CONFIGURATION = 13
    ADMITTED = 14
    CLAIMED = 15
    SURRENDER = 16
    JOIN = 17
    GRANTED = 18
    LANE = 19
    NOTED = 20
    OUTCOME = 21
    OVER = 22
    REPORT = 23


def kind_of(packet: bytes) -> Kind:
    """The type of a packet; ProtocolError for one that is empty or unknown."""
    try:
        return Kind(packet[0])
    except (IndexError, ValueError):
        raise ProtocolError("an unknown message between receiver and launcher; restart both with the same release") from None


def body(packet: bytes, kind: Kind) -> Reader:
    """A reader behind the first byte, which must be ``kind``."""
    if kind_of(packet) is not kind:
        raise ProtocolError(f"{kind_of(packet).name} between receiver and launcher where {kind.name} belongs")
    return Reader(memoryview(packet)[1:], kind.name)


def push_empty(kind: Kind) -> bytes:
    """A message that says all by its type."""
    return push_uint(kind, 1)


def push_challenge(challenge: bytes) -> bytes:
    """CHALLENGE."""
    return push_empty(Kind.CHALLENGE) + challenge


def pull_challenge(packet: bytes) -> bytes:
    """The 32 bytes of CHALLENGE."""
    reader = body(packet, Kind.CHALLENGE)
    challenge = reader.pull_bytes(limits.CHALLENGE_LEN)
    reader.finish()
    return challenge


@dataclass(frozen=True)
class Authenticate:
    """The request to be judged, and the address that it came from."""

    request: AuthenticationRequest = field(repr=False)
    address: str

    def push(self) -> bytes:
        """The packet."""
        request = self.request
        return (
            push_empty(Kind.AUTHENTICATE)
            + request.ekm
            + request.source_pin
            + request.destination_pin
            + push_vector(request.source_hello, 2)
            + push_vector(request.destination_hello, 2)
            + request.proof
            + push_texts(request.names)
            + push_text(self.address, 1)
        )

    @classmethod
    def pull(cls, packet: bytes) -> Authenticate:
        """Read the packet."""
        reader = body(packet, Kind.AUTHENTICATE)
        request = AuthenticationRequest(
            ekm=reader.pull_bytes(limits.EXPORTER_LEN),
            source_pin=reader.pull_bytes(limits.PIN_LEN),
            destination_pin=reader.pull_bytes(limits.PIN_LEN),
            source_hello=reader.pull_vector(2),
            destination_hello=reader.pull_vector(2),
            proof=reader.pull_bytes(limits.MAC_LEN),
            names=pull_texts(reader, limits.CERTIFICATE_NAMES_MAX),
        )
        message = cls(request=request, address=reader.pull_text(1))
        reader.finish()
        return message


@dataclass(frozen=True)
class Authenticated:
    """The launcher's yes: its proof for the source, this connection's keys (as the destination uses them), the peer's name."""

    proof: bytes
    keys: LinkKeys
    peer: str

    def push(self) -> bytes:
        """The packet."""
        return b"".join((push_empty(Kind.AUTHENTICATED), self.proof, *_key_parts(self.keys), push_text(self.peer, 1)))

    @classmethod
    def pull(cls, packet: bytes) -> Authenticated:
        """Read the packet."""
        reader = body(packet, Kind.AUTHENTICATED)
        message = cls(proof=reader.pull_bytes(limits.MAC_LEN), keys=_pull_keys(reader), peer=reader.pull_text(1))
        reader.finish()
        return message


def _key_parts(keys: LinkKeys) -> tuple[bytes, ...]:
    return keys.send.key, keys.send.iv, keys.receive.key, keys.receive.iv


def _pull_keys(reader: Reader) -> LinkKeys:
    return LinkKeys(send=_pull_direction(reader), receive=_pull_direction(reader))


def _pull_direction(reader: Reader) -> DirectionKeys:
    return DirectionKeys(key=reader.pull_bytes(limits.FRAME_KEY_LEN), iv=reader.pull_bytes(limits.FRAME_IV_LEN))


def push_refused(reason: Reason, text: str) -> bytes:
    """REFUSED."""
    return push_empty(Kind.REFUSED) + Refusal(reason=reason, text=text).push()


def pull_refused(packet: bytes) -> Refusal:
    """The refusal in REFUSED."""
    if kind_of(packet) is not Kind.REFUSED:
        raise ProtocolError(f"{kind_of(packet).name} between receiver and launcher where an answer belongs")
    return Refusal.pull(packet[1:])


def push_start(request: ReceiveRequest) -> bytes:
    """START."""
    return push_empty(Kind.START) + request.push()


def pull_start(packet: bytes) -> ReceiveRequest:
    """The request in START."""
    reader = body(packet, Kind.START)
    request = ReceiveRequest.pull(reader)
    reader.finish()
    return request


class Wish(enum.IntEnum):
    """What the launcher wants of the domain's configuration, for policy and hooks."""

    NOTHING = 0
    TOLD = 1  # CONFIGURATION as soon as it has passed; nothing waits for it
    ASKED = 2  # the same; xl's standard input comes with ADMITTED, and a socket that takes nothing stands in its place until then


@dataclass(frozen=True)
class Started:
    """The session's id; three descriptors go with it (xl's stdin to write, or what stands in its place; stdout and stderr to read)."""

    session_id: bytes
    wish: Wish = Wish.NOTHING

    def push(self) -> bytes:
        """The packet."""
        return push_empty(Kind.STARTED) + self.session_id + push_uint(self.wish, 1)

    @classmethod
    def pull(cls, packet: bytes) -> Started:
        """Read the packet."""
        reader = body(packet, Kind.STARTED)
        session_id, wish = reader.pull_bytes(limits.SESSION_ID_LEN), reader.pull_uint(1)
        if wish not in Wish.__members__.values():
            raise reader.fault(f"wish {wish}")
        reader.finish()
        return cls(session_id=session_id, wish=Wish(wish))


def push_configuration(length: int) -> bytes:
    """CONFIGURATION: the length of what the memfd holds, in bytes; 0 (and an empty one) where the configuration could not be read."""
    return push_empty(Kind.CONFIGURATION) + push_uint(length, 4)


def pull_configuration(packet: bytes) -> int:
    """The length in CONFIGURATION, at most CONFIGURATION_MAX."""
    reader = body(packet, Kind.CONFIGURATION)
    length = reader.pull_uint(4)
    if length > limits.CONFIGURATION_MAX:
        raise reader.fault(f"{length} bytes")
    reader.finish()
    return length


class Milestone(enum.IntEnum):
    """What the receiver tells for the journal. It has no proof of it to show: the journal says so."""

    DOMAIN = 1  # the domain's configuration has passed: its name is known
    READY = 2
    GO = 3
    REPORT = 4  # xl's status byte has passed
    LOST = 5  # the link was lost, and is not waited for any more
    ENDED = 6
    PROGRESS = 7  # once a second at most: not for the journal
    INTERRUPTED = 8  # the link is lost; ``why``
    RESUMED = 9
    INPUT_ENDED = 10  # the source has ended xl's input
    LANE_LOST = 11  # one connection of several; ``why``: not for the journal


@dataclass(frozen=True)
class Note:
    """One milestone: the domain's name ("" if unknown), stream bytes so far, xl's status byte (REPORT; with INTERRUPTED and LANE_LOST
    why in one word: Lost of the engine; else 0), more words on why, and how far the domain's memory has come.
    """

    milestone: Milestone
    domain: str = ""
    stream_bytes: int = 0
    status: int = 0
    why: str = ""
    memory: Memory = field(default_factory=Memory)

    def push(self) -> bytes:
        """The packet."""
        memory = self.memory
        head = push_empty(Kind.NOTE) + push_uint(self.milestone, 1) + push_uint(self.stream_bytes, 8) + push_uint(self.status, 1)
        counts = b"".join(push_uint(count, 8) for count in (memory.total, memory.number, memory.sent, memory.frame, memory.frame_max))
        return head + counts + push_text(self.domain, 1) + push_text(self.why, 2)

    @classmethod
    def pull(cls, packet: bytes) -> Note:
        """Read the packet."""
        reader = body(packet, Kind.NOTE)
        milestone = reader.pull_uint(1)
        if milestone not in Milestone.__members__.values():
            raise reader.fault(f"milestone {milestone}")
        stream_bytes, status = reader.pull_uint(8), reader.pull_uint(1)
        memory = Memory(*(reader.pull_uint(8) for _ in range(5)))
        note = cls(
            milestone=Milestone(milestone),
            memory=memory,
            stream_bytes=stream_bytes,
            status=status,
            domain=reader.pull_text(1),
            why=reader.pull_text(2),
        )
        reader.finish()
        return note


def push_exited(end: Exit) -> bytes:
    """EXITED."""
    return push_empty(Kind.EXITED) + end.push()


def pull_exited(packet: bytes) -> Exit:
    """How xl ended."""
    body(packet, Kind.EXITED)
    return Exit.pull(packet[1:])


@dataclass(frozen=True)
class Claimed:
    """The launcher's yes to a JOIN: its proof for the source, and the peer's name. The frames' keys are not for whoever gives the connection up."""

    proof: bytes
    peer: str

    def push(self) -> bytes:
        """The packet."""
        return push_empty(Kind.CLAIMED) + self.proof + push_text(self.peer, 1)

    @classmethod
    def pull(cls, packet: bytes) -> Claimed:
        """Read the packet."""
        reader = body(packet, Kind.CLAIMED)
        message = cls(proof=reader.pull_bytes(limits.MAC_LEN), peer=reader.pull_text(1))
        reader.finish()
        return message


@dataclass(frozen=True)
class Join:
    """The peer that has proved itself; ``resumes``: its connection is to take the place of those that the session has (S4)."""

    peer: str
    resumes: bool

    def push(self) -> bytes:
        """The packet."""
        return push_empty(Kind.JOIN) + push_text(self.peer, 1) + push_uint(self.resumes, 1)

    @classmethod
    def pull(cls, packet: bytes) -> Join:
        """Read the packet."""
        reader = body(packet, Kind.JOIN)
        join = cls(peer=reader.pull_text(1), resumes=_pull_flag(reader))
        reader.finish()
        return join


def _pull_flag(reader: Reader) -> bool:
    value = reader.pull_uint(1)
    if value > 1:
        raise reader.fault(f"a flag of {value}")
    return value == 1


@dataclass(frozen=True)
class Lane:
    """A connection's keys, as the destination uses them, and whether it takes the place of the others; the connection goes with it."""

    keys: LinkKeys = field(repr=False)
    resumes: bool

    def push(self) -> bytes:
        """The packet."""
        return b"".join((push_empty(Kind.LANE), *_key_parts(self.keys), push_uint(self.resumes, 1)))

    @classmethod
    def pull(cls, packet: bytes) -> Lane:
        """Read the packet."""
        reader = body(packet, Kind.LANE)
        lane = cls(keys=_pull_keys(reader), resumes=_pull_flag(reader))
        reader.finish()
        return lane


def push_outcome(outcome: Outcome) -> bytes:
    """OUTCOME."""
    return push_empty(Kind.OUTCOME) + outcome.push()


def pull_outcome(packet: bytes) -> Outcome:
    """What became of a session."""
    body(packet, Kind.OUTCOME)
    return Outcome.pull(packet[1:])


def push_report(report: HostReport) -> bytes:
    """REPORT."""
    return push_empty(Kind.REPORT) + report.push()


def pull_report(packet: bytes) -> HostReport:
    """How this host is."""
    body(packet, Kind.REPORT)
    return HostReport.pull(packet[1:])
