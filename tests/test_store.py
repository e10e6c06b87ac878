"""The state folder's files: written whole or not at all, read only if nobody else can."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pairing_forks import KILLED, Fate, ForkedHost
from xensecure.destination.launcher import serve
from xensecure.link import journal, store
from xensecure.link.hooks import Role
from xensecure.link.identity import load_credentials, make_identity
from xensecure.link.journal import Journal, entries
from xensecure.link.live import live_sessions
from xensecure.link.peers import Invitation, InvitationState, LinkKey, Peer
from xensecure.proto.errors import StateError
from xensecure.proto.messages import Contact


@pytest.fixture
def host(tmp_path: Path) -> ForkedHost:
    """A host with an identity and no daemons."""
    return ForkedHost(tmp_path / "hv1", "hv1")


def _peer(name: str = "hv2", *keys: int) -> Peer:
    link_keys = tuple(LinkKey(generation=number, key=bytes([number]) * 32) for number in keys or (1,))
    return Peer(contact=Contact(name=name, port=8003, addresses=("192.0.2.2",)), pin=b"p" * 32, keys=link_keys, since=1)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_modes(host: ForkedHost, mask: int) -> None:
    """Folders are 0700 and files 0600, the journal's too, whatever the umask is."""
    shutil.rmtree(host.state)
    before = os.umask(mask)
    try:
        make_identity(host.config)
        host.peers.put(_peer())
        host.peers.put_invitation(Invitation(key=b"k" * 32, expiry=1 << 40))
        Journal(host.state, Role.DESTINATION).append(b"s" * 16, "start")
        assert host.peers.hold_renewal("hv2", 0)
    finally:
        os.umask(before)
    for path in (host.state, *host.state.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_readable_secrets(host: ForkedHost, mode: int) -> None:
    """A key, peer or invitation that others can read is refused in one line that names the file, its mode and the remedy."""
    host.peers.put(_peer())
    host.peers.put_invitation(Invitation(key=b"k" * 32, expiry=1 << 40))
    readers: dict[str, Callable[[], object]] = {
        ".key": lambda: load_credentials(host.config),
        ".peer": lambda: host.peers.find("hv2"),
        ".invitation": lambda: host.peers.require_private(),
    }
    for path in (*host.state.glob("*/*.*"), host.state / "identity.key"):
        path.chmod(mode)
        with pytest.raises(StateError) as caught:
            readers[path.suffix]()
        said = str(caught.value)
        assert said.startswith(f"{path}:1: ")
        assert f"mode {mode:04o}" in said
        assert "chmod 600" in said
        path.chmod(0o600)


def test_credentials_by_systemd(host: ForkedHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key in CREDENTIALS_DIRECTORY may have the group's read bit, which is how systemd's ACL for the unit's user shows; no other."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    for name in ("identity.key", "identity.crt"):
        (folder / name).write_bytes((host.state / name).read_bytes())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    (folder / "identity.key").chmod(0o440)
    assert load_credentials(host.config).pin
    (folder / "identity.key").chmod(0o444)
    with pytest.raises(StateError, match="mode 0444"):
        load_credentials(host.config)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_is_not_root_is_told(host: ForkedHost) -> None:
    """Whatever of the state folder another user wants, he is told as whom to run the command."""
    uses: list[Callable[[], object]] = [
        lambda: store.require_private(host.state / "peers"),
        lambda: store.make_directory(host.state / "peers/new"),
        lambda: store.usable_files(host.state / "peers", ".peer"),
        lambda: store.read_secret(host.state / "identity.key"),
        lambda: list(journal.entries(host.state)),
        lambda: live_sessions(host.state / "run"),
    ]
    os.seteuid(65534)  # nobody
    try:
        for use in uses:
            with pytest.raises(StateError, match="Permission denied; run this as root, or as the user who owns it"):
                use()
    finally:
        os.seteuid(0)


def test_open_folder(host: ForkedHost) -> None:
    """A state folder that others can enter is refused."""
    host.state.chmod(0o750)
    with pytest.raises(StateError, match=r"mode 0750.*chmod 700"):
        make_identity(host.config)


def test_not_a_file(host: ForkedHost, tmp_path: Path) -> None:
    """A link, a folder, a socket or a giant in a secret's place is refused, not followed or read."""
    key = host.state / "identity.key"
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"identity.key"):
        load_credentials(host.config)
    key.unlink()
    key.mkdir(mode=0o700)
    with pytest.raises(StateError, match="not a file"):
        load_credentials(host.config)
    key.rmdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(key))
        with pytest.raises(StateError, match=r"identity.key"):
            load_credentials(host.config)
    key.unlink()
    with key.open("wb") as giant:
        giant.truncate(2 << 20)
    key.chmod(0o600)
    with pytest.raises(StateError, match="not a file"):
        load_credentials(host.config)


@pytest.mark.parametrize("at", range(1, 5))
def test_killed_in_write(host: ForkedHost, at: int) -> None:
    """Killed anywhere in a write, a file has all of its old or all of its new content; the next write clears away what is left."""
    path = host.state / "peers/hv2.peer"
    host.peers.put(_peer("hv2", 1))

    def write() -> int:
        host.peers.put(_peer("hv2", 2))
        return 0

    pid = host.fork("write", write, (), Fate(at))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (KILLED if at < 4 else 0)
    found = host.peers.get("hv2")
    assert found is not None
    assert [key.generation for key in found.keys] == ([1] if at < 3 else [2])
    left = list(path.parent.glob(".*.tmp"))
    assert bool(left) == (at < 3)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in left)
    host.peers.put(_peer("hv3"))
    assert not list(path.parent.glob(".*.tmp"))
    assert {peer.name for peer in host.peers.all()} == {"hv2", "hv3"}


@pytest.mark.parametrize("at", range(1, 9))
def test_killed_in_init(tmp_path: Path, at: int) -> None:
    """Killed anywhere in `init`, the next one completes it."""
    host = ForkedHost(tmp_path / "hv1", "hv1")
    for name in ("identity.key", "identity.crt"):
        (host.state / name).unlink()
    host.ctl("init", fate=Fate(at))
    assert host.ctl("init") == 0, host.log("xensecurectl")
    assert load_credentials(host.config).pin
    assert not list(host.state.rglob("*.tmp"))


def test_identity_stays(host: ForkedHost) -> None:
    """A second `init` changes nothing; one after the certificate was lost makes it anew for the same key, and so the same pin."""
    pin = load_credentials(host.config).pin
    key = (host.state / "identity.key").read_bytes()
    assert not make_identity(host.config)
    (host.state / "identity.crt").unlink()
    assert not make_identity(host.config)
    assert load_credentials(host.config).pin == pin
    assert (host.state / "identity.key").read_bytes() == key
    (host.state / "identity.crt").unlink()
    (host.state / "identity.key").write_bytes(b"nonsense")
    with pytest.raises(StateError, match=r"identity.key: not a key"):
        make_identity(host.config)
    assert (host.state / "identity.key").read_bytes() == b"nonsense"


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"{}\n", b"[]\n" + b"k" * 32, b"null\n", b"\xff\n", b'{"format": 2}\n' + b"k" * 32],
)
def test_damaged_files(host: ForkedHost, damage: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """A damaged peer or invitation is named with its remedy, and the remedy works."""
    host.peers.put(_peer())
    path = host.state / "peers/hv2.peer"
    path.write_bytes(damage)
    with pytest.raises(StateError, match=r"hv2.peer: damaged; .*'xensecurectl forget hv2'"):
        host.peers.find("hv2")
    assert host.ctl("forget", "hv2") == 0, host.log("xensecurectl")
    assert host.peers.find("hv2") is None
    path = host.state / "invitations/x.invitation"
    store.write_secret(path, damage)
    assert host.peers.invitations() == []
    assert f"passed over: {path}: damaged; remove it, and invite again" in capfd.readouterr().err


def test_cut_short(host: ForkedHost) -> None:
    """A peer's file that lacks any number of its last bytes is refused, and so is one with bytes too many or without a key."""
    host.peers.put(_peer("hv2", 1, 2))
    path = host.state / "peers/hv2.peer"
    whole = path.read_bytes()
    for content in (*(whole[:length] for length in range(len(whole))), whole + b"k", whole + b"k" * 32):
        path.write_bytes(content)
        with pytest.raises(StateError, match="damaged"):
            host.peers.get("hv2")
    path.write_bytes(whole[:-64].replace(b"[1, 2]", b"[]"))
    with pytest.raises(StateError, match="damaged"):
        host.peers.get("hv2")
    path.with_name("hv9.peer").write_bytes(whole)
    path.with_name("hv9.peer").chmod(0o600)
    with pytest.raises(StateError, match=r"hv9.peer: damaged"):
        host.peers.get("hv9")


def test_old_invitations_go(host: ForkedHost) -> None:
    """An invitation is kept for a day after its end, to be told from one that never was."""
    host.peers.put_invitation(Invitation(key=b"a" * 32, expiry=1000))
    host.peers.put_invitation(Invitation(key=b"b" * 32, expiry=1 << 40))
    assert [invitation.expiry for invitation in host.peers.invitations()] == [1 << 40]


def test_forget_withdraws_claims(host: ForkedHost) -> None:
    """A forgotten host cannot come back by a token that it has claimed and not finished with."""
    host.peers.put(_peer())
    host.peers.put_invitation(Invitation(key=b"a" * 32, expiry=1 << 40, state=InvitationState.CLAIMED, claimed_by=b"p" * 32))
    host.peers.put_invitation(Invitation(key=b"b" * 32, expiry=1 << 40, state=InvitationState.CLAIMED, claimed_by=b"q" * 32))
    host.peers.forget("hv2")
    assert sorted(invitation.state.value for invitation in host.peers.invitations()) == ["claimed", "done"]


def test_longest_name(host: ForkedHost) -> None:
    """A peer with the longest name there may be can be stored, renewed and forgotten."""
    name = "x" * 230
    host.peers.put(_peer(name))
    assert host.peers.hold_renewal(name, 0)
    assert host.peers.find(name) == _peer(name)
    assert host.peers.forget(name)


def test_full_disk(host: ForkedHost) -> None:
    """A file that cannot be written is one line with its name and the reason, and nothing is left beside it."""
    path = host.state / "peers" / ("x" * 250)
    with pytest.raises(StateError, match="cannot be written: File name too long"):
        store.write_secret(path, b"")
    assert not list(path.parent.iterdir())


def test_no_start_with_open_secrets(host: ForkedHost) -> None:
    """The launcher does not start while others can read a peer's file, and names that file."""
    host.peers.put(_peer())
    (host.state / "peers/hv2.peer").chmod(0o644)
    with pytest.raises(StateError, match=r"hv2.peer:1: others can read this secret"):
        serve(host.config)


def test_full_disk_loses_nothing(host: ForkedHost) -> None:
    """A disk that takes only a part leaves the peer's file as it was, and the journal's next line whole."""
    host.peers.put(_peer())
    path = host.state / "peers/hv2.peer"
    before = path.read_bytes()
    journal = Journal(host.state, Role.DESTINATION)
    journal.append(b"1", "start")

    def with_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(StateError, match="cannot be written"):
            host.peers.put(_peer())
        with pytest.raises(StateError, match="cannot be written"):
            journal.append(b"2", "start", why="x" * 200)

    child = os.fork()
    if child == 0:
        status = 1
        try:
            with_full_disk()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == before
    journal.append(b"3", "start")
    assert [entry["session"] for entry in entries(host.state)] == ["31", "33"]
