"""The pre-handshake between two hosts as their administrators run it: docs/protocol.md, section 5."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.pair import wait_for
from tests.pairing_forks import ForkedHost, ForkedPair, within
from xensecure.destination.invite import make_token
from xensecure.link.connection import Target
from xensecure.link.identity import load_credentials, make_identity
from xensecure.link.peers import LinkKey, Peer
from xensecure.proto.errors import AuthenticationError, LinkLostError, RefusedError, StateError, TokenError
from xensecure.proto.keyschedule import invitation_key, key_id
from xensecure.proto.messages import Contact, FrameType, Purpose, SourceHello
from xensecure.proto.token import Token
from xensecure.source import pairing
from xensecure.source.establish import Connection, establish, find_route, reach
from xensecure.source.migrate import accepted_payload
from xensecure.source.pairing import join, rotate


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkedPair]:
    """Two hosts that are forks."""
    with ForkedPair() as made:
        yield made


@pytest.fixture
def fresh(forks: ForkedPair) -> ForkedPair:
    """Two hosts that have not met."""
    forks.set_back("fresh")
    return forks


@pytest.fixture
def met(forks: ForkedPair) -> ForkedPair:
    """Two hosts that have met."""
    forks.set_back("met")
    return forks


def _host(forks: ForkedPair, name: str) -> ForkedHost:
    """One more host, without daemons; its folder goes with the pair's."""
    number = len(list(forks.folder.iterdir()))
    return ForkedHost(forks.folder / f"more{number}", name)


def _join_fails(host: ForkedHost, token: str, status: int) -> str:
    """The one line that a join ends with."""
    assert host.ctl("join", "--", token) == status, host.log("xensecurectl")
    said = host.log("xensecurectl").strip()
    assert len(said.splitlines()) == 1, said
    return said.removeprefix("xensecurectl: ")


# ---- meeting


def test_both_know_each_other(fresh: ForkedPair) -> None:
    """After one join each host knows the other by name, in any case, and by address, and both directions work."""
    assert fresh.first.ctl("join", fresh.second.token()) == 0
    assert "share a link key now" in fresh.first.log("xensecurectl")
    for host, other in (fresh.hosts, fresh.hosts[::-1]):
        config = host.config
        for name in (other.name, other.name.upper(), "127.0.0.1"):
            route = find_route(config, host.peers, name, config.options_for(name))
            assert (route.peer.name, route.target.addresses, route.target.port) == (other.name, ("127.0.0.1",), other.port)
            reach(config, host.peers, load_credentials(config), route, Purpose.MIGRATE).channel.close()
    with pytest.raises(StateError, match="no link key for 'hv9'; run 'xensecurectl invite' there"):
        find_route(config, host.peers, "hv9", config.options_for("hv9"))
    wait_for(fresh.agree, "one key on both")


def test_join_again_replaces_the_key(met: ForkedPair) -> None:
    """A known host that joins again gets a new key, and once the command has ended whoever has the old one is nobody (P8)."""
    old = met.peer_of(met.first).keys[0]
    assert met.first.ctl("join", met.second.token()) == 0
    wait_for(met.agree, "the old key to go")
    assert [key.key for key in met.peer_of(met.second).keys] != [old.key]
    thief = replace(met.peer_of(met.first), keys=(old,))
    met.first.peers.put(thief)
    with pytest.raises(AuthenticationError):
        rotate(met.first.config, "hv2")


def test_old_key_until_the_new_one_worked(met: ForkedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A joiner that lost what it had stored before it could use the new key goes on with the old one; and it was told that this works still."""
    kept = met.peer_of(met.first)
    monkeypatch.setattr(pairing, "_prove", _no_proof)
    token = Token.decode(met.second.token())
    with pytest.raises(LinkLostError, match="run 'xensecurectl rotate hv2'"):
        join(met.first.config, token)
    met.first.peers.put(kept)
    assert met.both_ways()


def _no_proof(*_arguments: object) -> Peer:
    raise LinkLostError("the connection broke")


def test_leftover_of_another_name(met: ForkedPair) -> None:
    """What a crash left of a host under another name is gone when that host has joined again, on either side, with its keys."""
    for host, name in ((met.first, "hv2"), (met.second, "hv1")):
        peer = met.peer_of(host)
        for other in ("aa", "zz"):
            host.peers.put(replace(peer, contact=replace(peer.contact, name=other)))
        assert len(host.peers.all()) == 3, name
    assert met.first.ctl("join", met.second.token()) == 0
    assert [peer.name for peer in met.first.peers.all()] == ["hv2"]
    assert [peer.name for peer in met.second.peers.all()] == ["hv1"]


def test_two_hosts_at_one_address(met: ForkedPair) -> None:
    """A joiner that names no address of its own, seen at an address that another peer has, is stored without one: no address is two peers'."""
    third = _host(met, "hv3")
    third.path.write_text(third.path.read_text().replace('addresses = ["127.0.0.1"]', 'addresses = ["0.0.0.0"]'))
    assert third.ctl("join", met.second.token()) == 0, third.log("xensecurectl")
    stored = met.second.peers.get("hv3")
    assert stored is not None
    assert stored.contact.addresses == ()
    assert met.second.peers.find("127.0.0.1") == met.peer_of(met.second)


def test_renamed_host(met: ForkedPair) -> None:
    """A host that joins again under a new name is known under that alone, on either side."""
    text = met.first.path.read_text()
    met.first.path.write_text(text.replace('name = "hv1"', 'name = "hv1-new"'))
    try:
        assert met.first.ctl("join", met.second.token()) == 0
    finally:
        met.first.path.write_text(text)
    assert [peer.name for peer in met.second.peers.all()] == ["hv1-new"]
    assert met.connects(met.first, met.second)
    text = met.second.path.read_text()
    met.second.path.write_text(text.replace('name = "hv2"', 'name = "hv2-new"'))
    try:
        assert met.first.ctl("join", met.second.token()) == 0
    finally:
        met.second.path.write_text(text)
    assert [peer.name for peer in met.first.peers.all()] == ["hv2-new"]


@pytest.mark.parametrize("name", ["hv1", "HV1", "127.0.0.1"])
def test_name_of_another(met: ForkedPair, name: str) -> None:
    """A joiner that claims another known host's name, or calls itself by its address, is refused, and what is stored stays."""
    before = met.peer_of(met.second)
    said = _join_fails(_host(met, name), met.second.token(), 12)
    assert f"another host called {name} is known there; 'xensecurectl forget hv1' there" in said
    assert met.peer_of(met.second).contact == before.contact
    assert met.both_ways()


def test_inviter_with_the_name_of_another(met: ForkedPair) -> None:
    """A token of a host that has a known host's name and another identity is refused before anything is sent."""
    said = _join_fails(met.first, _host(met, "hv2").token(), 4)
    assert "another host called hv2 is known here" in said
    assert "'xensecurectl forget hv2'" in said


@pytest.mark.parametrize("name", ["hv2", "HV2"])
def test_same_name(fresh: ForkedPair, name: str) -> None:
    """Two hosts of the same name are told so by the joiner, and by the destination where the joiner does not look."""
    twin = _host(fresh, name)
    assert "both hosts call themselves hv2" in _join_fails(twin, fresh.second.token(), 4)
    with pytest.raises(RefusedError, match=f"both hosts call themselves {name}"):
        _pair_as(fresh, Contact(name=name, port=1, addresses=()))


@pytest.mark.parametrize(
    "contact",
    [
        Contact(name="../hv1", port=8003, addresses=()),
        Contact(name="", port=8003, addresses=()),
        Contact(name="-hv1", port=8003, addresses=()),
        Contact(name="hv 1", port=8003, addresses=()),
        Contact(name="hv1", port=0, addresses=("127.0.0.1",)),
        Contact(name="hv1", port=8003, addresses=("a b",)),
        Contact(name="hv1", port=8003, addresses=("",)),
    ],
)
def test_unfit_contact(fresh: ForkedPair, contact: Contact) -> None:
    """A joiner whose name, port or address cannot be one is refused, and its token still works for another."""
    token = Token.decode(fresh.second.token())
    # What cannot even be a contact on the wire ends the key exchange.
    with pytest.raises((RefusedError, LinkLostError), match=r"joining host|closed the connection"):
        _pair_as(fresh, contact, token)
    assert not fresh.second.peers.all()
    assert fresh.first.ctl("join", token.encode()) == 0


def _pair_as(forks: ForkedPair, contact: Contact, token: Token | None = None) -> None:
    """Join as a source that says of itself what it likes."""
    token = token or Token.decode(forks.second.token())
    key = invitation_key(token.secret)
    connection = establish(
        credentials=load_credentials(forks.first.config),
        target=Target(addresses=token.contact.addresses, port=token.contact.port),
        hello=SourceHello(purpose=Purpose.PAIR, key_id=key_id(key), contact=contact),
        key=key,
        pin=token.pin,
        names=(),
        seconds=10,
    )
    with contextlib.closing(connection.channel):
        connection.channel.send(FrameType.OPEN)
        accepted_payload(connection)


def test_unfit_inviter(fresh: ForkedPair) -> None:
    """A token whose host has a name that cannot be one is refused before anything is sent."""
    token = Token.decode(fresh.second.token())
    with pytest.raises(TokenError, match="name"):
        join(fresh.first.config, replace(token, contact=replace(token.contact, name="../x")))


# ---- tokens that do not work


def test_unusable_tokens(fresh: ForkedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Used, expired, mistyped, foreign and forgotten tokens each get their own message and exit status 13."""
    first, second = fresh.hosts
    said = {}
    used = second.token()
    assert first.ctl("join", used) == 0
    said["used"] = _join_fails(first, used, 13)
    expired = make_token(second.config, ttl=-5, addresses=("127.0.0.1",))
    said["expired"] = _join_fails(first, expired.encode(), 13)
    for path in (second.state / "invitations").iterdir():
        path.unlink()
    said["expired and gone"] = _join_fails(first, expired.encode(), 13)
    said["gone"] = _join_fails(first, used, 13)
    said["mistyped"] = _join_fails(first, used[:-1], 13)
    said["no token"] = _join_fails(first, used[4:], 13)
    stranger = _host(fresh, "hv3")
    foreign = make_token(stranger.config, ttl=600, addresses=("127.0.0.1",))
    said["foreign"] = _join_fails(first, replace(foreign, contact=replace(foreign.contact, port=second.port)).encode(), 13)
    assert len(set(said.values())) == len(said)
    words = {
        "used": "has been used",
        "expired": "this token expired ",
        "expired and gone": "does not know it any more",
        "gone": "does not know this token",
        "mistyped": "mistyped or cut short",
        "no token": "no xensecure token",
        "foreign": "is not the one that made this token",
    }
    for kind, text in words.items():
        assert text in said[kind], kind


def test_deleted_state(fresh: ForkedPair) -> None:
    """A token of an identity that its host has lost is a stranger's token."""
    token = fresh.second.token()
    for name in ("identity.key", "identity.crt"):
        (fresh.second.state / name).unlink()
    make_identity(fresh.second.config)
    fresh.second.restart("launcher")
    fresh.second.restart("receiver")
    try:
        assert "its identity is new" in _join_fails(fresh.first, token, 13)
    finally:
        fresh.set_back("fresh")
        fresh.second.restart("launcher")
        fresh.second.restart("receiver")


def test_used_by_another(fresh: ForkedPair) -> None:
    """A token that one host has used is used for every other."""
    token = fresh.second.token()
    assert fresh.first.ctl("join", token) == 0
    assert "has been used" in _join_fails(_host(fresh, "hv3"), token, 13)


# ---- several addresses


def _silent_port() -> tuple[list[socket.socket], int]:
    """A port of 127.0.0.2 that answers nobody, for its listener's queue is full; the sockets must be kept."""
    listener = socket.socket()
    listener.bind(("127.0.0.2", 0))
    listener.listen(0)
    kept = [listener]
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.connect_ex(listener.getsockname())
        kept.append(sock)
    time.sleep(0.05)
    return kept, listener.getsockname()[1]


def _token_with(host: ForkedHost, *addresses: str) -> Token:
    return make_token(host.config, ttl=600, addresses=addresses)


@pytest.mark.parametrize("dead", ["127.0.0.3", "192.0.2.1.invalid", "::1"])
def test_first_address_dead(fresh: ForkedPair, dead: str) -> None:
    """An address at which nobody answers costs a join nothing worth speaking of."""
    with within(3):
        join(fresh.first.config, _token_with(fresh.second, dead, "127.0.0.1"))


def test_first_address_silent(fresh: ForkedPair) -> None:
    """An address that swallows packets costs a join less than two seconds."""
    kept, port = _silent_port()
    text = fresh.second.path.read_text()
    fresh.second.path.write_text(text.replace(f"port = {fresh.second.port}", f"port = {port}"))
    try:
        fresh.second.restart("receiver")
        with within(3):
            join(fresh.first.config, _token_with(fresh.second, "127.0.0.2", "127.0.0.1"))
    finally:
        fresh.second.path.write_text(text)
        fresh.second.restart("receiver")
        for sock in kept:
            sock.close()


def test_first_address_somebody_else(fresh: ForkedPair) -> None:
    """An address that is another xensecure's, seen from the joiner (that of a bridge which every host has), is passed over."""
    other = _host(fresh, "hv3")
    text = other.path.read_text()
    other.path.write_text(text.replace("127.0.0.1", "127.0.0.2").replace(f"port = {other.port}", f"port = {fresh.second.port}"))
    try:
        other.start_receiver()
        with within(3):
            join(fresh.first.config, _token_with(fresh.second, "127.0.0.2", "127.0.0.1"))
    finally:
        other.stop("receiver")


def test_ipv6(fresh: ForkedPair) -> None:
    """Hosts meet over IPv6, and the destination notes the address that the source came from."""
    text = fresh.second.path.read_text()
    fresh.second.path.write_text(text.replace('["127.0.0.1"]', '["::1"]'))
    own = fresh.first.path.read_text()
    fresh.first.path.write_text(own.replace('["127.0.0.1"]', '["::", "0.0.0.0"]'))
    try:
        fresh.second.restart("receiver")
        token = _token_with(fresh.second, "::1")
        assert Token.decode(token.encode()).contact.addresses == ("::1",)
        peer: Peer = join(fresh.first.config, token)
        assert peer.contact.addresses == ("::1",)
        assert fresh.connects(fresh.first, fresh.second)
        assert fresh.peer_of(fresh.second).contact.addresses == ("::1",)
    finally:
        fresh.second.path.write_text(text)
        fresh.first.path.write_text(own)
        fresh.second.restart("receiver")


def test_nobody_answers(fresh: ForkedPair) -> None:
    """Without any answer every address is named, with what to look at."""
    fresh.second.stop("receiver")
    try:
        said = _join_fails(fresh.first, _token_with(fresh.second, "127.0.0.1", "127.0.0.3").encode(), 20)
    finally:
        fresh.second.start_receiver()
    assert "127.0.0.1" in said
    assert "127.0.0.3" in said
    assert "is xensecured running there" in said


# ---- rotating and forgetting


def test_rotate(met: ForkedPair) -> None:
    """A rotation makes the next generation, and the old key is accepted no more."""
    old = met.peer_of(met.first)
    assert met.first.ctl("rotate", "127.0.0.1") == 0
    assert "generation 2; the old one is gone" in met.first.log("xensecurectl")
    wait_for(met.agree, "one key on both")
    new = met.peer_of(met.first)
    assert [key.generation for key in new.keys] == [2]
    met.first.peers.put(old)
    assert not met.connects(met.first, met.second)


def test_rotate_that_did_not_take(met: ForkedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation whose new key the other side has lost meanwhile says so, and the old key goes on working."""
    kept = met.peer_of(met.second)
    finish = pairing._finish

    def finish_and_lose(connection: Connection) -> None:
        finish(connection)
        met.second.peers.put(kept)

    monkeypatch.setattr(pairing, "_finish", finish_and_lose)
    with pytest.raises(AuthenticationError, match="did not take the new link key; the one before still works"):
        rotate(met.first.config, "hv2")
    assert met.both_ways()


def test_forget(met: ForkedPair) -> None:
    """A forgotten host is refused as anybody is who does not hold a key, and the destination's log says from where it came."""
    known = met.peer_of(met.second)
    assert met.second.ctl("forget", "hv1") == 0
    assert not met.connects(met.first, met.second)
    wait_for(lambda: "SECURITY: authentication from 127.0.0.1 failed: unknown key id" in met.second.log("launcher"), "the log line")
    forgotten = _failure(met)
    met.second.peers.put(replace(known, keys=(LinkKey(generation=1, key=b"w" * 32),)))
    assert _failure(met) == forgotten


def _failure(forks: ForkedPair) -> str:
    config = forks.first.config
    with pytest.raises(AuthenticationError) as caught:
        reach(config, forks.first.peers, load_credentials(config), find_route(config, forks.first.peers, "hv2", config.defaults), Purpose.MIGRATE)
    return str(caught.value)


def test_address_of_another(met: ForkedPair) -> None:
    """A joiner that claims another known host's address and port is refused, and that host is still found by them."""
    thief = _host(met, "hv9")
    thief.path.write_text(thief.path.read_text().replace(f"port = {thief.port}", f"port = {met.first.port}"))
    said = _join_fails(thief, met.second.token(), 12)
    assert "names an address that belongs to hv1 there" in said
    assert met.second.peers.find("127.0.0.1") == met.peer_of(met.second)


def test_joining_again_and_again(met: ForkedPair) -> None:
    """However many keys a host that joins again has left behind, two at the most stay beside the new one."""
    peer = met.peer_of(met.second)
    left = tuple(LinkKey(generation=1, key=bytes([number]) * 32) for number in range(1, 40))
    met.second.peers.put(replace(peer, keys=(*peer.keys, *left)))
    assert met.first.ctl("join", met.second.token()) == 0
    assert len(met.peer_of(met.second).keys) <= 3
    assert met.both_ways()


def test_withdrawn_token(fresh: ForkedPair) -> None:
    """After `withdraw` the tokens that nobody has used work no more."""
    token = fresh.second.token()
    assert fresh.second.ctl("withdraw") == 0
    assert "1 token " in fresh.second.log("xensecurectl")
    assert "does not know this token" in _join_fails(fresh.first, token, 13)
