"""Messages, tokens and packets: what is written is read back, and whatever else comes raises ProtocolError or TokenError and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xensecure.proto import launcher, limits
from xensecure.proto.domain import domain_name
from xensecure.proto.errors import ProtocolError, Reason, TokenError
from xensecure.proto.handshake import AuthenticationRequest, LinkKeys
from xensecure.proto.hostreport import HostReport
from xensecure.proto.keyschedule import DirectionKeys
from xensecure.proto.launcher import Authenticate, Authenticated, Claimed, Join, Lane, Milestone, Note, Started, Wish
from xensecure.proto.messages import (
    NO_CONTACT,
    OF_A_SESSION,
    Accept,
    Contact,
    DestinationHello,
    Exit,
    ExitKind,
    Open,
    Outcome,
    OutcomeState,
    Purpose,
    Refusal,
    SourceHello,
    printable,
)
from xensecure.proto.request import Flag, ReceiveRequest
from xensecure.proto.tls import record_length, server_hello_group
from xensecure.proto.token import Token
from xensecure.proto.wire import Reader

# The same examples in every run: a test that fails now and then is no test.
FUZZ = settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def sized(length: int) -> st.SearchStrategy[bytes]:
    """Bytes of that length."""
    return st.binary(min_size=length, max_size=length)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")), min_size=1, max_size=60)
contacts = st.builds(
    Contact, name=texts, port=st.integers(1, 65535), addresses=st.lists(texts, min_size=1, max_size=limits.ADDRESSES_MAX).map(tuple)
)
source_hellos = st.one_of(
    st.builds(SourceHello, purpose=st.just(Purpose.PAIR), key_id=sized(16), contact=contacts, features=st.integers(0, 2**32 - 1)),
    st.builds(SourceHello, purpose=st.sampled_from([Purpose.MIGRATE, Purpose.ROTATE, Purpose.CHECK]), key_id=sized(16)),
    st.builds(SourceHello, purpose=st.sampled_from(OF_A_SESSION), key_id=sized(16), session_id=sized(16)),
)
requests = st.builds(
    ReceiveRequest, flags=st.integers(0, 255).map(Flag), verbosity=st.integers(0, limits.VERBOSITY_MAX), coloft_script=st.one_of(st.just(""), texts)
)
windows = st.integers(limits.WINDOW_MIN, 1 << 30)
tokens = st.builds(
    Token, expiry=st.integers(0, 2**64 - 1), pin=sized(32), secret=sized(16), contact=contacts
)


authenticates = st.builds(
    Authenticate,
    request=st.builds(
        AuthenticationRequest,
        ekm=sized(64),
        source_pin=sized(32),
        destination_pin=sized(32),
        source_hello=st.binary(max_size=300),
        destination_hello=st.binary(max_size=60),
        proof=sized(32),
        names=st.lists(texts, max_size=limits.CERTIFICATE_NAMES_MAX).map(tuple),
    ),
    address=texts,
)
directions = st.builds(DirectionKeys, key=sized(32), iv=sized(12))
authenticated = st.builds(Authenticated, proof=sized(32), keys=st.builds(LinkKeys, send=directions, receive=directions), peer=texts)
notes = st.builds(
    Note, milestone=st.sampled_from(Milestone), domain=texts, stream_bytes=st.integers(0, 2**64 - 1), status=st.integers(0, 255), why=texts
)
reports = st.builds(
    HostReport,
    clock=st.integers(0, 2**64 - 1),
    **dict.fromkeys(("memory_total", "memory_free"), st.integers(0, 2**64 - 1)),
    **dict.fromkeys(("cpus", "sessions", "sessions_max", "window"), st.integers(0, 2**32 - 1)),
    **dict.fromkeys(("xensecure", "xen", "cpu_vendor", "cpu_model", "cpu_features", "virtualization", "cipher", "refusal"), st.just("") | texts),
    lanes=st.integers(0, 255),
    zstd=st.booleans(),
    ciphers=st.lists(texts, max_size=limits.CHECK_CIPHERS_MAX).map(tuple),
    faults=st.lists(texts, max_size=limits.CHECK_FAULTS_MAX).map(tuple),
)

# How each message is made, written and read.
FORMATS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "SOURCE_HELLO": (source_hellos, SourceHello.push, SourceHello.pull),
    "DESTINATION_HELLO": (st.builds(DestinationHello, challenge=sized(32)), DestinationHello.push, DestinationHello.pull),
    "OPEN": (st.builds(Open, window1=windows, window2=windows, request=requests), Open.push, Open.pull),
    "ACCEPT": (st.builds(Accept, session_id=sized(16), window0=windows), Accept.push, Accept.pull),
    "EXIT": (st.builds(Exit, kind=st.sampled_from(ExitKind), value=st.integers(0, 255)), Exit.push, Exit.pull),
    "REFUSE": (st.builds(Refusal, reason=st.sampled_from(Reason), text=texts), Refusal.push, Refusal.pull),
    "AUTHENTICATE": (authenticates, Authenticate.push, Authenticate.pull),
    "AUTHENTICATED": (authenticated, Authenticated.push, Authenticated.pull),
    "START": (requests, launcher.push_start, launcher.pull_start),
    "STARTED": (st.builds(Started, session_id=sized(16), wish=st.sampled_from(Wish)), Started.push, Started.pull),
    "CONFIGURATION": (st.integers(0, limits.CONFIGURATION_MAX), launcher.push_configuration, launcher.pull_configuration),
    "CHALLENGE": (sized(32), launcher.push_challenge, launcher.pull_challenge),
    "NOTE": (notes, Note.push, Note.pull),
    "OUTCOME": (st.builds(Outcome, state=st.just(OutcomeState.REPORTED), status=st.integers(0, 255), text=texts), Outcome.push, Outcome.pull),
    "ANSWER": (st.builds(Outcome, state=st.sampled_from(OutcomeState), text=texts), launcher.push_outcome, launcher.pull_outcome),
    "HOST_REPORT": (reports, HostReport.push, HostReport.pull),
    "REPORT": (reports, launcher.push_report, launcher.pull_report),
    "CLAIMED": (st.builds(Claimed, proof=sized(32), peer=texts), Claimed.push, Claimed.pull),
    "JOIN": (st.builds(Join, peer=texts, resumes=st.booleans()), Join.push, Join.pull),
    "LANE": (st.builds(Lane, keys=st.builds(LinkKeys, send=directions, receive=directions), resumes=st.booleans()), Lane.push, Lane.pull),
    "EXITED": (st.builds(Exit, kind=st.sampled_from(ExitKind), value=st.integers(0, 255)), launcher.push_exited, launcher.pull_exited),
}
EVERY_FORMAT = pytest.mark.parametrize("name", FORMATS)
# These end in free text: it has no end of its own that something could stand behind, and bytes that do not print are replaced.
STRICT_FORMATS = pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"REFUSE", "OUTCOME", "ANSWER"}))


@EVERY_FORMAT
def test_messages_are_read_as_written(name: str) -> None:
    """Every message comes back equal."""
    strategy, push, pull = FORMATS[name]

    @FUZZ
    @given(strategy)
    def check(message: Any) -> None:
        assert pull(push(message)) == message

    check()


@STRICT_FORMATS
def test_messages_cut_or_lengthened_are_refused(name: str) -> None:
    """Every message cut at any place, or with a byte behind it, raises ProtocolError."""
    strategy, push, pull = FORMATS[name]

    @settings(FUZZ, max_examples=25)
    @given(strategy)
    def check(message: Any) -> None:
        whole = push(message)
        for piece in (*(whole[:length] for length in range(len(whole))), whole + b"\0"):
            with pytest.raises(ProtocolError):
                pull(piece)

    check()


@EVERY_FORMAT
def test_arbitrary_bytes_raise_one_kind_of_error(name: str) -> None:
    """Random bytes, also behind the right first ones, are read or raise ProtocolError, and nothing else comes out."""
    strategy, push, pull = FORMATS[name]

    @FUZZ
    @given(st.binary(max_size=400), strategy, st.integers(0, 400))
    def check(noise: bytes, message: Any, keep: int) -> None:
        for data in (noise, push(message)[:keep] + noise):
            try:
                pull(data)
            except ProtocolError:
                continue

    check()


@STRICT_FORMATS
def test_one_flipped_bit_raises_one_kind_of_error(name: str) -> None:
    """A message with one bit changed is another message or raises ProtocolError."""
    strategy, push, pull = FORMATS[name]

    @settings(FUZZ, max_examples=20)
    @given(strategy)
    def check(message: Any) -> None:
        whole = push(message)
        for place in range(len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << place % 8
            try:
                assert pull(bytes(data)) != message
            except ProtocolError:
                continue

    check()


@FUZZ
@given(tokens)
def test_tokens_are_read_as_written(token: Token) -> None:
    """Every token comes back equal, also in capitals and with spaces around it."""
    text = token.encode()
    assert Token.decode(text) == Token.decode(f" {text.upper()}\n") == token


@FUZZ
@given(st.one_of(st.text(max_size=200), st.text("abcdefghijklmnopqrstuvwxyz234567=", max_size=300)))
def test_arbitrary_text_is_no_token(text: str) -> None:
    """Other text raises TokenError, and nothing else comes out."""
    for word in (text, f"xs1:{text}"):
        with pytest.raises(TokenError):
            Token.decode(word)


@settings(FUZZ, max_examples=20)
@given(tokens)
def test_mistyped_tokens_are_refused(token: Token) -> None:
    """A token with one character changed, left out, doubled or put behind is refused: one token has one text."""
    text = token.encode()
    for place in range(4, len(text)):
        other = "a" if text[place] != "a" else "b"
        for word in (text[:place] + other + text[place + 1 :], text[:place] + text[place + 1 :], text[:place] + text[place] + text[place:]):
            if word != text:
                with pytest.raises(TokenError):
                    Token.decode(word)
    for behind in ("=", "a", "aaaaaaaa", "\N{LATIN SMALL LETTER LONG S}"):
        with pytest.raises(TokenError):
            Token.decode(text + behind)


def test_letters_that_become_others_in_capitals_are_refused() -> None:
    """A letter that upper() turns into one of the alphabet's (long s, dotless i) is no other spelling of it."""
    token = Token(expiry=1, pin=bytes(32), secret=bytes(range(16)), contact=Contact("s", 1, ("i",)))
    text = token.encode()
    for letter, looks in (("s", "\N{LATIN SMALL LETTER LONG S}"), ("i", "\N{LATIN SMALL LETTER DOTLESS I}")):
        if letter in text[4:]:
            with pytest.raises(TokenError):
                Token.decode(text[:4] + text[4:].replace(letter, looks, 1))


@FUZZ
@given(st.binary(max_size=200))
def test_tls_headers_are_parsed_without_surprise(data: bytes) -> None:
    """The two places that read TLS's own bytes take any, or raise ProtocolError."""
    assert server_hello_group(data) is None or isinstance(server_hello_group(data), int)
    assert isinstance(server_hello_group(b"\x16\x03\x03\x00\x00\x02" + data), (int, type(None)))
    try:
        record_length(data)
    except ProtocolError:
        assert data[0] not in range(20, 24) or int.from_bytes(data[3:5], "big") > (1 << 14) + 256


@FUZZ
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: f'{{"c_info": {{"name": "{text}"}}}}'.encode("utf-8", "replace"))))
def test_domain_names_are_one_harmless_line(head: bytes) -> None:
    """Whatever a configuration holds, the name taken from it prints, and fits its field."""
    name = domain_name(head)
    assert name.isprintable()
    assert len(name.encode()) <= limits.DOMAIN_NAME_MAX
    assert Note.pull(Note(Milestone.DOMAIN, domain=name).push()).domain == name


@FUZZ
@given(st.text(max_size=4000))
def test_refusals_fit_and_print(text: str) -> None:
    """A refusal of any text is read back as one harmless line of at most 1 KiB."""
    refusal = Refusal.pull(Refusal(Reason.NOT_ALLOWED, text).push())
    assert refusal.text.isprintable()
    assert len(Refusal(Reason.NOT_ALLOWED, text).push()) <= 2 + limits.REASON_TEXT_MAX


@FUZZ
@given(st.text(max_size=2000), st.lists(st.text(max_size=400), max_size=12))
def test_reports_fit_and_print(text: str, more: list[str]) -> None:
    """A host's report with any texts is cut to its limits by its sender, and read back as harmless lines."""
    fields = dict.fromkeys(("xensecure", "xen", "cpu_vendor", "cpu_model", "cpu_features", "virtualization", "cipher", "refusal"), text)
    payload = HostReport(clock=0, ciphers=tuple(more), faults=tuple(more), **fields).push()
    assert len(payload) <= limits.CHECK_REPORT_MAX
    report = HostReport.pull(payload)
    assert all(line.isprintable() for line in (report.cpu_model, report.refusal, *report.ciphers, *report.faults))
    assert report.push() == payload


def test_the_longest_report_is_below_its_limit() -> None:
    """Every text as long as it can be."""
    long = "x" * 2000
    fields = dict.fromkeys(("xensecure", "xen", "cpu_vendor", "cpu_model", "cpu_features", "virtualization", "cipher", "refusal"), long)
    payload = HostReport(clock=0, ciphers=(long,) * 20, faults=(long,) * 20, **fields).push()
    assert 5000 < len(payload) <= limits.CHECK_REPORT_MAX
    assert len(HostReport.pull(payload).refusal) == limits.REASON_TEXT_MAX


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\r", "\u202e", "\x7f", "\u2028", "\x00", "\ud800"])
def test_what_moves_a_cursor_is_replaced(text: str) -> None:
    """Control and format characters of a peer's text become question marks."""
    assert printable(f"a{text}b").isprintable()


def test_unknown_reason_is_a_protocol_fault() -> None:
    """A refusal with a reason that this version does not know is read, as a fault of the protocol."""
    assert Refusal.pull(b"\xff\xff" + b"why").reason is Reason.PROTOCOL


def test_empty_contact_is_no_contact() -> None:
    """The contact of MIGRATE and ROTATE is four zero bytes."""
    assert NO_CONTACT.push() == bytes(4)
    assert Contact.pull(Reader(bytes(4), "contact")) == NO_CONTACT
