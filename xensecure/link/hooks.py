"""The operator's hooks: programs in hooks.d/POINT/ that are run at points of a migration. hooks/README.md is their contract.

The source runs its own, the launcher the destination's; the receiver, which faces the network, runs none.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import select
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..proto import limits
from ..proto.errors import HookError
from ..proto.messages import Exit, printable
from .config import Config
from .events import Event, Events
from .roles import Outcome as Outcome
from .roles import Point as Point
from .roles import Role as Role
from .say import say
from .store import write_all

# run-parts(8), and no name that begins with a dot.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# What editors and package managers leave beside a file that they change; a name with "~" is none of the above.
_LEFT_BEHIND = re.compile(r".*\.(bak|orig|dpkg-.*|ucf-.*|rpmnew|rpmorig|rpmsave)")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PIECE, _PIECES = 1 << 16, 16  # bytes of one read, reads before time is looked at again
# Symbolic links on the way to one hook: Debian's alternatives take two.
_LINKS_MAX = 8


@dataclass(frozen=True)
class Facts:
    """What hooks are told; "" and 0 where nobody knows (yet). ``seconds``: since this host has begun; ``stream_bytes``: xl's, so far."""

    role: Role
    host: str
    peer: str = ""
    address: str = ""
    domain: str = ""
    session: str = ""
    request: tuple[str, ...] = ()
    outcome: Outcome = Outcome.PENDING
    reason: str = ""
    stream_bytes: int = 0
    seconds: float = 0.0
    configuration: Mapping[str, Any] | None = None

    def document(self, point: Point) -> dict[str, Any]:
        """What a hook reads from its standard input, as JSON."""
        return {**self._words(point), "request": list(self.request), "configuration": self.configuration}

    def _words(self, point: Point) -> dict[str, Any]:
        return {
            "point": str(point),
            "role": str(self.role),
            "host": self.host,
            "peer": self.peer,
            "address": self.address,
            "domain": self.domain,
            "session": self.session,
            "request": " ".join(self.request),
            "outcome": str(self.outcome),
            "reason": self.reason,
            "bytes": self.stream_bytes,
            "seconds": round(self.seconds, 3),
        }

    def environment(self, point: Point) -> dict[bytes, bytes]:
        """All of a hook's environment: nothing of ours, of xl's or of a peer's is in it but these."""
        words = {f"XENSECURE_{key.upper()}": printable(str(value)) for key, value in self._words(point).items()}
        return {key.encode(): value.encode() for key, value in {"PATH": _PATH, "HOME": _home(), "LANG": "C.UTF-8", **words}.items()}


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"


def find_hooks(folder: Path, point: Point) -> tuple[Path, ...]:
    """The hooks of a point, in the order in which they run; HookError if somebody else could change what is run."""
    place = folder / point
    found = []
    try:
        if not os.path.lexists(place):
            if os.path.lexists(folder):
                _require_ours(folder, folder)  # who may write there may have removed the point
            return ()
        _require_ours(place, folder)
        for path in sorted(place.iterdir()):
            if not _NAME.fullmatch(path.name) or _LEFT_BEHIND.fullmatch(path.name):
                continue
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
                _require_ours(path, folder)
                found.append(path)
    except OSError as error:
        raise HookError(f"{error.filename or place}: {error.strerror}; hooks that cannot be read are not passed over") from None
    return tuple(found)


def _require_ours(path: Path, folder: Path, links: int = 0) -> None:
    """HookError unless every folder on the way and the file itself are root's, or ours, and nobody else can write to them.

    A sticky folder like /tmp may be on the way, above ``folder`` alone: nobody can take away there what is not his.
    """
    for part in (*reversed(path.parents), path):
        status = part.lstat()
        if status.st_uid not in (0, os.geteuid()):
            raise HookError(f"{part}: belongs to user {status.st_uid}; chown it to root: what is in {folder} is run as whoever moves domains")
        if stat.S_ISLNK(status.st_mode):
            if links == _LINKS_MAX:
                raise HookError(f"{part}: too many symbolic links on the way to a hook")
            _require_ours(part.parent / part.readlink(), folder, links + 1)
            continue
        passed_through = part != path and not part.is_relative_to(folder)
        if status.st_mode & 0o022 and not (passed_through and status.st_mode & stat.S_ISVTX):
            mode = stat.S_IMODE(status.st_mode)
            raise HookError(f"{part}: others can write to it (mode {mode:04o}); chmod go-w it: what is in {folder} is run as whoever moves domains")


def ask(config: Config, point: Point, facts: Facts, program: str, *, abandon: Mapping[int, int] | None = None) -> None:
    """Run a point's hooks in order until one says no: HookError names it, with its last line. ``abandon``: as for ``_Run``."""
    for hook in find_hooks(config.hooks, point):
        run = _Run(hook, point, facts, program)
        problem = run.until_end(config.hook_timeout, abandon or {})
        if problem:
            _report(config, run, Event.HOOK_FAILED if point is Point.FENCE else Event.HOOK_REFUSED, run.last_line or problem)
            raise HookError(f"refused by hook {run.name}: {run.last_line or problem}")
        run.say_last()


def tell(config: Config, point: Point, facts: Facts, program: str) -> None:
    """Run all of a point's hooks in order; what goes wrong is said, and changes nothing."""
    try:
        hooks = find_hooks(config.hooks, point)
    except HookError as error:
        say(program, f"no {point} hook is run: {error}")
        return
    for hook in hooks:
        run = _Run(hook, point, facts, program)
        problem = run.until_end(config.hook_timeout, {})
        run.say_last()
        if problem:
            say(program, f"hook {run.name} has failed: {problem}")
            _report(config, run, Event.HOOK_FAILED, problem)


def _report(config: Config, run: _Run, event: Event, why: str) -> None:
    events = Events(config, run.program, run.facts.role)
    events.knows(session=run.facts.session, peer=run.facts.peer, address=run.facts.address, domain=run.facts.domain)
    events.emit(event, point=run.point, hook=run.hook.name, why=why)


class _Run:
    """One hook, once. What it writes goes to our log line by line; the last line is kept back, for it may be the reason of a refusal."""

    def __init__(self, hook: Path, point: Point, facts: Facts, program: str) -> None:
        self.name = f"{point}/{hook.name}"
        self.hook, self.point, self.facts, self.program = hook, point, facts, program
        self.last_line = ""
        self._environment = facts.environment(point)
        self._document = json.dumps(facts.document(point)).encode()
        self._rest = b""
        self._lines = 0

    def until_end(self, seconds: float, abandon: Mapping[int, int]) -> str:
        """Run it; returns what went wrong, "" if nothing did.

        ``abandon``: descriptors and poll(2) events; one that comes, or a hang-up of the descriptor, means that nobody wants to know any more.
        """
        output, end = os.pipe2(os.O_CLOEXEC)
        try:
            process = self._start(end)
        except OSError as error:
            os.close(output)
            return f"it cannot be run: {error.strerror}"
        finally:
            os.close(end)
        os.set_blocking(output, False)
        problem = "it was abandoned"
        try:
            problem = self._watch(process, output, seconds, abandon)
        finally:
            if problem:
                _end_group(process)
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel, on a dead file server for instance
                process.wait(limits.HOOK_TERM_SECONDS)
            self._read(output)
            self._take_line(self._rest)
            os.close(output)
        return problem or ("" if process.returncode == 0 else Exit.from_returncode(process.returncode or 0).describe())

    def _start(self, output: int) -> subprocess.Popen[bytes]:
        # Not a pipe: a hook that does not read its input must not hold us up.
        document = os.memfd_create("xensecure-hook", os.MFD_CLOEXEC)
        try:
            write_all(document, self._document)
            os.lseek(document, 0, os.SEEK_SET)
            return subprocess.Popen(
                [str(self.hook)],
                stdin=document,
                stdout=output,
                stderr=output,
                env=self._environment,
                cwd="/",
                umask=0o022,
                close_fds=True,
                start_new_session=True,
                preexec_fn=_forget_signals,
            )
        finally:
            os.close(document)

    def _watch(self, process: subprocess.Popen[bytes], output: int, seconds: float, abandon: Mapping[int, int]) -> str:
        end = time.monotonic() + seconds
        ended = os.pidfd_open(process.pid)
        poll = select.poll()
        for descriptor, events in {ended: select.POLLIN, output: select.POLLIN, **abandon}.items():
            poll.register(descriptor, events)
        try:
            while (left := end - time.monotonic()) > 0:
                ready = [descriptor for descriptor, _ in poll.poll(left * 1000)]
                if output in ready and not self._read(output):
                    poll.unregister(output)
                if ended in ready:
                    return ""
                # Twice: between the two a signal's handler has run, and may have found that it is nothing to end a hook for.
                if any(descriptor in ready for descriptor in abandon) and any(descriptor in abandon for descriptor, _ in poll.poll(0)):
                    return "nobody waits for it any more"
        finally:
            os.close(ended)
        return f"it did not end within {seconds:.0f} s"

    def _read(self, output: int) -> bool:
        """Take what has been written so far, or a part of it; False at its end."""
        try:
            for _ in range(_PIECES):  # not for as long as it writes: the time-out would never come
                piece = os.read(output, _PIECE)
                if not piece:
                    return False
                *lines, self._rest = (self._rest + piece).split(b"\n")
                for line in lines:
                    self._take_line(line)
                if len(self._rest) > limits.HOOK_LINE_MAX:
                    self._take_line(self._rest)
                    self._rest = b""
        except BlockingIOError:
            pass
        return True

    def _take_line(self, line: bytes) -> None:
        text = printable(line[: limits.HOOK_LINE_MAX].decode("utf-8", "replace").rstrip())
        if not text:
            return
        self.say_last()
        self.last_line = text

    def say_last(self) -> None:
        """The line that was kept back, for the log."""
        line, self.last_line = self.last_line, ""
        if not line or self._lines > limits.HOOK_LINES_MAX:
            return
        self._lines += 1
        say(self.program, f"{self.name}: {line}" if self._lines <= limits.HOOK_LINES_MAX else f"hook {self.name} says more; it is left out")


def _forget_signals() -> None:
    """In the child: what this process ignores or holds back is none of the hook's business."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the hook and all that it has started, then SIGKILL; it leads its process group, whose number is its own until it is waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.poll(limits.HOOK_TERM_SECONDS * 1000)
    os.close(ended)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
