"""Further connections of a session, handed over between two keepers: docs/protocol.md, steps J2 to J4 and S3 to S5.

A keeper that has judged the source of a JOIN or RESUME is no more than a visitor at the door of the one that has the session: a socket of its own, in
a folder that is root's alone, by the session's id. What it says of the peer is its authenticated verdict; a receiver is never asked.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..link import store
from ..link.engine import wipe
from ..link.say import say
from ..proto import launcher, limits
from ..proto.errors import ProtocolError, Reason, RefusedError, StateError, SystemFailure, XensecureError
from ..proto.launcher import Kind
from .packets import Packets, peer_user

PROGRAM = "xensecure-launcher"
# Between two processes of one host that have nothing else to do; less than the receiver waits for its verdict.
_ANSWER_SECONDS = 5.0
_BEGUN_SECONDS = 60.0  # a door that is older and not open is not being made any more
# A visitor has its answer at once and gives the connection when its receiver has sent 100 bytes: as many at once as there can be connections.
_VISITORS_MAX = limits.LANES_MAX
_NO_SUCH_SESSION = "no session of that id is running there for this host"


def doors(run: Path) -> Path:
    """Where the sessions' sockets are."""
    return run / "sessions"


@contextlib.contextmanager
def _address(folder: Path, session: str) -> Iterator[str]:
    """A socket's address by way of its folder's descriptor: whatever [paths] run is, it fits sun_path (108 bytes, unix(7))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{session}"
    finally:
        os.close(descriptor)


def _knock(folder: Path, session: str) -> Packets:
    """A connection to a session's door; OSError if nobody is there (as ``_is_absence`` has it), or too many wait before it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with _address(folder, session) as address:
            sock.connect(address)
    except OSError:
        sock.close()
        raise
    sock.settimeout(None)
    return Packets(sock)


def _is_absence(error: OSError) -> bool:
    """Whether it says that nobody is there. What this process lacks (descriptors, memory) or what is busy says nothing of a session."""
    return isinstance(error, FileNotFoundError | ConnectionRefusedError)


def sweep(run: Path) -> None:
    """Remove the doors of keepers that were killed: nobody answers there."""
    folder = doors(run)
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(".") and time.time() - path.lstat().st_mtime < _BEGUN_SECONDS:
                continue  # one that is being made
            try:
                _knock(folder, path.name).close()
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


def is_going_on(run: Path, session_id: bytes) -> bool:
    """Whether a keeper has that session, or may have."""
    try:
        _knock(doors(run), session_id.hex()).close()
    except OSError as error:
        return not _is_absence(error)
    return True


def _busy() -> RefusedError:
    return RefusedError("the session there does not answer now, for a hook runs or the host is busy; ask again", Reason.LOCAL_FAULT)


class Visit:
    """The judge's side. RefusedError if there is no such session."""

    def __init__(self, run: Path, session_id: bytes) -> None:
        try:
            self._packets = _knock(doors(run), session_id.hex())
        except OSError as error:
            raise (RefusedError(_NO_SUCH_SESSION, Reason.NOT_ALLOWED) if _is_absence(error) else _busy()) from None

    def ask(self, peer: str, *, resumes: bool = False) -> None:
        """Whether the session takes a connection of this peer's; RefusedError if not."""
        try:
            self._packets.send(launcher.Join(peer, resumes).push())
            packet, _ = self._packets.receive(_ANSWER_SECONDS)
        except SystemFailure:
            raise _busy() from None
        if not packet:
            raise RefusedError(_NO_SUCH_SESSION, Reason.NOT_ALLOWED)  # it has ended just now
        if launcher.kind_of(packet) is Kind.OVER:
            raise RefusedError("its receiver there has ended, and xl there is ending", Reason.LOCAL_FAULT)
        if launcher.kind_of(packet) is not Kind.GRANTED:
            refusal = launcher.pull_refused(packet)
            raise RefusedError(refusal.text, refusal.reason)

    def give(self, packet: bytes, descriptor: int) -> None:
        """Hand the connection over: ``packet`` is LANE with its keys."""
        self._packets.send(packet, (descriptor,))

    def close(self) -> None:
        """The visit is over."""
        self._packets.close()


class Door:
    """The side of the keeper that has the session.

    Arguments: ``peer``: whose session it is; ``most``: connections beside the first, at most, from one resumption to the next;
    ``give``: passes LANE with its descriptor on to the session's receiver; ``watch``, ``unwatch``: the keeper's poll.
    """

    def __init__(
        self,
        session_id: bytes,
        *,
        peer: str,
        most: int,
        give: Callable[[bytes, int], None],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self._session = session_id.hex()
        self._peer = peer
        self._most = self._left = most
        self._over = False
        self._give = give
        self._watch, self._unwatch = watch, unwatch
        self._path: Path | None = None
        self._listener: socket.socket | None = None
        self._visitors: dict[int, Packets] = {}
        self._granted: dict[int, int] = {}  # visitor: what it has taken of ``_left``; 0 if it resumes

    def open(self, run: Path) -> None:
        """Let visitors come; StateError if they cannot."""
        folder = doors(run)
        aside = f".{self._session}"  # a name that is there is listened to: `sweep` takes one that refuses for a leftover
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            store.make_directory(folder)
            mask = os.umask(0o177)
            try:
                with _address(folder, aside) as address:
                    listener.bind(address)
            finally:
                os.umask(mask)
            listener.listen(_VISITORS_MAX)
            (folder / aside).rename(folder / self._session)
        except OSError as error:
            listener.close()
            raise StateError(f"{folder}: no socket can be made there: {error.strerror}") from None
        except StateError:
            listener.close()
            raise
        self._path, self._listener = folder / self._session, listener
        self._watch(listener.fileno(), self._accept)

    def take_no_more(self) -> None:
        """The receiver has gone, and xl has not ended yet: whoever asks is told so."""
        self._over = True

    def close(self) -> None:
        """The session is over, and its outcome in the journal. It may be called again."""
        for number in list(self._visitors):
            self._drop(number)
        if self._listener is not None and self._path is not None:
            self._unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):  # it went away between poll and accept
            sock, _ = self._listener.accept()
            uid, _, pid = peer_user(sock)
            if uid != os.geteuid() or len(self._visitors) == _VISITORS_MAX:
                say(PROGRAM, f"SECURITY: process {pid} of user {uid} wanted to give session {self._session} a connection; it was turned away")
                sock.close()
                return
            number = sock.fileno()
            self._visitors[number] = Packets(sock)
            self._watch(number, lambda: self._hear(number))

    def _drop(self, number: int) -> None:
        self._unwatch(number)
        self._visitors.pop(number).close()
        self._left += self._granted.pop(number, 0)

    def _hear(self, number: int) -> None:
        """One packet of a visitor's: the question, or the connection."""
        try:
            packet, descriptors = self._visitors[number].receive(descriptors=1)
            try:
                gone = not packet or self._answer(number, packet, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        except XensecureError as error:
            say(PROGRAM, f"session {self._session}: a further connection was not taken: {error}")
            gone = True
        if gone:
            self._drop(number)

    def _answer(self, number: int, packet: bytes, descriptors: list[int]) -> bool:
        """Whether the visit is over."""
        if launcher.kind_of(packet) is Kind.JOIN and not descriptors and number not in self._granted:
            join = launcher.Join.pull(packet)
            refusal = self._refusal(join)
            if refusal is not None:
                self._visitors[number].send(launcher.push_refused(refusal.reason, str(refusal)))
                return True
            if self._over:
                self._visitors[number].send(launcher.push_empty(Kind.OVER))
                return True
            self._granted[number] = 0 if join.resumes else 1
            self._left -= self._granted[number]
            self._visitors[number].send(launcher.push_empty(Kind.GRANTED))
            return False
        if launcher.kind_of(packet) is Kind.LANE and len(descriptors) == 1 and number in self._granted:
            if self._granted.pop(number) == 0:  # those before it are given up
                self._left = self._most - sum(self._granted.values())
            with contextlib.suppress(SystemFailure):  # the receiver has just gone, and the session with it
                self._give(packet, descriptors[0])
            wipe(packet)
            return True
        raise ProtocolError(f"{launcher.kind_of(packet).name} between keepers where it does not belong")

    def _refusal(self, join: launcher.Join) -> RefusedError | None:
        if join.peer != self._peer:
            say(PROGRAM, f"SECURITY: {join.peer} wanted to join session {self._session}, which is {self._peer}'s")
            return RefusedError(_NO_SUCH_SESSION, Reason.NOT_ALLOWED)
        if self._left <= 0 and not join.resumes:
            return RefusedError("the session there has all the connections that it may have; see [receive] lanes there", Reason.TOO_MANY)
        return None
