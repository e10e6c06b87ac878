"""Runs the migrations of a plan: one ``xl migrate`` each, several at once; what became of each is for xl's status and the journal to say."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..link import store
from ..link.config import Config
from ..link.domains import AWAY, INCOMING, Listed, Seen, list_table, own_name
from ..link.hooks import Role
from ..link.journal import Record
from ..link.live import LiveSession, live_sessions
from ..link.xl import ENVIRONMENT
from ..proto.errors import StateError, XensecureError
from ..proto.memory import duration, size
from ..proto.messages import printable
from .board import Board
from .plan import Move, Plan
from .status import Inquiry
from .verdict import is_safe_name

_TRANSPORT_SECONDS = 10.0  # xl does not wait for its transport, which writes the journal's last line some ms after xl's end
_LOG_MAX = 4 << 20  # bytes; what xl and its transport say of a migration are some KiB
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Result(enum.Enum):
    """What became of one domain."""

    MOVED = "moved"
    FAILED = "failed"  # it is here, as before
    UNCLEAR = "unclear"  # somebody has to look
    LEFT = "left alone"  # not touched
    NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Ended:
    """One domain's end. ``why``: in words, where it did not move; ``bytes`` of its stream."""

    name: str
    result: Result
    host: str = ""
    why: str = ""
    bytes: int = 0
    seconds: float = 0.0


def reason_to_stay(inquiry: Inquiry, listed: Listed, logs: Logs) -> str:
    """Why a domain of this host is not to be touched; "" if it may be moved."""
    if not listed.name:
        return f"domain {listed.id} has no name: it is being built or torn down"
    name = own_name(listed.name)
    typed = shlex.quote(printable(name))
    running = next((session for session in inquiry.live if session.domain == name), None)
    if running is not None:
        return f"a migration of it runs already (process {running.pid})"
    if logs.busy(listed.id):
        return "a migration of it that an earlier evacuation has begun is not over"
    verdict = inquiry.verdict(name)
    if listed.name.endswith((AWAY, INCOMING)) or not verdict.well or verdict.host != inquiry.host:
        return f"{verdict.words}; 'xensecurectl status {typed}' says what sets it right"
    if listed.seen is not Seen.RUNNING:
        return f"it is {listed.seen}, and only what runs can be migrated: 'xl unpause {typed}' it, or destroy it"
    return ""


class Logs:
    """The output of each xl, in ``run/evacuate/ID.log``: files, so that no migration depends on a reader.

    A log is locked for as long as its xl, or what that has started, lives: so a later evacuation knows what an earlier one, killed, has left running.
    """

    def __init__(self, config: Config) -> None:
        self._folder = config.run / "evacuate"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder, for one evacuation at a time; StateError if there is another."""
        store.make_directory(self._folder)
        lock = store.lock_within(self._folder / "lock", 0)
        if lock is None:
            raise StateError("another evacuation of this host runs; wait for its end, or stop it")
        try:
            for path in store.usable_files(self._folder, ".log"):
                if not self.busy(int(path.stem)):
                    path.unlink()
            yield
        finally:
            os.close(lock)

    def path(self, domid: int) -> Path:
        """The log of a domain's migration."""
        return self._folder / f"{domid}.log"

    def open(self, domid: int) -> int:
        """An empty log, locked; the descriptor is for xl."""
        descriptor = store.lock_within(self.path(domid), 0)
        if descriptor is None:
            raise StateError("a migration of it that an earlier evacuation has begun is not over")
        os.ftruncate(descriptor, 0)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # so that it can be cut while xl writes
        return descriptor

    def cut(self, domid: int) -> None:
        """Begin a log anew that has grown too long: what a destination says ends up in it, and it lies in memory."""
        with contextlib.suppress(OSError):
            if self.path(domid).stat().st_size > _LOG_MAX:
                os.truncate(self.path(domid), 0)

    def busy(self, domid: int, seconds: float = 0.0) -> bool:
        """Whether an xl or its transport still has the log, after waiting for its end for so long."""
        if not self.path(domid).exists():
            return False
        descriptor = store.lock_within(self.path(domid), seconds)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def last_words(self, domid: int) -> str:
        """Why it failed, as the transport has put it; else xl's last line."""
        lines = self.path(domid).read_text("utf-8", "replace").replace("\r", "\n").splitlines()
        said = [line.partition(": ")[2] for line in lines if line.startswith("xensecure: ")] or [line for line in lines if line.strip()]
        return printable(said[-1]) if said else "xl has said nothing"


@dataclass
class _Child:
    """One xl: what it moves, since when, and the sessions that the journal had of its domain before it began."""

    move: Move
    listed: Listed
    process: subprocess.Popen[bytes]
    descriptor: int  # of the process: readable when that has ended
    known: set[str]
    seen: bool = False  # its session has been seen to run
    start: float = field(default_factory=time.monotonic)


class Evacuation:
    """Carries a plan out, until it is done or a signal stops it.

    Arguments: ``command``: the words of ``xl migrate`` for a domain, as xl is to be told it, and a destination; ``check``: raises what is wrong with
    a destination. The first SIGINT, SIGTERM or SIGHUP lets what runs come to its end and begins no more; each further one ends the transports of what
    runs, which leaves domains here.
    """

    def __init__(
        self, config: Config, plan: Plan, logs: Logs, *, command: Callable[[str, str], list[str]], check: Callable[[str], object], board: Board
    ) -> None:
        self._config = config
        self._plan = plan
        self._logs = logs
        self._command = command
        self._check = check
        self._board = board
        self._children: list[_Child] = []
        self._signals = 0
        self.ended: list[Ended] = []

    @property
    def stopped(self) -> bool:
        """Whether a signal has come."""
        return self._signals > 0

    def run(self) -> list[Ended]:
        """All that became of it, in the order of its ends."""
        wake, wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._count) for number in _STOPS}
        seen = 0
        try:
            while self._begin():
                self._wait(wake)
                while seen < self._signals:
                    self._stop(again=seen > 0)
                    seen += 1
                self._board.show(self._lines())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            os.close(wake)
            os.close(wake_end)
            self._board.show([])
        self.ended += [Ended(move.guest.name, Result.NOT_BEGUN, move.host) for move in self._plan.waiting]
        return self.ended

    def _count(self, _number: int, _frame: object) -> None:
        self._signals += 1

    def _wait(self, wake: int) -> None:
        poll = select.poll()
        for descriptor in (wake, *(child.descriptor for child in self._children)):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(self._board.interval * 1000)}
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 512)
        for child in self._children:
            self._logs.cut(child.listed.id)
        for child in [child for child in self._children if child.descriptor in ready]:
            self._children.remove(child)
            self._end(child)

    def _stop(self, *, again: bool) -> None:
        names = ", ".join(printable(child.move.guest.name) for child in self._children)
        if not names:
            return
        if not again:
            self._board.say(f"stopping: no further migration begins; waiting for the end of {names} (a second signal ends them, and they stay here)")
            return
        self._board.say(f"ending the migration of {names}")
        for child in self._children:
            for transport in _transports(child.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(transport, signal.SIGTERM)

    # ---- one migration

    def _begin(self) -> bool:
        """Begin what can begin; whether anything runs."""
        while not self.stopped and (move := self._plan.next()) is not None:
            try:
                why = self._start(move)
            except (XensecureError, OSError) as error:
                why = str(error)
            if why:
                self._plan.ended(move)
                self._finish(Ended(move.guest.name, Result.LEFT, why=why))
        return bool(self._children)

    def _start(self, move: Move) -> str:
        """Start xl, if the domain may still be moved: an hour may have passed since the plan was made; why not, otherwise."""
        listed = next((each for each in list_table(self._config) if each.name == move.guest.name), None)
        if listed is None:
            return "it is here no more"
        inquiry = Inquiry(self._config)
        if why := reason_to_stay(inquiry, listed, self._logs):
            return why
        log = self._logs.open(listed.id)
        try:
            # A session of its own: ^C is for us to pass on, for xl would end by it, and a domain that is suspended just then would stay so.
            words = self._command(_as_told(listed), move.host)
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(ENVIRONMENT), start_new_session=True)
        finally:
            os.close(log)
        known = {record.session for record in inquiry.records}
        self._children.append(_Child(move, listed, process, os.pidfd_open(process.pid), known))
        waiting = len(self._plan.waiting)
        self._board.say(f"{move.guest.name} to {move.host}: begins{f' ({waiting} more wait)' if waiting else ''}")
        return ""

    def _end(self, child: _Child) -> None:
        os.close(child.descriptor)
        status = child.process.wait()
        ended, record = self._judge(child, status)
        again = None
        if ended.result is Result.FAILED and not self.stopped:
            if record is None:  # no session came about: is there anybody?
                self._look_after(child.move.host)
            again = self._plan.failed(child.move)
        else:
            self._plan.ended(child.move)
        if again is not None:
            self._board.say(f"{ended.name}: not moved to {ended.host}: {ended.why}; it will be tried on {again.host}")
        else:
            self._finish(ended)

    def _judge(self, child: _Child, status: int) -> tuple[Ended, Record | None]:
        """By xl's exit status and the journal of this host, and, where these leave it open, the destination's word."""
        name, host = child.move.guest.name, child.move.host
        over = not self._logs.busy(child.listed.id, _TRANSPORT_SECONDS)
        inquiry = Inquiry(self._config)
        new = [record for record in inquiry.records if record.domain == name and record.role is Role.SOURCE and record.session not in child.known]
        record = new[-1] if new else None
        seconds = time.monotonic() - child.start
        where = f"(log: {self._logs.path(child.listed.id)})"
        if not over:
            return Ended(name, Result.UNCLEAR, host, f"xl has ended, its transport has not {where}"), record
        verdict = inquiry.verdict(name)
        # xl may have failed after the report: killed before it has destroyed what is left here, for one.
        if record is not None and record.went_well and (status == 0 or verdict.well):
            self._logs.path(child.listed.id).unlink(missing_ok=True)
            return Ended(name, Result.MOVED, host, bytes=record.bytes, seconds=seconds), record
        if status != 0 and verdict.well and verdict.host == inquiry.host:
            # Of a session the journal says it: into its log the destination can write what it likes, xensecure's name before it.
            why = (record.outcome if record is not None else "") or self._logs.last_words(child.listed.id)
            return Ended(name, Result.FAILED, host, f"{why} {where}"), record
        ended = f"xl {'reports success' if status == 0 else f'failed with status {status}'}"
        return Ended(name, Result.UNCLEAR, host, f"{ended}; {verdict.words}; 'xensecurectl status {shlex.quote(printable(name))}' {where}"), record

    def _look_after(self, host: str) -> None:
        """After a failure before there was a session: a destination that is gone gets nothing more."""
        try:
            self._check(host)
        except XensecureError as error:
            for move in self._plan.lose(host):
                self._finish(Ended(move.guest.name, Result.FAILED, host, str(error)))

    def _finish(self, ended: Ended) -> None:
        self.ended.append(ended)
        if ended.result is Result.MOVED:
            figures = f"{size(ended.bytes)} in {duration(ended.seconds)} ({size(ended.bytes / max(ended.seconds, 0.001))}/s)"
            self._board.say(f"{ended.name} moved to {ended.host}: {figures}")
        elif ended.result is Result.FAILED:
            self._board.say(f"{ended.name} stays here: {ended.why}")
        else:
            self._board.say(f"{ended.name}: {ended.result.value}: {ended.why}")

    # ---- progress

    def _lines(self) -> list[str]:
        """A line for each that runs, and one for all."""
        live: dict[str, LiveSession] = {}
        with contextlib.suppress(StateError):
            live = {session.domain: session for session in live_sessions(self._config.run) if session.role is Role.SOURCE}
        for child in self._children:
            child.seen = child.seen or child.move.guest.name in live
        lines = [_line(child, live.get(child.move.guest.name)) for child in self._children]
        done = sum(ended.result is Result.MOVED for ended in self.ended)
        others = len(self.ended) - done
        return [*lines, f"{done} moved, {len(lines)} on the way, {len(self._plan.waiting)} waiting" + (f", {others} not moved" if others else "")]


def _as_told(listed: Listed) -> str:
    """The domain for xl's command line, and so for hooks: its name, or the id where xl could take that for something else."""
    return listed.name if is_safe_name(listed.name) and not listed.name.isdigit() else str(listed.id)


def _line(child: _Child, session: LiveSession | None) -> str:
    taken = duration(time.monotonic() - child.start)
    what = f"{child.move.guest.name} ({size(child.listed.memory)}) to {child.move.host}"
    if session is None:
        return f"  {what}: {'ending' if child.seen else 'connecting'}, {taken}"
    state = "" if session.state == "running" else f", {session.state}"
    return f"  {what}: {session.copied}{size(session.bytes)} in {taken}, {size(session.rate)}/s now, {session.phase}{state}"


def _transports(xl: int) -> Sequence[int]:
    """The transports that an xl has started: its children that are to bring `migrate-receive` to the destination."""
    found = []
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{xl}/task/{xl}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"migrate-receive" in Path(f"/proc/{word}/cmdline").read_bytes():
                    found.append(int(word))
    return found
