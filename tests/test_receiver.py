"""The destination's processes: what they may do, and what they know."""

from __future__ import annotations

import base64
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import PATIENCE, RECEIVER_USER, Pair, Session, transports, wait_for
from tests.xl.hosts import Point, Running
from xensecure.link.config import load_config
from xensecure.link.hardening import find_user
from xensecure.link.peers import LinkKey, Peer, Peers
from xensecure.proto import limits
from xensecure.proto.messages import Contact

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's process is looked at, or made")


@pytest.fixture
def held(pair: Pair) -> Iterator[tuple[Running, Session]]:
    """A migration that stands still when the destination's xl has read all, and its processes."""
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.READY)
    session = pair.destination.session()
    yield running, session
    pair.destination.xen.release(Point.READY)
    assert running.wait().status == 0
    wait_for(session.gone, "the session's end")


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    return dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def core_limit(pid: int) -> list[str]:
    """Soft and hard limit on the size of core dumps, as /proc has them: prlimit(2) asks for more rights than root may have here."""
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core file size")]
    return line.split()[4:6]


@as_root
def test_receiver_has_no_privileges(held: tuple[Running, Session]) -> None:
    """Started as root, a receiver is the receivers' user alone, without groups, capabilities, new privileges, core dumps."""
    receiver = held[1].receiver
    account = find_user(RECEIVER_USER)
    facts = status(receiver)
    assert facts["Uid"].split() == [str(account.pw_uid)] * 4
    assert facts["Gid"].split() == [str(account.pw_gid)] * 4
    assert facts["Groups"].strip() == ""
    assert facts["NoNewPrivs"] == "1"
    assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert core_limit(receiver) == ["0", "0"]
    # What is not dumpable belongs to root in /proc (proc(5)), whatever its user is.
    assert Path(f"/proc/{receiver}/mem").stat().st_uid == 0


@as_root
def test_listener_has_no_privileges(pair: Pair) -> None:
    """The process that listens has dropped root as well."""
    listener = pair.destination.processes["xensecured"].pid
    facts = status(listener)
    assert set(facts["Uid"].split()) == {str(find_user(RECEIVER_USER).pw_uid)}
    assert facts["Groups"].strip() == ""
    assert int(facts["CapEff"], 16) == 0
    assert core_limit(listener) == ["0", "0"]


def test_xl_is_not_confined(held: tuple[Running, Session]) -> None:
    """The target's xl has what a root login would give it: the limits that the launcher was started with, and no no_new_privs."""
    xl = held[1].xl
    assert core_limit(xl) == core_limit(os.getpid())
    assert resource.prlimit(xl, resource.RLIMIT_NOFILE) == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert status(xl)["NoNewPrivs"] == status(os.getpid())["NoNewPrivs"]
    assert status(xl)["Uid"].split()[0] == str(os.getuid())
    assert int(status(xl)["SigBlk"], 16) == 0


def test_xl_has_a_clean_environment(held: tuple[Running, Session]) -> None:
    """Nothing of what the launcher was started with is in the environment of what it starts."""
    words = Path(f"/proc/{held[1].xl}/environ").read_bytes().split(b"\0")
    names = {word.partition(b"=")[0] for word in words if word}
    assert names <= {b"PATH", b"HOME", b"LANG", b"PWD", b"XEN_STUB_HOST", b"LD_LIBRARY_PATH"}


# ---- link keys


def memory_has(pid: int, *patterns: bytes) -> set[bytes]:
    """Which of the patterns stand in the readable memory of a process."""
    found: set[bytes] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights, *_ = line.split()
            if not rights.startswith("r") or line.endswith(("[vvar]", "[vsyscall]")):
                continue
            start, end = (int(word, 16) for word in where.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except OSError:  # a mapping without pages behind it
                continue
            found.update(pattern for pattern in patterns if pattern in content)
    return found


def spellings(key: bytes) -> tuple[bytes, ...]:
    """A key as it may stand in memory: raw, in half, hexadecimal."""
    return key, key[: len(key) // 2], key[len(key) // 2 :], key.hex().encode()


def add_peer(pair: Pair, name: str) -> bytes:
    """Another peer in the destination's folder; returns its link key."""
    peers = Peers(load_config(str(pair.destination.config)))
    key = os.urandom(limits.LINK_KEY_LEN)
    contact = Contact(name=name, port=1, addresses=("192.0.2.9",))
    with peers.locked():
        peers.put(Peer(contact=contact, pin=os.urandom(limits.PIN_LEN), keys=(LinkKey(generation=1, key=key),), since=1))
    return key


def remove_peer(pair: Pair, name: str) -> None:
    """Forget it again."""
    peers = Peers(load_config(str(pair.destination.config)))
    with peers.locked():
        peers.forget(name)


def file_keys(folder: Path) -> list[bytes]:
    """The raw keys at the end of peer and invitation files (link/peers.py): a line of JSON, then 32 bytes a key."""
    keys = []
    for path in (*folder.glob("*.peer"), *folder.glob("*.invitation")):
        raw = path.read_bytes().partition(b"\n")[2]
        keys += [raw[at : at + limits.LINK_KEY_LEN] for at in range(0, len(raw), limits.LINK_KEY_LEN)]
    assert all(len(key) == limits.LINK_KEY_LEN for key in keys)
    return keys


@as_root
def test_receiver_knows_no_link_key(pair: Pair, held: tuple[Running, Session]) -> None:
    """No link key and no invitation's key is anywhere in a receiver's memory, though its TLS key is: the search finds what is there."""
    state = pair.destination.state
    keys = [*file_keys(state / "peers"), *file_keys(state / "invitations")]
    assert len(keys) == 2
    identity = (state / "identity.key").read_bytes().splitlines()[1]
    patterns = [spelling for key in keys for spelling in spellings(key)]
    receiver = held[1].receiver
    # pyOpenSSL has parsed the key: what stays is the raw Ed25519 key at the end of its DER form.
    raw = base64.b64decode(identity)[-32:]
    assert memory_has(receiver, raw, *patterns) == {raw}
    assert memory_has(pair.destination.processes["xensecured"].pid, *patterns) == set()


@as_root
def test_search_finds_a_link_key(pair: Pair) -> None:
    """The same search finds the link key in a process that has read the peer's file."""
    (path,) = (pair.destination.state / "peers").glob("*.peer")
    (key,) = file_keys(path.parent)
    program = "import sys; content = open(sys.argv[1], 'rb').read(); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    process.stdout.readline()
    assert key in memory_has(process.pid, *spellings(key))
    process.communicate(timeout=PATIENCE)


@as_root
def test_keeper_forgets_link_keys(pair: Pair) -> None:
    """The launcher's process for a session holds no link key once it has judged the source: neither another peer's nor this one's."""
    other = add_peer(pair, "hv9")
    try:
        pair.destination.xen.set_hold(Point.READY)
        running = pair.migrate("web1", "-e")
        pair.destination.xen.wait_held(Point.READY)
        session = pair.destination.session()
        own = next(key for key in file_keys(pair.destination.state / "peers") if key != other)
        assert memory_has(session.keeper, *spellings(other)) == set()
        assert memory_has(session.keeper, *spellings(own)) == set()
        assert memory_has(pair.destination.processes["xensecure-launcher"].pid, *spellings(other), *spellings(own)) == set()
        pair.destination.xen.release(Point.READY)
        assert running.wait().status == 0
    finally:
        remove_peer(pair, "hv9")


@as_root
def test_source_forgets_its_link_key(pair: Pair, held: tuple[Running, Session]) -> None:
    """The source's xensecure holds no link key while the domain moves."""
    (transport,) = transports(held[0].pid)
    (key,) = file_keys(pair.source.state / "peers")
    assert memory_has(transport, *spellings(key)) == set()
