"""The launcher's journal: who sent which domain when, and how it ended. JSON lines, appended, synced to disk.

A receiver's word is all there is for a domain's name and for how far xl came ("by the receiver"); peer, request, start and xl's end the launcher
knows itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from ..link import store
from ..proto.errors import StateError


class Journal:
    """Appends to ``state/journal.jsonl``."""

    def __init__(self, state: Path) -> None:
        self._path = state / "journal.jsonl"

    def append(self, session: bytes, event: str, **fields: object) -> None:
        """One entry with the time (UTC, ISO 8601), the session's id, the event's name and what belongs to it; on disk when this returns."""
        now = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        entry = {"time": moment, "session": session.hex(), "event": event, **fields}
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Appends of several keepers must not mix, nor continue a line that a full disk or a crash cut short.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                end = os.lseek(descriptor, 0, os.SEEK_END)
                whole = end == 0 or os.pread(descriptor, 1, end - 1) == b"\n"
                store.write_all(descriptor, (b"" if whole else b"\n") + json.dumps(entry, ensure_ascii=True).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateError(f"{self._path}: cannot be written: {error.strerror}") from None

    def entries(self) -> list[dict[str, object]]:
        """Everything so far; a line that a crash or a full disk cut short is left out."""
        try:
            lines = self._path.read_text("ascii").splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
        return entries
