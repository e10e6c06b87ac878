"""What runs now: a file for each running session, renewed as it goes, for ``xensecurectl status``.

``run/status/SESSION.ROLE.json`` is what a session says of itself, ``….lock`` beside it is locked for as long as its process lives: a file
without a locked one was left by a process that was killed, and goes when it is next looked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..proto.errors import StateError
from . import store
from .hooks import Role

_RATE_SECONDS = 5.0  # the rate is that of the last seconds, not of one in which the guest happened to be idle
_SIZE_MAX = 1 << 16


@dataclass(frozen=True)
class LiveSession:
    """A running session as its process describes it.

    ``rate`` in bytes a second; ``since``, ``state_since`` (when ``state`` last changed) and ``updated`` in seconds since 1970.
    """

    session: str
    role: Role
    peer: str
    domain: str = ""
    pid: int = 0
    phase: str = ""
    bytes: int = 0
    rate: float = 0.0
    resumptions: int = 0
    state: str = "running"
    state_since: float = 0.0
    since: float = 0.0
    updated: float = 0.0


class Live:
    """Says that a session runs, until it is closed or its process ends.

    It never fails a session: where the folder cannot be used, ``problem`` says why, and nothing is shown. ``update`` takes the fields of
    LiveSession by name; the rate follows from ``bytes`` unless it is given.
    """

    def __init__(self, run: Path, session: bytes, *, role: Role, peer: str, domain: str = "") -> None:
        now = time.time()
        times: dict[str, Any] = {"since": now, "state_since": now, "updated": now}
        self._shown = LiveSession(session=session.hex(), role=Role(role), peer=peer, domain=domain, pid=os.getpid(), **times)
        self._path = run / "status" / f"{session.hex()}.{role}.json"
        self._lock = -1
        self._rate_from = (time.monotonic(), 0)
        self.problem = ""
        try:
            store.make_directory(self._path.parent)
            self._lock = _hold(_lock_of(self._path))
            self._write()
        except (StateError, OSError) as error:
            self._fail(error)

    def update(self, **changes: Any) -> None:
        """Show what has changed; cheap enough for once a second."""
        if self._lock < 0:
            return
        if "bytes" in changes and "rate" not in changes:
            changes["rate"] = self._rate(changes["bytes"])
        now = time.time()
        if changes.get("state", self._shown.state) != self._shown.state:
            changes["state_since"] = now
        self._shown = replace(self._shown, **changes, updated=now)
        try:
            self._write()
        except OSError as error:
            self._fail(error)

    def _rate(self, total: int) -> float:
        now = time.monotonic()
        then, before = self._rate_from
        if now - then < _RATE_SECONDS / 2 and self._shown.rate:
            return self._shown.rate
        if now - then >= _RATE_SECONDS / 2:
            self._rate_from = (now, total)
        return round(max(0, total - before) / max(now - then, 0.001))

    def _write(self) -> None:
        aside = self._path.with_suffix(".tmp")
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            store.write_all(descriptor, json.dumps(asdict(self._shown)).encode())
        finally:
            os.close(descriptor)
        aside.replace(self._path)

    def _fail(self, error: Exception) -> None:
        self.problem = str(error)
        self.close()

    def close(self) -> None:
        """The session is over; it may be called again."""
        if self._lock >= 0:
            _remove(self._path)
            os.close(self._lock)
            self._lock = -1


def live_sessions(run: Path) -> list[LiveSession]:
    """The sessions that run on this host, the oldest first; what processes that were killed have left is removed."""
    folder = run / "status"
    try:
        locks = sorted(path for path in folder.iterdir() if path.suffix == ".lock")
    except FileNotFoundError:
        return []
    except PermissionError:
        raise StateError(f"{folder}: Permission denied; run this as root, or as the user whose folder it is") from None
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror}") from None
    found = [shown for path in locks if (shown := _live(path)) is not None]
    return sorted(found, key=lambda shown: shown.since)


def _live(lock: Path) -> LiveSession | None:
    with contextlib.suppress(OSError, StateError, ValueError, TypeError, RecursionError):
        path = lock.with_suffix(".json")
        return None if _remove_leftover(lock) else _read(path)
    return None


def _read(path: Path) -> LiveSession:
    """A session's own words; ValueError or TypeError if they are damaged."""
    document = json.loads(store.read_secret(path)[:_SIZE_MAX])
    if not isinstance(document, dict):
        raise TypeError
    names = {field.name for field in fields(LiveSession)}
    shown = LiveSession(**{name: value for name, value in document.items() if name in names})
    numbers = (shown.pid, shown.bytes, shown.rate, shown.resumptions, shown.since, shown.state_since, shown.updated)
    words = (shown.session, shown.peer, shown.domain, shown.phase, shown.state)
    if not all(isinstance(number, (int, float)) for number in numbers) or not all(isinstance(word, str) for word in words):
        raise TypeError
    return replace(shown, role=Role(shown.role))


# ---- the lock


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _hold(path: Path) -> int:
    """The lock, held. A reader that took it for a leftover may have removed it meanwhile: then anew."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _remove_leftover(path: Path) -> bool:
    """Remove what belongs to that lock unless a living process holds it; whether it was removed.

    Readers share the lock, so that none takes another for a session, and hold it while they remove: a session that begins waits for them.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _remove(path.with_suffix(".json"))
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(path: Path) -> None:
    for each in (path, path.with_suffix(".tmp"), _lock_of(path)):
        with contextlib.suppress(FileNotFoundError):
            each.unlink()
