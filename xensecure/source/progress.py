"""What a person sees of a migration: a line that moves while it runs on a terminal, one line when it has ended. All on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from ..link.engine import Phase, Stats
from ..link.live import LiveSession
from ..link.say import say
from ..proto.memory import duration, size

PROGRAM = "xensecure"
_INTERVAL = 0.5  # seconds between two progress lines: readable, and no load
_IDLE = 3600.0  # seconds; without a terminal nothing has to be shown
_LINE_SECONDS = 10.0  # between two lines that stay, with -v and no terminal: six a minute in xl's log


class Progress:
    """Shows one session.

    Arguments: ``peer``: the destination's name; ``details``: key-exchange group and backend; ``quiet``: show nothing; ``verbose``: lines now and then
    where there is no terminal; ``checkpointed``: this is no move, but goes on until one of the hosts ends; ``compressed``: the stream is compressed,
    and what that has left is told.
    """

    def __init__(
        self, *, peer: str, details: str, quiet: bool, verbose: bool = False, checkpointed: bool = False, compressed: bool = False
    ) -> None:
        self.domain = "?"
        self.connections = 1
        self._checkpointed = checkpointed
        self._compressed = compressed
        self._peer = peer
        self._details = details
        self._quiet = quiet
        self._moving = not quiet and sys.stderr.isatty()
        self._lines = verbose and not quiet and not self._moving
        self._start = self._line_at = time.monotonic()
        self._pass_number = 0
        self._said = False
        self._width = 0

    @property
    def interval(self) -> float:
        """Seconds until ``show`` wants to be called again."""
        return _INTERVAL if self._moving else _IDLE

    def show(self, stats: Stats, shown: LiveSession) -> None:
        """Renew the progress line, on a terminal."""
        if self._said or not (self._moving or self._lines):
            return
        text = f"{self.domain} to {self._peer}: {shown.copied}{self._figures(stats)}"
        if self._lines:
            self._say_now_and_then(text, shown.pass_number)
            return
        line = f"{PROGRAM}: {text}"[: self._columns()]
        # The cursor goes back at once: what xl writes meanwhile then stands over the line, not behind it.
        os.write(2, f"{line.ljust(self._width)}\r".encode())
        self._width = len(line)

    @staticmethod
    def _columns() -> int | None:
        """How long a line may be: one that is broken in two does not move."""
        with contextlib.suppress(OSError):
            return max(0, os.get_terminal_size(2).columns - 1) or None
        return None

    def _say_now_and_then(self, text: str, pass_number: int) -> None:
        """Where no line can move: one that stays, when a new pass has begun and every some seconds."""
        now = time.monotonic()
        if pass_number != self._pass_number or now >= self._line_at + _LINE_SECONDS:
            self._line_at, self._pass_number = now, pass_number
            say(PROGRAM, text)

    def _figures(self, stats: Stats) -> str:
        seconds = max(time.monotonic() - self._start, 0.001)
        done = stats.channel_bytes[0]
        line = f", {size(stats.link_sent)} on the line" if self._compressed else ""
        return f"{size(done)} in {duration(seconds)} ({size(done / seconds)}/s{line})"

    def _how(self) -> str:
        return self._details if self.connections == 1 else f"{self._details}, {self.connections} connections"

    def _clear(self) -> None:
        if self._width:
            os.write(2, f"{' ' * self._width}\r".encode())
            self._width = 0

    def done(self, stats: Stats) -> None:
        """The domain runs at the destination."""
        self._finish(f"{self.domain} moved to {self._peer}: {self._figures(stats)}, {self._how()}")

    def failed(self, stats: Stats) -> None:
        """It does not, or nobody here knows; why is said elsewhere. What follows a ``done`` is no news."""
        if self._checkpointed:
            words = f"checkpoints of {self.domain} to {self._peer} ended"
        elif stats.phase is Phase.GO:
            words = f"{self.domain} sent to {self._peer}, its start there not confirmed"
        else:
            words = f"{self.domain} not moved to {self._peer}"
        self._finish(f"{words}: {self._figures(stats)}, {self._how()}")

    def _finish(self, line: str) -> None:
        if self._said or self._quiet:
            return
        self._clear()
        say(PROGRAM, line)
        self._said = True

