"""What Python reads of a peer's, a receiver's or a file's bytes, under hypothesis: a value comes of it, or the one error that its caller knows.

    python -m tests.fuzz.messages [--seconds N]          every target for so long, each time otherwise

``TARGETS`` are also run by tests/test_fuzz.py, with the same examples in every run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.inmemory import World, raw_peer
from tests.test_messages import FORMATS, tokens
from xensecure.cli.history import history
from xensecure.link import journal
from xensecure.link.config import Config
from xensecure.link.connection import Deadline, FrameChannel, Wire
from xensecure.link.engine import Link
from xensecure.proto import limits
from xensecure.proto.domain import configuration, domain_name
from xensecure.proto.errors import AuthenticationError, LinkLostError, ProtocolError, RefusedError, TokenError
from xensecure.proto.handshake import DestinationHandshake, LinkKeys, SourceHandshake, State
from xensecure.proto.keyschedule import DirectionKeys
from xensecure.proto.launcher import kind_of
from xensecure.proto.messages import Accept, Exit, FrameType, MessageType, Open, push_message
from xensecure.proto.token import Token
from xensecure.source.query import outcome_in

EXAMPLES = 1000  # of a target between two looks at the time


class Target(NamedTuple):
    """What is drawn, and what must hold for it."""

    strategy: st.SearchStrategy[Any]
    check: Callable[[Any], None]


@st.composite
def damaged(draw: Callable[[st.SearchStrategy[Any]], Any], whole: st.SearchStrategy[bytes]) -> bytes:
    """Good bytes with up to four changes: a byte, a cut, something put in, the head of another one."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        at, how = draw(st.integers(0, len(data))), draw(st.integers(0, 3))
        if how == 0 and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif how == 1:
            del data[at : at + draw(st.integers(1, 40))]
        elif how == 2:
            data[at:at] = draw(st.binary(max_size=40))
        elif how == 3:
            data[at:] = draw(whole)[at:]
    return bytes(data)


# ---- messages and packets


def _is_canonical(push: Callable[[Any], bytes], pull: Callable[[bytes], Any], free: bool, data: bytes) -> None:
    try:
        message = pull(data)
    except ProtocolError:
        return
    written = push(message)
    assert free or written == data, "two texts of one message"
    assert pull(written) == message


def _message_target(name: str) -> Target:
    strategy, push, pull = FORMATS[name]
    free = name in ("REFUSE", "OUTCOME", "REFUSED", "ANSWER")  # their text may be replaced
    return Target(damaged(strategy.map(push)), functools.partial(_is_canonical, push, pull, free))


def _check_token(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        token = Token.decode(text)
    except TokenError:
        return
    assert token.encode() == text.strip().lower()


def _check_kind(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        kind_of(data)


# ---- frames


def _keys(first: int) -> LinkKeys:
    both = [DirectionKeys(key=bytearray([n]) * 32, iv=bytearray([n]) * 12) for n in (1, 2)]
    return LinkKeys(send=both[first], receive=both[1 - first])


def _check_frames(drawn: tuple[int, bytes, bytes, int]) -> None:
    kind, payload, noise, change = drawn
    near, far = socket.socketpair()
    with near, far:
        sealed = bytearray(Link(_keys(0)).seal(FrameType(kind), payload))
        if change >= 0:
            sealed[change % len(sealed)] ^= 1
        far.sendall(sealed + noise)
        far.shutdown(socket.SHUT_WR)
        near.settimeout(0)
        channel = FrameChannel(near, Wire(near, Deadline(5)), _keys(1))
        with contextlib.suppress(ProtocolError, AuthenticationError, LinkLostError, RefusedError):
            frame = channel.receive()
            assert change < 0, "a changed frame was taken"
            assert (frame.type, frame.payload) == (kind, payload)
            for parse in (Open.pull, Accept.pull, Exit.pull):
                with contextlib.suppress(ProtocolError):
                    parse(frame.payload)
            outcome_in(frame)


# ---- the key exchange


@functools.cache
def _world() -> World:
    return World(Path(tempfile.mkdtemp(prefix="xensecure-fuzz-")))


def _says(handshake: SourceHandshake | DestinationHandshake, data: bytes) -> None:
    """Bytes inside TLS, of somebody with the right certificate and without the link key."""
    raw = raw_peer(_world(), handshake)
    raw.send(data)
    try:
        handshake.receive_data(raw.drain())
    except (ProtocolError, AuthenticationError):
        assert handshake.state is State.FAILED
        return
    assert handshake.state is not State.CONFIRMED


def _check_destination(data: bytes) -> None:
    if data:
        _says(_world().destination_handshake(), data)


def _check_source(data: bytes) -> None:
    if data:
        _says(_world().source_handshake(), data)


def _check_wire(drawn: tuple[bytes, list[int]]) -> None:
    """Anything at all, in pieces, at either end before TLS is there."""
    data, cuts = drawn
    source = _world().source_handshake()
    source.start()
    for handshake in (source, _world().destination_handshake()):
        pieces = [data[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True)]
        try:
            for piece in pieces:
                handshake.receive_data(piece)
                assert handshake.bytes_wanted() > 0
        except (ProtocolError, AuthenticationError):
            assert handshake.state is State.FAILED
        handshake.data_to_send()
        assert handshake.state in (State.FAILED, State.TLS)


@functools.cache
def _client_hello() -> bytes:
    source = _world().source_handshake()
    source.start()
    return source.data_to_send()


# ---- the domain's configuration


def _check_configuration(head: bytes) -> None:
    name = domain_name(head)
    assert name.isprintable()
    assert len(name.encode()) <= limits.DOMAIN_NAME_MAX
    try:
        found = configuration(head)
    except ProtocolError:
        return
    json.dumps(found, allow_nan=False).encode("ascii")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["c_info", "name", "b_info", "a"]), inner, max_size=4),
    max_leaves=12,
)
heads = st.one_of(
    documents.map(lambda value: json.dumps(value).encode()),
    documents.map(lambda value: json.dumps({"c_info": {"name": value}}, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.integers(1, 100_000).map(lambda depth: b"[" * depth),
    st.integers(1, 200).map(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth),
    st.integers(1, 6000).map(lambda digits: b'{"c_info":{"name":"x"},"a":' + b"9" * digits + b"}"),
)


# ---- the journal


@functools.cache
def _state() -> Path:
    return Path(tempfile.mkdtemp(prefix="xensecure-fuzz-"))


def _check_journal(lines: list[bytes]) -> None:
    (_state() / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    found = journal.records(_state())
    for record in found:
        journal.find(_state(), bytes.fromhex(record.session), record.role)
    config = Config(path="", state=_state(), run=_state(), name="hv1")
    for as_json in (False, True):
        with mock.patch("xensecure.cli.history.out") as out:
            history(config, argparse.Namespace(domain="", number=0, json=as_json))
        if as_json and found:
            assert all(json.loads(line) for (line,), _ in out.call_args_list)


EVENTS = ["start", "domain", "ready", "go", "report", "lost", "refused", "peer", "end", "neighbour", "else"]
fields = st.dictionaries(
    st.sampled_from(["peer", "address", "request", "domain", "bytes", "status", "why", "state", "text", "outcome", "seconds", "heard", "by", "role"]),
    st.one_of(scalars, st.sampled_from([*journal.STATES, "source", "destination"]), st.lists(scalars, max_size=3)),
)
times = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z"),
    st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z"]),
)
lines = st.builds(
    lambda session, event, moment, more: json.dumps({"session": session, "event": event, "time": moment, **more}).encode(),
    st.sampled_from(["00" * 16, "11" * 16]),
    st.sampled_from(EVENTS),
    times,
    fields,
)


def _hello_or_proof() -> st.SearchStrategy[bytes]:
    hello = FORMATS["SOURCE_HELLO"]
    proof = st.binary(max_size=80).map(lambda body: push_message(MessageType.SOURCE_PROOF, body))
    other = FORMATS["DESTINATION_HELLO"]
    return st.one_of(hello[0].map(hello[1]), other[0].map(other[1]), proof, st.binary(min_size=1, max_size=5000))


TARGETS: dict[str, Target] = {
    **{name: _message_target(name) for name in FORMATS},
    "token": Target(damaged(tokens.map(lambda token: token.encode().encode("ascii"))), _check_token),
    "packet": Target(st.binary(max_size=3), _check_kind),
    "frames": Target(
        st.tuples(
            st.sampled_from(sorted(set(FrameType) - {FrameType.DATA})), st.binary(max_size=1200), st.binary(max_size=20), st.integers(-1, 1300)
        ),
        _check_frames,
    ),
    "destination": Target(damaged(_hello_or_proof()), _check_destination),
    "source": Target(damaged(_hello_or_proof()), _check_source),
    "wire": Target(
        st.tuples(damaged(st.builds(_client_hello)), st.lists(st.integers(0, 600), max_size=4)),
        _check_wire,
    ),
    "configuration": Target(damaged(heads), _check_configuration),
    "journal": Target(st.lists(damaged(lines), max_size=6), _check_journal),
}


def run(name: str, *, examples: int, number: int | None) -> None:
    """One target; ``number``: a seed of its own, None for the same examples every time."""
    target = TARGETS[name]
    chosen = settings(
        max_examples=examples, derandomize=number is None, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )

    def check(drawn: Any) -> None:
        target.check(drawn)

    test = chosen(given(target.strategy)(check))
    (test if number is None else seed(number)(test))()


def main() -> None:
    """Every target for so long."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.messages", description="fuzz what Python parses")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="for each target (60)")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="no more examples than that for each")
    options = parser.parse_args()
    for name in TARGETS:
        end, number = time.monotonic() + options.seconds, 0
        while time.monotonic() < end and (not options.runs or number * EXAMPLES < options.runs):
            run(name, examples=EXAMPLES, number=number)
            number += 1
        print(f"{name}: {number * EXAMPLES}", flush=True)


if __name__ == "__main__":
    main()
