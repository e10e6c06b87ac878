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
from ..proto.memory import Memory, duration, progress_words, size
from ..proto.messages import printable
from . import store
from .roles import Role

_RATE_SECONDS = 5.0  # the rate is that of the last seconds, not of one in which the guest happened to be idle
_SIZE_MAX = 1 << 16


@dataclass(frozen=True)
class LiveSession:
    """A running session as its process describes it.

    ``rate`` in bytes a second; ``since``, ``state_since`` (when ``state`` last changed) and ``updated`` in seconds since 1970. Of the pass over the
    domain's memory: ``pass_number`` (0: none yet), ``percent`` done and seconds ``left`` (None: nobody knows); ``memory``: bytes the domain has (0:
    not known); ``promised``: bytes of this host's that the domain needs, and ``promised_pages`` of these those that come
    with it, page by page; 0 where nobody has looked, and when xl has ended.
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
    memory: int = 0
    pass_number: int = 0
    percent: int | None = None
    left: float | None = None
    promised: int = 0
    promised_pages: int = 0

    @property
    def figures(self) -> str:
        """Bytes, time, rate and the pass, for people."""
        running = duration(max(0.0, time.time() - self.since))
        resumed = f", resumed {self.resumptions} times" if self.resumptions else ""
        return f"{self.copied}{size(self.bytes)} in {running}, {size(self.rate)}/s now{resumed}"

    @property
    def copied(self) -> str:
        """How far the domain's memory has come, for people, with ", " behind it; "" where nobody knows."""
        words = progress_words(self.pass_number, self.percent, self.memory, self.left)
        return words and f"{words}, "

    @property
    def line(self) -> str:
        """All of it in one line, for people."""
        name, phase = printable(self.domain) or "a domain without a name yet", printable(self.phase) or "start"
        direction = "to" if self.role is Role.SOURCE else "from"
        return f"{name} {direction} {self.peer}: {printable(self.state)}, phase {phase}, {self.figures}; session {self.session}"


class Live:
    """Says that a session runs, until it is closed or its process ends.

    It never fails a session: where the folder cannot be used, ``problem`` says why, and nothing is shown to others. ``update`` takes the fields of
    LiveSession by name; the rate follows from ``bytes`` unless it is given.
    """

    def __init__(self, run: Path, session: bytes, *, role: Role, peer: str, domain: str = "") -> None:
        now = time.time()
        times: dict[str, Any] = {"since": now, "state_since": now, "updated": now}
        self.shown = LiveSession(session=session.hex(), role=Role(role), peer=peer, domain=domain, pid=os.getpid(), **times)
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

    def update(self, copied: Memory | None = None, **changes: Any) -> None:
        """Show what has changed; cheap enough for once a second. ``copied``: the pass that is being made."""
        if "bytes" in changes and "rate" not in changes:
            changes["rate"] = self._rate(changes["bytes"])
        if copied is not None:
            left = copied.seconds(changes.get("rate", self.shown.rate))
            changes |= {"memory": copied.total, "pass_number": copied.number, "percent": copied.percent}
            changes["left"] = None if left is None else round(left, 1)
        now = time.time()
        if changes.get("state", self.shown.state) != self.shown.state:
            changes["state_since"] = now
        self.shown = replace(self.shown, **changes, updated=now)
        if self._lock < 0:
            return
        try:
            self._write()
        except OSError as error:
            self._fail(error)

    def _rate(self, total: int) -> float:
        now = time.monotonic()
        then, before = self._rate_from
        if now - then < _RATE_SECONDS / 2 and self.shown.rate:
            return self.shown.rate
        if now - then >= _RATE_SECONDS / 2:
            self._rate_from = (now, total)
        return round(max(0, total - before) / max(now - then, 0.001))

    def _write(self) -> None:
        aside = self._path.with_suffix(".tmp")
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            store.write_all(descriptor, json.dumps(asdict(self.shown)).encode())
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
    except OSError as error:
        raise store.unusable(folder, error) from None
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
    numbers = (shown.rate, shown.since, shown.state_since, shown.updated, *(number for number in (shown.percent, shown.left) if number is not None))
    counts = (shown.pid, shown.bytes, shown.resumptions, shown.memory, shown.pass_number, shown.promised, shown.promised_pages)
    words = (shown.session, shown.peer, shown.domain, shown.phase, shown.state)
    kinds: tuple[tuple[tuple[Any, ...], type | tuple[type, ...]], ...] = ((numbers, (int, float)), (counts, int), (words, str))
    if not all(isinstance(value, kind) for values, kind in kinds for value in values):
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
