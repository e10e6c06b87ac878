"""What must be true after every migration, whatever was done to it: the books of both hosts, exit statuses, journal, processes.

Each migration has a domain of its own name, so that several may be under way at once between the same two hosts.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shlex
import subprocess
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.faults.proxy import Proxy
from tests.pair import Host, Pair
from tests.xl.hosts import Running

_SETTLE = 30.0  # seconds in which processes and journal have to come to their end, once xl has
_SUFFIXES = ("", "--incoming", "--migratedaway")
_WELL = ("arrived", "moved")  # a journal's word for it, at the destination and at the source
Entries = list[dict[str, Any]]


class Verdict(StrEnum):
    """How a migration came out."""

    SURVIVED = "survived"  # the domain runs at the destination alone, and all say so
    GIVEN_UP = "cleanly given up"  # the domain runs at the source alone, and all say so
    WRONG = "wrong"


@dataclass
class Result:
    """A verdict, and where it is WRONG: what is."""

    domain: str
    verdict: Verdict
    faults: list[str] = field(default_factory=list)
    said: str = ""
    seconds: float = 0.0

    def require(self, *verdicts: Verdict) -> None:
        """AssertionError with all that is known, unless it is one of these."""
        assert self.verdict in verdicts, f"{self.domain} {self.verdict}: {'; '.join(self.faults)}\n{self.said}"


class Books:
    """Two hosts, and migrations from the first to the second, each with the stream in that file."""

    def __init__(self, pair: Pair, stream: Path) -> None:
        self.pair, self.stream = pair, stream
        self._digest = hashlib.sha256(stream.read_bytes()).hexdigest()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.journals = {host.name: Sessions(host) for host in (pair.source, pair.destination)}

    def start(self, proxy: Proxy, options: str = "", *, wait: float = 120.0) -> Migration:
        """Begin one through the relay. ``options``: of xensecure; ``wait``: seconds that it may take at most."""
        with self._lock:
            name = f"g{next(self._numbers):05}"  # as long as any other, so that the stream has its bytes where the others have them
            self.pair.source.xen.create_domain(name, self.stream)
            status = self.pair.source.folder / f"{name}.status"
            wrapper = self._wrapper(name, status, f"-vv -p {proxy.port} {options}")
            running = self.pair.source.xen.migrate(str(wrapper), name, "hv2", "-e")
        return Migration(self, name, running, status, time.monotonic(), wait)

    def _wrapper(self, name: str, status: Path, options: str) -> Path:
        """What xl gets for -s: xl tells nobody its transport's exit status, this does."""
        path = self.pair.source.folder / f"{name}.sh"
        path.write_text(f'#!/bin/sh\n{self.pair.transport(options)} "$@"\necho $? >{shlex.quote(f"{status}.new")}\nmv {status}.new {status}\n')
        path.chmod(0o755)
        return path

    def copies(self, name: str) -> dict[str, str]:
        """Each copy of a domain on either host, by "host/name": its state."""
        found: dict[str, str] = {}
        for host, xen in (("source", self.pair.source.xen), ("destination", self.pair.destination.xen)):
            found |= {f"{host}/{name}{suffix}": state for suffix in _SUFFIXES if (state := xen.domains().get(f"{name}{suffix}"))}
        return found

    def whole(self, name: str) -> bool:
        """Whether the destination's copy was made of exactly the bytes of the stream."""
        return self.pair.destination.xen.digest(name) == self._digest

    def left_behind(self) -> list[str]:
        """What is still there when all has ended: processes and doors. Waits for them to go."""
        end = time.monotonic() + _SETTLE
        while (found := self._left_now()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _left_now(self) -> list[str]:
        destination, source = self.pair.destination, self.pair.source
        found = [f"{name}: process {pid}" for name in destination.processes for pid in destination.children(name)]
        found += [f"{xen.path.parent.name}: xl or helper {pid}" for xen in (source.xen, destination.xen) for pid in xen.processes()]
        doors = destination.folder / "run/sessions"
        found += [f"door {door.name}" for door in doors.iterdir()] if doors.exists() else []
        for name in ("xensecured", "xensecure-launcher"):
            found += [f"{name}: {word}" for word in ("internal error", "Traceback") if word in destination.log(name)]
        return found

    def forget(self, name: str) -> None:
        """Take a domain out of the books of both hosts."""
        for xen in (self.pair.source.xen, self.pair.destination.xen):
            for suffix in _SUFFIXES:
                with contextlib.suppress(KeyError, FileNotFoundError):
                    xen.destroy(f"{name}{suffix}")


class Sessions:
    """A host's journal, read as it grows."""

    def __init__(self, host: Host) -> None:
        self._path = host.state / "journal.jsonl"
        self._read = 0
        self._inode = 0
        self._rest = b""
        self._entries: dict[str, Entries] = {}
        self._lock = threading.Lock()

    def of(self, session: str) -> Entries:
        """Its entries so far."""
        with self._lock:
            self._read_on()
            return list(self._entries.get(session, []))

    def _read_on(self) -> None:
        try:
            with self._path.open("rb") as file:
                if self._path.stat().st_ino != self._inode:
                    self._inode, self._read = self._path.stat().st_ino, 0  # it was rotated
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            if line:
                entry = json.loads(line)
                self._entries.setdefault(entry["session"], []).append(entry)


@dataclass
class Migration:
    """One migration under way."""

    books: Books
    domain: str
    running: Running
    status: Path
    begun: float
    patience: float

    def finish(self) -> Result:
        """Wait for its end, and look at everything."""
        try:
            xl = self.running.wait(max(0.1, self.begun + self.patience - time.monotonic())).status
        except subprocess.TimeoutExpired as error:
            self.running.kill()
            return Result(self.domain, Verdict.WRONG, [f"xl does not end: {error}"], self.running.stderr(), self.patience)
        seconds = time.monotonic() - self.begun
        own = self._own_status()
        said = self.running.stderr()
        sessions = list(dict.fromkeys(re.findall(r"session ([0-9a-f]{32})", said)))
        copies = self._settled(sessions)
        arrived = xl == 0
        faults = self._faults_of_books(copies, arrived=arrived)
        if arrived and not sessions:
            faults.append("no session in xensecure's words")
        for session in sessions:
            for host, journal in self.books.journals.items():
                faults += _faults_of_journal(host, journal.of(session), arrived=arrived)
        if own is None or (own == 0) is not arrived:
            faults.append(f"xl's status is {xl}, xensecure's {own}")
        faults += [word for word in ("Traceback", "internal error") if word in said]
        good = Verdict.SURVIVED if arrived else Verdict.GIVEN_UP
        return Result(self.domain, Verdict.WRONG if faults else good, faults, said if faults else "", seconds)

    def _own_status(self) -> int | None:
        """Xensecure's exit status; None if it does not end."""
        end = time.monotonic() + _SETTLE
        while not self.status.exists():
            if time.monotonic() > end:
                return None
            time.sleep(0.01)
        return int(self.status.read_text())

    def _settled(self, sessions: list[str]) -> dict[str, str]:
        """The copies, when the destination has come to its end with every session of this migration."""
        end = time.monotonic() + _SETTLE
        journal = self.books.journals[self.books.pair.destination.name]
        while not all(_is_over(journal.of(session)) for session in sessions) and time.monotonic() < end:
            time.sleep(0.02)
        return self.books.copies(self.domain)

    def _faults_of_books(self, copies: dict[str, str], *, arrived: bool) -> list[str]:
        wanted = {f"{'destination' if arrived else 'source'}/{self.domain}": "running"}
        faults = [] if copies == wanted else [f"the books say {copies}, xl says {'arrived' if arrived else 'failed'}"]
        if arrived and copies == wanted and not self.books.whole(self.domain):
            faults.append("the destination's domain was made of other bytes")
        return faults


def _is_over(entries: Entries) -> bool:
    return any(entry["event"] == "end" for entry in entries)


def _faults_of_journal(host: str, entries: Entries, *, arrived: bool) -> list[str]:
    """What a host's journal says of a session that is not so."""
    events = [entry["event"] for entry in entries]
    ends = [entry for entry in entries if entry["event"] == "end"]
    reports = [entry["status"] for entry in entries if entry["event"] == "report"]
    if events.count("start") != 1 or len(ends) != 1:
        return [f"{host}'s journal: {events}"]
    # Where the report itself did not come, its end has the other host's word for it (S9).
    reported = ends[0]["state"] == "reported" and ends[0]["status"] == 0
    if (ends[0]["outcome"] in _WELL) is not arrived or reported is not arrived or (0 in reports and not arrived):
        return [f"{host}'s journal: {ends[0]}, reports {reports}"]
    return []
