"""Stolen, guessed and unknown keys: each is refused, and all of them look alike from outside, in bytes and in work."""

from __future__ import annotations

import builtins
import hmac
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.inmemory import HV1, Exchange, World, issue, made_up_key
from xensecure.destination.judge import judge
from xensecure.link import store
from xensecure.link.peers import Invitation, LinkKey, Peer
from xensecure.proto.errors import AuthenticationError
from xensecure.proto.handshake import State
from xensecure.proto.keyschedule import invitation_key, key_id
from xensecure.proto.messages import Contact, Purpose, SourceHello


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two hosts that have met; hv2 knows two more, one of them while its link key is being replaced, and has two invitations open."""
    made = World(tmp_path / "state")
    with made.peers.locked():
        for name, generations in (("hv3", 1), ("hv4", 2)):
            keys = tuple(LinkKey(generation=number, key=made_up_key(f"{name} {number}")) for number in range(generations))
            made.peers.put(Peer(contact=Contact(name, 8003, ("192.0.2.9",)), pin=made_up_key(name), keys=keys, since=0))
        for number in range(2):
            made.peers.put_invitation(Invitation(key=invitation_key(bytes([number]) * 16), expiry=2**40))
    return made


GUESSED = "guessed"
# What the attacker has: a TLS key ("own" of his, or the peer's stolen one), a link key (the right one stolen, or a guess), and whose id he names.
CASES = {
    "unknown key id": ("own", GUESSED, GUESSED),
    "unknown key id, stolen TLS key": ("stolen", GUESSED, GUESSED),
    "right key id, wrong link key": ("own", GUESSED, "link key"),
    "right key id, wrong link key, stolen TLS key": ("stolen", GUESSED, "link key"),
    "stolen link key alone": ("own", "link key", "link key"),
    "another peer's link key, stolen TLS key": ("stolen", "hv3 0", "hv3 0"),
    "another peer's old key id": ("own", GUESSED, "hv4 0"),
    "invitation that does not exist": ("own", "invitation", "invitation"),
}


def attempt(world: World, case: str) -> Exchange:
    """One attempt of the attacker's."""
    tls, key, named = CASES[case]
    contact = {"contact": HV1, "purpose": Purpose.PAIR} if key == "invitation" else {"purpose": Purpose.MIGRATE}
    hello = SourceHello(key_id=key_id(made_up_key(named)), **contact)
    credentials = world.source if tls == "stolen" else issue("hv1").credentials()
    return Exchange(world, source=world.source_handshake(credentials=credentials, hello=hello), link_key=made_up_key(key))


@pytest.mark.parametrize("case", CASES)
def test_what_the_attacker_has_is_not_enough(world: World, case: str) -> None:
    """Every case is refused, and the destination has given no proof."""
    exchange = attempt(world, case).run()
    assert isinstance(exchange.destination_error, AuthenticationError)
    assert exchange.verdict is None
    assert exchange.source.state is State.WAIT_DESTINATION_PROOF


def test_all_failures_look_alike_on_the_wire(world: World) -> None:
    """The destination sends the same number of records of the same types and lengths in every case, and closes at the same place."""
    seen = set()
    for case in CASES:
        if case == "invitation that does not exist":
            continue  # its hello is longer, and known to be
        exchange = attempt(world, case).run()
        sent = bytes(exchange.down.sent)
        seen.add((len(exchange.up.sent), len(sent), *shape(sent)))
    assert len(seen) == 1


def shape(sent: bytes) -> list[tuple[int, int]]:
    """Types and lengths of the records of a flow."""
    found, at = [], 0
    while at < len(sent):
        length = 5 + int.from_bytes(sent[at + 3 : at + 5], "big")
        found.append((sent[at], length))
        at += length
    return found


class Work:
    """Counts what costs time in a verdict: MACs and comparisons, files opened and read, random bytes made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count: Counter[str] = Counter()
        for module, name in ((hmac, "digest"), (hmac, "compare_digest"), (os, "open"), (os, "read"), (builtins, "open"), (store, "read_secret")):
            self._watch(monkeypatch, module, name)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.count[f"{module.__name__}.{name}"] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, counted)


def test_all_failures_cost_the_same_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict on each case computes as many MACs, makes as many comparisons and reads as many files as on any other, and as on a peer.

    Counted, not timed: a time would be the machine's. What is not counted differs by the making of 32 random bytes, some hundred nanoseconds.
    """
    counts = {}
    for case in CASES:
        if case == "invitation that does not exist":
            continue  # other files are read for it, whatever its id
        exchange = attempt(world, case).run()
        counts[case] = work_of(exchange, world, monkeypatch, refused=True)
    counts["the peer itself"] = work_of(Exchange(world).run(), world, monkeypatch, refused=False)
    assert len({tuple(sorted(count.items())) for count in counts.values()}) == 1, counts
    assert counts["unknown key id"]["hmac.digest"] > 0
    assert counts["unknown key id"]["xensecure.link.store.read_secret"] == 3


def work_of(exchange: Exchange, world: World, monkeypatch: pytest.MonkeyPatch, *, refused: bool) -> Counter[str]:
    """The work of one verdict."""
    request = exchange.destination.request()
    with monkeypatch.context() as patch:
        work = Work(patch)
        try:
            judge(request, challenge=exchange.challenge, own_pin=world.destination.pin, peers=world.peers, config=world.config)
        except AuthenticationError:
            assert refused
        else:
            assert not refused
    return work.count


def test_token_secret_is_needed_to_join(world: World) -> None:
    """With the id of an open invitation and another secret the joining host is refused; with the secret it is not."""
    right = invitation_key(bytes([1]) * 16)
    for key, accepted in ((invitation_key(b"wrong secret    "), False), (right, True)):
        hello = SourceHello(purpose=Purpose.PAIR, key_id=key_id(right), contact=HV1)
        exchange = Exchange(world, source=world.source_handshake(hello=hello), link_key=key).run()
        assert exchange.confirmed is accepted
        assert (exchange.verdict is not None) is accepted
        assert (exchange.destination_error is None) is accepted


def test_link_key_is_no_invitation_and_the_reverse(world: World) -> None:
    """A link key does not open PAIR, and an invitation's key opens nothing but PAIR."""
    right = invitation_key(bytes([1]) * 16)
    for key, hello in (
        (made_up_key("link key"), SourceHello(purpose=Purpose.PAIR, key_id=key_id(made_up_key("link key")), contact=HV1)),
        (right, SourceHello(purpose=Purpose.MIGRATE, key_id=key_id(right))),
        (right, SourceHello(purpose=Purpose.ROTATE, key_id=key_id(right))),
    ):
        exchange = Exchange(world, source=world.source_handshake(hello=hello), link_key=key).run()
        assert isinstance(exchange.destination_error, AuthenticationError)
        assert not exchange.confirmed


@pytest.mark.parametrize(
    ("source_name", "destination_name", "accepted"),
    [("hv1", "hv2", True), ("hv9", "hv2", False), ("hv1", "hv9", False)],
    ids=["right names", "another host as the source", "another host as the destination"],
)
def test_ca_mode_wants_the_right_name(tmp_path: Path, source_name: str, destination_name: str, accepted: bool) -> None:
    """With a CA, a host of the same site cannot pass for another: also with the right link key its certificate must name the peer (T3)."""
    authority = issue("site CA", ca=True)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    ends = [issue(name, authority, names=(x509.DNSName(name),)) for name in (source_name, destination_name)]
    world = World(tmp_path / "state", trust="ca", ca_file=str(tmp_path / "ca.pem"), hv1=ends[0], hv2=ends[1])
    exchange = Exchange(world).run()
    assert exchange.confirmed is accepted
    errors = [error for error in (exchange.source_error, exchange.destination_error) if error]
    assert bool(errors) is not accepted
    assert all(isinstance(error, AuthenticationError) and "certificate" in str(error) for error in errors)


@pytest.mark.parametrize("stranger", ["source", "destination"])
def test_ca_mode_refuses_other_authorities(tmp_path: Path, stranger: str) -> None:
    """With a CA, a certificate of the right name by another authority, or by nobody, is refused inside TLS."""
    authority, other = issue("site CA", ca=True), issue("other CA", ca=True)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    issuers = [other if stranger == "source" else authority, other if stranger == "destination" else authority]
    ends = [issue(name, issuer, names=(x509.DNSName(name),)) for name, issuer in zip(("hv1", "hv2"), issuers, strict=True)]
    world = World(tmp_path / "state", trust="ca", ca_file=str(tmp_path / "ca.pem"), hv1=ends[0], hv2=ends[1])
    exchange = Exchange(world).run()
    assert not exchange.confirmed
    assert exchange.verdict is None
    assert isinstance(exchange.source_error, AuthenticationError)
    assert isinstance(exchange.destination_error, AuthenticationError)
