"""What happens, for programs: one structured line an event, to journald or to a file of JSON lines. docs/events.md has all of them.

Events stand beside what is said to people, and never hold anything up: what cannot be written at once is dropped. Nothing in them is secret.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import json
import os
import socket
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..proto.errors import StateError
from ..proto.messages import printable
from . import store
from .config import Config
from .counters import count
from .openmetrics import renew
from .say import say

# Where journald takes entries: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
JOURNAL_SOCKET = "/run/systemd/journal/socket"
_IDENTIFIER = "xensecure-event"  # `journalctl -t` shows events alone with it, and the lines for people without it
_VALUE_MAX = 1024  # characters; a reason has REASON_TEXT_MAX bytes at most
_FILE_MAX = 32 << 20  # bytes, some 100,000 events: a stranger who knocks at the port must not fill the disk
_OTHERS_SECONDS = 10.0  # the file of metrics is not renewed more often than this for what a stranger can cause
_ALERT, _CRITICAL, _ERROR, _WARNING, _NOTICE, _INFO = range(1, 7)  # syslog(3)

_complaints: set[str] = set()  # said by this process: a session has several Events, and a folder that is not there is one thing to say

COMMON = ("program", "host", "role", "session", "peer", "address", "domain")


@dataclass(frozen=True)
class Kind:
    """A kind of event: its name and MESSAGE_ID (128 bits, sd-id128(3)), which never change; priority of syslog(3); fields besides COMMON."""

    name: str
    id: str
    priority: int
    fields: tuple[str, ...] = ()


class Event(enum.Enum):
    """All kinds."""

    SESSION_STARTED = Kind("session-started", "00fca9ff94914ce0ad6e3b9ff6e3a11e", _INFO, ("request",))
    PHASE = Kind("phase", "b9f01c09472f4b178d3d6aa9bfa43ac2", _INFO, ("phase", "bytes", "status"))
    LINK_LOST = Kind("link-lost", "68e0df923da947569348909ee2e888df", _WARNING, ("cause", "why"))
    LINK_RESUMED = Kind("link-resumed", "40813f0a96fd4dfaa193b173918cbc5a", _NOTICE, ("resumptions",))
    LANE_LOST = Kind("lane-lost", "8cff8ba8252745bd86111904bb6bddb8", _WARNING, ("cause", "why"))
    SESSION_ENDED = Kind(
        "session-ended",
        "e496a655518a42f8a0a1b43266573fd7",
        _NOTICE,
        ("outcome", "state", "why", "bytes", "seconds", "rate", "resumptions", "passes"),
    )
    OUTCOME_UNKNOWN = Kind("outcome-unknown", "0f22f1b79ff448cb8d25cff5e66fbbbc", _CRITICAL, ("why",))
    OUTCOME_SETTLED = Kind("outcome-settled", "0affc363ba704c93859b968b4fb4b675", _NOTICE, ("state", "status", "why"))
    XL_KILLED = Kind("xl-killed", "2a874b03b8684aff8ba75111c3e547f1", _ERROR, ("why",))
    AUTHENTICATION_FAILED = Kind("authentication-failed", "127ac589d32043dab6091e56cbceddd9", _ERROR, ("cause", "why"))
    REFUSED = Kind("refused", "c32ec264c1d84332bb17e997ebcf2948", _WARNING, ("cause", "why"))
    POLICY_REFUSED = Kind("policy-refused", "d9109579585e4296995d38bc12db603c", _WARNING, ("key", "value", "rule"))
    PAIRED = Kind("paired", "e5cdb0a90c4648e78f7657ce4be9f64a", _NOTICE)
    ROTATED = Kind("rotated", "8805ace36f13496fa7d69eeb8225c3b0", _NOTICE)
    FORGOTTEN = Kind("forgotten", "3d57e265c69049b4a86a687cea61bb2c", _NOTICE)
    NEIGHBOUR_ALARM = Kind("neighbour-alarm", "ddbbd4c4e5c0403a868cc6af2d3118c0", _ALERT, ("cause", "interface", "was", "now"))
    HOOK_REFUSED = Kind("hook-refused", "c0dedf5c1c204bd5a2a0b9a5d1bf580e", _NOTICE, ("point", "hook", "why"))
    HOOK_FAILED = Kind("hook-failed", "0a5be47fc01e434db4bbf9d140288ad1", _ERROR, ("point", "hook", "why"))
    RECEIVER_MISBEHAVED = Kind("receiver-misbehaved", "ab5429bd3d1c4d338e4bf52bf07cfb92", _ALERT, ("why",))
    TURNED_AWAY = Kind("turned-away", "5a1bce6ffe584f908cb55830e49f64c3", _WARNING, ("why",))


class Events:
    """Writes events of one program; ``role``: which end of a migration this host is, "" for neither.

    ``confined``: this process faces the network. It writes to journald alone, and keeps no counters: files are root's.
    """

    def __init__(self, config: Config, program: str, role: str = "", *, confined: bool = False) -> None:
        self._config = config
        self._confined = confined
        self._known = {"program": program, "host": config.name, "role": role}

    def knows(self, **fields: str) -> None:
        """Keep what stands in every further event: session, peer, address, domain; "" changes nothing."""
        self._known |= {name: value for name, value in fields.items() if value}

    def emit(self, event: Event, **fields: str | int | float) -> None:
        """Write one event. ``fields``: those of its kind, and any of COMMON; "" is left out."""
        kind = event.value
        known = {name: value for name, value in {**self._known, **fields}.items() if value != ""}
        entry = {name: printable(value[:_VALUE_MAX]) if isinstance(value, str) else value for name, value in known.items()}
        try:
            if self._config.events == "journal":
                _to_journal(kind, entry)
            elif self._config.events != "off" and not self._confined:
                _to_file(Path(self._config.events), kind, entry)
        except OSError as error:
            self._complain(f"{self._config.events}: {error.strerror}; no events are written there, see [log] events")
        if not self._confined:
            self._count(event, entry)

    def _count(self, event: Event, entry: dict[str, str | int | float]) -> None:
        at_once = event in (Event.SESSION_STARTED, Event.SESSION_ENDED)
        try:
            # Not at a phase: xl, and the domain, may wait for what comes next.
            if count(self._config.state, event.value.name, entry) or at_once:
                renew(self._config, 0.0 if at_once else _OTHERS_SECONDS)
        except OSError as error:
            self._complain(f"{error.filename or self._config.state}: {error.strerror}; metrics are not renewed, see [log] metrics")
        except StateError:
            return  # said by whoever needs the folder of state for more than a count

    def _complain(self, text: str) -> None:
        if text not in _complaints:
            _complaints.add(text)
            say(str(self._known["program"]), text)


def _words(kind: Kind, entry: dict[str, str | int | float]) -> str:
    """The event as one line for people."""
    shown = {name: value for name, value in entry.items() if name not in ("program", "host")}
    return " ".join([kind.name, *(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in shown.items())])


def _to_journal(kind: Kind, entry: dict[str, str | int | float]) -> None:
    """A datagram of FIELD=value lines; what journald does not take at once is lost."""
    fields = {"MESSAGE": _words(kind, entry), "MESSAGE_ID": kind.id, "PRIORITY": kind.priority, "SYSLOG_IDENTIFIER": _IDENTIFIER}
    fields |= {"XENSECURE_EVENT": kind.name, **{f"XENSECURE_{name.upper()}": value for name, value in entry.items()}}
    # No value has a line feed in it: printable() leaves none.
    datagram = "".join(f"{name}={value}\n" for name, value in fields.items()).encode("utf-8", "replace")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(datagram, JOURNAL_SOCKET)


def _to_file(path: Path, kind: Kind, entry: dict[str, str | int | float]) -> None:
    """One JSON line; a file that has grown long is moved to the one of before (NAME.1)."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    document = {"time": moment, "event": kind.name, "message_id": kind.id, "priority": kind.priority, **entry}
    line = json.dumps(document).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            raise OSError(errno.EPERM, "no file of this user's alone")
        # A full disk may have cut the last line short.
        whole = status.st_size == 0 or os.pread(descriptor, 1, status.st_size - 1) == b"\n"
        store.write_all(descriptor, line if whole else b"\n" + line)
        if status.st_size > _FILE_MAX:
            with contextlib.suppress(BlockingIOError):  # somebody else is about to
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    path.replace(path.with_name(f"{path.name}.1"))
    finally:
        os.close(descriptor)
