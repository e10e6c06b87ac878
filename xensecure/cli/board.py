"""What a person sees of several migrations, on stderr: on a terminal a line for each that moves, elsewhere a line for each that begins and ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from ..link.say import say
from ..proto.messages import printable

_INTERVAL = 0.5  # seconds between two looks: readable, and no load
_IDLE = 60.0  # seconds; without a terminal nothing has to be shown
_UP, _CLEAR = "\x1b[{}A", "\x1b[J"  # ECMA-48: cursor up, erase what is below


class Board:
    """Lines that stay, and, on a terminal, lines below them that are renewed."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._moving = sys.stderr.isatty()
        self._shown = 0

    @property
    def interval(self) -> float:
        """Seconds until ``show`` wants to be called again."""
        return _INTERVAL if self._moving else _IDLE

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        say(self._program, text)

    def show(self, lines: Sequence[str]) -> None:
        """Renew the lines that move; nothing where there is no terminal."""
        if not self._moving:
            return
        with contextlib.suppress(OSError):
            width, height = os.get_terminal_size(2)
            width, height = width or 80, height or 24  # a serial console does not know
            if len(lines) >= height:  # what has scrolled away cannot be renewed
                lines = [*lines[: height - 2], f"… and {len(lines) - height + 2} more"]
            self._clear()
            os.write(2, "".join(f"{printable(line)[: width - 1]}\n" for line in lines).encode("utf-8", "replace"))
            self._shown = len(lines)

    def _clear(self) -> None:
        if self._shown:
            with contextlib.suppress(OSError):
                os.write(2, f"{_UP.format(self._shown)}{_CLEAR}".encode())
        self._shown = 0
