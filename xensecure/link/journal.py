"""This host's journal: who sent which domain where and when, and how it ended. JSON lines, appended, synced to disk.

Each role writes what it knows itself; at the destination a receiver's word is all there is for a domain's name and for how far xl came ("by
the receiver"). What became of a session is folded from its lines into a :class:`Record`.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..proto.errors import StateError
from ..proto.messages import OutcomeState
from . import store
from .roles import Role

# Set aside before a session begins: its lines are some 2 KiB, and others may be writing theirs. One that has begun can then always say that GO came.
RESERVE_BYTES = 1 << 16
# A session that is asked about is of this week; 8 MiB are some 4000 sessions.
ROTATE_BYTES = 8 << 20
RECENT_SECONDS = 86400.0  # who is paged at night asks for what has happened since
# Of a file that was never rotated, the newest part is read.
_READ_BYTES = 64 << 20
_LINE_MAX = 1 << 16  # bytes; ours are some hundred
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
# What a file system answers that cannot set space aside.
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS)
# Seconds: 9999 begins. What can be written of later times, and of those before 1970, depends on the time zone.
_LAST_TIME = 253370764800.0
_SESSION = re.compile(r"([0-9a-f]{2}){1,32}")

# The states of docs/protocol.md, section 7, as `end` and `peer` have them.
UNKNOWN, GOING_ON, REPORTED, NOT_CLEARED, CLEARED, FAILED_OVER = STATES = tuple(state.words for state in OutcomeState)

Entry = dict[str, Any]


def boot_id() -> str:
    """Which start of this host's kernel this is (random(4)); "" if nobody knows."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""


class Journal:
    """Appends to ``state/journal.jsonl`` what this host knows in one role."""

    def __init__(self, state: Path, role: Role) -> None:
        self._path = state / "journal.jsonl"
        self._role = role

    def append(self, session: bytes, event: str, /, **fields: object) -> None:
        """One entry with the time (UTC, ISO 8601), the session's id, the role, the event's name and what belongs to it; on disk when this returns.

        With ``start`` the file is rotated if it is long, and room made, as by ``reserve``.
        """
        self.append_unless(session, event, "", **fields)

    def append_unless(self, session: bytes, event: str, excluded_by: str, /, **fields: object) -> bool:
        """The same, unless the session has another event in this role: then nothing is written, and False returned.

        Of two events that exclude each other so, one is ever written.
        """
        entry = {"time": _written(time.time()), "session": session.hex(), "event": event, "role": str(self._role), **fields}
        line = json.dumps(entry, ensure_ascii=True).encode() + b"\n"
        with self._locked(rotate=event == "start") as descriptor:
            if event == "start":
                _set_aside(descriptor)
            if excluded_by and self._has(session, excluded_by):
                return False
            end = os.lseek(descriptor, 0, os.SEEK_END)
            # A full disk or a crash may have cut the last line short.
            whole = end == 0 or os.pread(descriptor, 1, end - 1) == b"\n"
            store.write_all(descriptor, line if whole else b"\n" + line)
            os.fsync(descriptor)
        return True

    def _has(self, session: bytes, event: str) -> bool:
        return any(found["event"] == event and found.get("role") == self._role for found in entries(self._path.parent, session))

    def reserve(self) -> None:
        """Set space aside behind the end, so that a disk that fills up keeps no session from being written; StateError if there is no room."""
        with self._locked(rotate=True) as descriptor:
            _set_aside(descriptor)

    @contextlib.contextmanager
    def _locked(self, *, rotate: bool) -> Iterator[int]:
        """The file, for this process alone: several write at once, and must neither mix lines nor write into one that was moved away."""
        try:
            descriptor = self._open()
            if rotate and os.fstat(descriptor).st_size > ROTATE_BYTES:
                try:
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size)  # gives back what was set aside
                    self._path.replace(_older(self._path))
                finally:
                    os.close(descriptor)
                descriptor = self._open()
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateError(f"{self._path}: cannot be written: {error.strerror}") from None

    def _open(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(descriptor, self._path):
                if os.fstat(descriptor).st_size == 0:
                    store.sync_directory(self._path.parent)
                return descriptor
            os.close(descriptor)  # rotated while we waited for the lock


def _is_still(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _set_aside(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(descriptor, _KEEP_SIZE, os.fstat(descriptor).st_size, RESERVE_BYTES) != 0:
        number = ctypes.get_errno()
        if number in _NO_FALLOCATE:
            room = os.fstatvfs(descriptor)
            if room.f_bavail * room.f_frsize >= RESERVE_BYTES:
                return
            number = errno.ENOSPC
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _written(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03}Z"


def _read_time(text: object) -> float:
    """Seconds since 1970; ValueError for what ``_written`` does not write."""
    if not isinstance(text, str) or not text.endswith("Z"):
        raise ValueError
    moment = datetime.fromisoformat(text).timestamp()
    if not 0 <= moment < _LAST_TIME:
        raise ValueError
    return moment


# ---- reading


def entries(state: Path, session: bytes | None = None, since: float = 0.0) -> Iterator[Entry]:
    """Everything so far, or what there is of one session, oldest first; a line that is damaged is left out. ``since``: seconds since 1970."""
    path = state / "journal.jsonl"
    wanted = session.hex().encode() if session is not None else b""
    least = b'{"time": "' + _written(since).encode() if since else b""
    for name in (_older(path), path):
        try:
            with name.open("rb") as stream:
                yield from _lines(stream, wanted, least)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise store.unusable(name, error) from None


def _lines(stream: Any, wanted: bytes, least: bytes) -> Iterator[Entry]:
    """``least``: how the earliest line that is asked for begins; those before it cost a comparison, and no more."""
    excess = os.fstat(stream.fileno()).st_size - _READ_BYTES
    if excess > 0:
        stream.seek(excess)
    whole = True
    while line := stream.readline(_LINE_MAX):
        begun, whole = whole, line.endswith(b"\n")
        if begun and whole and line >= least and wanted in line and (entry := _entry(line)) is not None:
            if wanted and entry["session"].encode() != wanted:
                continue
            yield entry


def _no_number(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are Python's JSON, not JSON


def _entry(line: bytes) -> Entry | None:
    """A line's entry; None if it is none of ours."""
    try:
        entry = json.loads(line.decode("ascii"), parse_constant=_no_number)
        if not isinstance(entry, dict) or not isinstance(entry.get("event"), str) or not _SESSION.fullmatch(entry["session"]):
            return None
        _read_time(entry["time"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return entry


@dataclass(frozen=True)
class PeerWord:
    """What the other host said of a session when it was asked: the state's name, xl's status, and words for people."""

    state: str
    status: int
    text: str
    time: float


@dataclass(frozen=True)
class Record:
    """One session as this host's journal has it, in one role.

    ``started``, ``ended``: seconds since 1970, 0 if not written; ``go``: GO had come (been sent); ``report``: xl's status byte; ``state``: of
    STATES, "going on" without an ``end``; ``heard``: a source has the destination's own word on that; ``outcome``: how it ended, in words;
    ``why``: what went wrong last; ``boot``: the host's at ``start``.
    """

    session: str
    role: Role
    peer: str = ""
    address: str = ""
    request: tuple[str, ...] = ()
    domain: str = ""
    started: float = 0.0
    ended: float = 0.0
    ready: bool = False
    go: bool = False
    report: int | None = None
    state: str = GOING_ON
    outcome: str = ""
    why: str = ""
    refused: bool = False
    xl: str = ""
    heard: bool = False
    resumptions: int = 0
    bytes: int = 0
    seconds: float = 0.0
    boot: str = ""
    peer_word: PeerWord | None = None
    last: float = 0.0  # its newest entry's time

    @property
    def session_id(self) -> builtins.bytes:
        """The session's id."""
        return builtins.bytes.fromhex(self.session)

    @property
    def checkpointed(self) -> bool:
        """Whether this is Remus or COLO: no move, no GO, and at its destination every end of the stream starts the last checkpoint."""
        return "-r" in self.request or "--colo" in self.request

    @property
    def went_well(self) -> bool:
        """Whether it has ended plainly well: xl at the destination reported that the domain runs there."""
        return bool(self.ended) and self.state == REPORTED and self.report == 0

    @property
    def same_boot(self) -> bool:
        """Whether this host has run since the session began; where nobody knows, as if it had."""
        return not self.boot or self.boot == boot_id()


def records(state: Path, since: float = 0.0) -> list[Record]:
    """Every session of the journal, in the order in which they began: the newest stands last. ``since``: by what was written from then on alone."""
    return list(_folded(entries(state, since=since)).values())


def find(state: Path, session_id: bytes, role: Role) -> Record | None:
    """What the journal knows of a session in that role."""
    return _folded(entries(state, session_id)).get((session_id.hex(), role))


def _folded(found: Iterator[Entry]) -> dict[tuple[str, Role], Record]:
    sessions: dict[tuple[str, Role], Record] = {}
    for entry in found:
        role = Role.SOURCE if entry.get("role") == Role.SOURCE else Role.DESTINATION
        key = (entry["session"], role)
        before = sessions.get(key) or Record(session=entry["session"], role=role)
        sessions[key] = _fold(before, entry)
    return sessions


def _fold(record: Record, entry: Entry) -> Record:
    """The record with one more entry; fields of a wrong kind are passed over, and so are events that nobody here knows."""
    moment = _read_time(entry["time"])
    record = replace(record, last=max(record.last, moment), **_given(entry, _ALWAYS))
    event = entry["event"]
    if event == "start":
        request = entry.get("request")
        words = tuple(request) if isinstance(request, list) and all(isinstance(word, str) for word in request) else ()
        return replace(record, started=moment, request=words, **_given(entry, _START))
    if event == "ready":
        return replace(record, ready=True)
    if event == "go":
        return replace(record, ready=True, go=True)
    if event == "report":
        status = _given(entry, {"status": int}).get("status")
        return record if status is None else replace(record, report=status)
    if event in ("lost", "refused"):
        return replace(record, refused=record.refused or event == "refused", **_given(entry, {"why": str}))
    if event == "peer":
        word = _given(entry, {"state": str, "status": int, "text": str})
        return replace(record, peer_word=PeerWord(word.get("state", UNKNOWN), word.get("status", 0), word.get("text", ""), moment))
    return _fold_end(record, entry, moment) if event == "end" else record


_ALWAYS = {"domain": str, "bytes": int}
_START = {"peer": str, "address": str, "boot": str}
_END = {"outcome": str, "xl": str, "seconds": float, "resumptions": int, "heard": bool}


def _fold_end(record: Record, entry: Entry, moment: float) -> Record:
    found = _given(entry, _END)
    outcome = found.get("outcome", "")
    state = entry.get("state")
    if state not in STATES:
        state = _state_from_words(record, outcome)
    report = _given(entry, {"status": int}).get("status") if state == REPORTED else None
    report = record.report if report is None else report
    seconds = found.pop("seconds", max(0.0, moment - record.started) if record.started else 0.0)
    return replace(record, ended=moment, state=state, report=report, seconds=seconds, **found)


def _state_from_words(record: Record, outcome: str) -> str:
    """The state of a session whose ``end`` has none: before there were states, the outcome's first word was all."""
    if outcome.startswith("failed over"):
        return FAILED_OVER
    if outcome.startswith("unknown"):
        return CLEARED
    if record.report is not None:
        return REPORTED
    return CLEARED if record.go else NOT_CLEARED


def _given(entry: Entry, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The fields that are there and what they should be."""
    found = {}
    for name, kind in kinds.items():
        value = entry.get(name)
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if fits and value != "":
            found[name] = value
    return found
