"""The hosts that this one has met, and the invitations that are open: docs/protocol.md, section 5.

One file each under the state folder, mode 0600: a line of JSON, then the raw keys. The keys are no text so that no copy of them is left
in a decoder's strings.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..proto import limits
from ..proto.errors import StateError
from ..proto.keyschedule import key_id
from ..proto.messages import Contact
from . import store
from .config import Config
from .engine import wipe
from .keys import NAME_PATTERN
from .say import say

PROGRAM = "xensecure"
T = TypeVar("T")
_FORMAT = 1
# Link keys kept beside a new one when a host joins again: the one that works, and one that a rotation may have left half made.
KEYS_KEPT = 2


@dataclass(frozen=True)
class LinkKey:
    """One generation of the secret that two hosts share."""

    generation: int
    key: bytes = field(repr=False)

    @property
    def id(self) -> bytes:
        """Its public id, 16 bytes."""
        return key_id(self.key)


@dataclass(frozen=True)
class Peer:
    """A host that this one has met: where it answers, its pin, and the link keys, oldest first (two while one replaces the other)."""

    contact: Contact
    pin: bytes
    keys: tuple[LinkKey, ...]
    since: int
    rotated: int = 0

    @property
    def name(self) -> str:
        """The peer's name, which is also its file's."""
        return self.contact.name

    def with_next_key(self, key: bytes, now: int) -> Peer:
        """This peer with one more link key beside the one that works (R2)."""
        working = self.keys[0]
        return replace(self, keys=(working, LinkKey(generation=working.generation + 1, key=key)), rotated=now)


class InvitationState(enum.Enum):
    """How far an invitation has come (P4 to P7)."""

    OPEN = "open"
    CLAIMED = "claimed"
    DONE = "done"


@dataclass(frozen=True)
class Invitation:
    """What the destination keeps of a token: the key that verifies it, never the secret."""

    key: bytes = field(repr=False)
    expiry: int
    state: InvitationState = InvitationState.OPEN
    claimed_by: bytes = b""

    @property
    def id(self) -> bytes:
        """The public id, 16 bytes."""
        return key_id(self.key)


class Peers:
    """The peers and invitations in one host's state folder. Every change is read, made and written under the folder's lock."""

    def __init__(self, config: Config) -> None:
        self._state = config.state
        self._peers = config.state / "peers"
        self._invitations = config.state / "invitations"
        self._renewal: int | None = None
        for folder in (self._state, self._peers, self._invitations):
            store.require_private(folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the state folder's lock."""
        with store.locked(self._state):
            yield

    def hold_renewal(self, name: str, seconds: float) -> bool:
        """Take the right to renew the link key with that peer, until ``end_renewal`` or the process's end; whether it was free in time.

        Two renewals at once would each replace what the other has just made, and could leave the hosts with no key in common.
        """
        self.end_renewal()
        self._renewal = store.lock_within(self._path(name).with_name(f".{name}.renewal"), seconds)
        return self._renewal is not None

    def end_renewal(self) -> None:
        """Give that right back."""
        if self._renewal is not None:
            os.close(self._renewal)
            self._renewal = None

    def all(self) -> list[Peer]:
        """Every peer, by name; a damaged file is passed over with a line in the log, for it must not shut the others out."""
        return _read_all(_read_peer, store.usable_files(self._peers, ".peer"))

    def damaged(self) -> list[str]:
        """What is wrong with the files of peers that are passed over."""
        found = []
        for path in store.usable_files(self._peers, ".peer"):
            try:
                wipe_keys(_read_peer(path))
            except FileNotFoundError:
                continue
            except StateError as error:
                found.append(str(error))
        return found

    def require_private(self) -> None:
        """StateError if others can read a peer's or an invitation's file: no start with secrets that are none."""
        for folder, suffix in ((self._peers, ".peer"), (self._invitations, ".invitation")):
            for path in store.usable_files(folder, suffix):
                with contextlib.suppress(FileNotFoundError):
                    wipe(store.read_secret(path))

    def get(self, name: str) -> Peer | None:
        """The peer of that name."""
        if not NAME_PATTERN.fullmatch(name):
            return None
        try:
            return _read_peer(self._path(name))
        except FileNotFoundError:
            return None

    def has_file(self, name: str) -> bool:
        """Whether a peer of exactly that name is stored, well or damaged."""
        return bool(NAME_PATTERN.fullmatch(name)) and self._path(name).exists()

    def find(self, host: str) -> Peer | None:
        """The peer with that name, or else with that address; StateError if several have the address."""
        exact = self.get(host)
        if exact is not None:
            return exact
        peers = self.all()
        found = [peer for peer in peers if peer.name.lower() == host.lower()] or [peer for peer in peers if host in peer.contact.addresses]
        for peer in peers:
            if peer not in found[:1]:
                wipe_keys(peer)
        if len(found) > 1:
            names = ", ".join(peer.name for peer in found)
            raise StateError(f"{host} is an address of several peers ({names}); name the one you mean")
        return found[0] if found else None

    def with_pin(self, pin: bytes) -> Peer | None:
        """The peer with that pin, whatever it calls itself."""
        return next((peer for peer in self.all() if peer.pin == pin), None)

    def with_key(self, wanted: bytes) -> tuple[Peer, LinkKey] | None:
        """The peer and link key with that id.

        Reads every peer, so that the time it takes tells nothing of the answer (C6); wipes the keys that it does not return.
        """
        found = None
        for peer in self.all():
            for link_key in peer.keys:
                if link_key.id == wanted:
                    found = (peer, link_key)
                else:
                    wipe(link_key.key)
        return found

    def put(self, peer: Peer) -> None:
        """Write a peer, durably; the caller holds the lock."""
        head = {
            "format": _FORMAT,
            "name": peer.name,
            "port": peer.contact.port,
            "addresses": list(peer.contact.addresses),
            "pin": peer.pin.hex(),
            "generations": [key.generation for key in peer.keys],
            "since": peer.since,
            "rotated": peer.rotated,
        }
        store.make_directory(self._peers)
        _write(self._path(peer.name), head, [key.key for key in peer.keys])

    def forget(self, name: str) -> bool:
        """Remove a peer, durably, even if its file is damaged; whether there was one. The caller holds the lock."""
        path = self._path(name)
        known = path.exists()
        with contextlib.suppress(StateError, FileNotFoundError):
            self._withdraw(_read_peer(path).pin)
        store.remove(path)  # the renewal's lock file stays: somebody may hold it
        return known

    def forget_other_names(self, peer: Peer) -> None:
        """Remove what is stored of the same host under other names, be it from a crash; the caller holds the lock."""
        for other in self.all():
            if other.pin == peer.pin and other.name != peer.name:
                store.remove(self._path(other.name))

    def _withdraw(self, pin: bytes) -> None:
        """A token that this host has claimed but not finished with must not bring it back."""
        for invitation in self.invitations():
            if invitation.state is InvitationState.CLAIMED and invitation.claimed_by == pin:
                self.put_invitation(replace(invitation, state=InvitationState.DONE))

    def settle(self, name: str, worked: bytes) -> bool:
        """The other host has made or answered a proof with the key of id ``worked``: drop the older ones. Whether there were any.

        Newer ones stay. At the destination: the source may be about to store them (R3). At the source: that they were refused is nobody's
        authenticated word, only a connection that ended; whoever can cut connections could otherwise part the hosts for good.
        """
        with self.locked():
            peer = self.get(name)
            ids = [key.id for key in peer.keys] if peer else []
            if peer is None or worked not in ids[1:]:
                return False
            self.put(replace(peer, keys=peer.keys[ids.index(worked) :]))
            return True

    def _path(self, name: str) -> Path:
        if not NAME_PATTERN.fullmatch(name):
            raise StateError(f"{name!r} cannot be a host's name; use letters, digits, '.', '_' and '-'")
        return self._peers / f"{name}.peer"

    def invitations(self) -> list[Invitation]:
        """Every invitation that is kept; damaged files are passed over as in ``all``."""
        return _read_all(_read_invitation, store.usable_files(self._invitations, ".invitation"))

    def invitation_with_id(self, wanted: bytes) -> Invitation | None:
        """The invitation with that id; reads them all, as ``with_key`` does."""
        found = None
        for invitation in self.invitations():
            if invitation.id == wanted:
                found = invitation
        return found

    def put_invitation(self, invitation: Invitation) -> None:
        """Write an invitation, durably, and drop those that are long over; the caller holds the lock."""
        store.make_directory(self._invitations)
        for old in self.invitations():
            if old.expiry + limits.INVITATION_KEPT_SECONDS < time.time():
                store.remove(self._invitation_path(old))
        head = {
            "format": _FORMAT,
            "expiry": invitation.expiry,
            "state": invitation.state.value,
            "claimed_by": invitation.claimed_by.hex(),
        }
        _write(self._invitation_path(invitation), head, [invitation.key])

    def withdraw_open(self) -> int:
        """Remove the invitations that nobody has claimed; how many there were. The caller holds the lock."""
        still_open = [invitation for invitation in self.invitations() if invitation.state is InvitationState.OPEN]
        for invitation in still_open:
            store.remove(self._invitation_path(invitation))
        return len([invitation for invitation in still_open if invitation.expiry >= time.time()])

    def _invitation_path(self, invitation: Invitation) -> Path:
        return self._invitations / f"{invitation.id.hex()}.invitation"


def wipe_keys(peer: Peer) -> None:
    """Overwrite a peer's link keys, which are of no more use."""
    for link_key in peer.keys:
        wipe(link_key.key)


def _read_all(read: Callable[[Path], T], paths: list[Path]) -> list[T]:
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except FileNotFoundError:
            continue  # it went away meanwhile
        except StateError as error:
            say(Path(sys.argv[0]).name or PROGRAM, f"passed over: {error}")  # all commands read peers
    return found


def _write(path: Path, head: dict[str, Any], keys: list[bytes]) -> None:
    content = b"".join((json.dumps(head).encode(), b"\n", *keys))
    try:
        store.write_secret(path, content)
    finally:
        wipe(content)


def _read(path: Path, count: str | None, remedy: str) -> tuple[dict[str, Any], list[bytes]]:
    """The head and the keys of a file; ``count`` names the head's list that has one entry a key (None: one key)."""
    content = store.read_secret(path)
    try:
        line, newline, raw = content.partition(b"\n")
        head = json.loads(line)
        keys = [raw[at : at + limits.LINK_KEY_LEN] for at in range(0, len(raw), limits.LINK_KEY_LEN)]
        wanted = len(head[count]) if count else 1
        if not newline or head["format"] != _FORMAT or len(keys) != wanted or any(len(key) != limits.LINK_KEY_LEN for key in keys):
            raise ValueError
        wipe(raw if len(keys) > 1 else b"")  # a slice of the whole is the same object in CPython
        return head, keys
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{path}: damaged; {remedy}") from None
    finally:
        wipe(content)


def _read_peer(path: Path) -> Peer:
    remedy = f"restore it from a backup, or run 'xensecurectl forget {path.stem}' and pair again"
    head, keys = _read(path, "generations", remedy)
    try:
        if head["name"] != path.stem or not keys or type(head["port"]) is not int or not isinstance(head["addresses"], list):
            raise ValueError
        return Peer(
            contact=Contact(name=head["name"], port=head["port"], addresses=tuple(head["addresses"])),
            pin=bytes.fromhex(head["pin"]),
            keys=tuple(LinkKey(generation=generation, key=key) for generation, key in zip(head["generations"], keys, strict=True)),
            since=head["since"],
            rotated=head["rotated"],
        )
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{path}: damaged; {remedy}") from None


def _read_invitation(path: Path) -> Invitation:
    remedy = "remove it, and invite again"
    head, keys = _read(path, None, remedy)
    try:
        return Invitation(
            key=keys[0],
            expiry=head["expiry"],
            state=InvitationState(head["state"]),
            claimed_by=bytes.fromhex(head["claimed_by"]),
        )
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{path}: damaged; {remedy}") from None
