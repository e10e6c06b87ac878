"""How far xl has come with a domain's memory, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

_UNITS = ("B", "KiB", "MiB", "GiB")


@dataclass(frozen=True)
class Memory:
    """One look at the pass over a domain's memory that is being made, by the headers of libxc's records (csrc/xlrecords.h).

    ``total``: bytes that the domain has by its configuration (0: not known); ``number``: of the pass, from 1 (0: no page yet, or nothing that could
    be followed); ``sent``: bytes of pages in this pass; ``frame``: where its present record starts, a pass being in the order of frames;
    ``frame_max``: the highest that one has started at.
    """

    total: int = 0
    number: int = 0
    sent: int = 0
    frame: int = 0
    frame_max: int = 0

    @property
    def left(self) -> int | None:
        """Bytes that this pass has still to send, None where nobody knows.

        The first sends all that the domain has. What a further one sends nobody is told: it is taken for evenly spread over the memory.
        """
        if self.number == 0 or (self.number == 1 and not self.total):
            return None
        if self.number == 1:
            return max(0, self.total - self.sent)
        return self.sent * max(0, self.frame_max - self.frame) // self.frame if self.frame else None

    @property
    def percent(self) -> int | None:
        """How much of this pass is done: of the first, per cent of the domain's memory."""
        if self.number > 1 and self.frame == 0:
            return 0  # its first record
        left = self.left
        return None if left is None or self.sent + left == 0 else 100 * self.sent // (self.sent + left)

    def seconds(self, rate: float) -> float | None:
        """What this pass still takes at so many bytes a second."""
        left = self.left
        return None if left is None or rate <= 0 else left / rate


def progress_words(number: int, percent: int | None, total: int, seconds: float | None) -> str:
    """``pass 1, 61 % of 4.0 GiB, 14.0 s left`` with as much of it as is known; "" before the first page. Arguments: as Memory has them."""
    if number == 0:
        return ""
    words = [f"pass {number}"]
    if percent is not None:
        words.append(f"{percent} %" + (f" of {size(total)}" if number == 1 and total else ""))
    if seconds is not None:
        words.append(f"{duration(seconds)} left")
    return ", ".join(words)


def size(count: float) -> str:
    """Bytes as people read them (binary units)."""
    for unit in _UNITS:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02} min"
