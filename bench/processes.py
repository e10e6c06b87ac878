"""What processes use: CPU seconds with those of their dead children, and the most memory they have held."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.1  # seconds between two looks; each walks the page tables of a handful of processes


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += descendants(int(word))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, and of its children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(word) for word in fields[11:15]) / _TICK  # utime, stime, cutime, cstime of proc(5)


def _kib(path: Path, key: str) -> int:
    """A figure of /proc in bytes; 0 if the process has gone."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


class MemoryWatch(threading.Thread):
    """The most memory that all processes below some roots have held together; ``without``: a program that is not counted.

    As root by what each page is shared among (Pss of proc(5)): processes that were forked and not changed since hold theirs together.
    Otherwise by the sum of each process's own peak (VmHWM), which is more.
    """

    def __init__(self, roots: list[int], *, without: Path) -> None:
        super().__init__(daemon=True)
        self._roots = roots
        self._without = without
        self._ended = threading.Event()
        self._shared = 0
        self._peaks: dict[int, int] = {}

    def run(self) -> None:
        """Look until told to stop."""
        while not self._ended.wait(_POLL_SECONDS):
            pids = [pid for root in self._roots for pid in descendants(root) if not self._is_excluded(pid)]
            for pid in pids:
                self._peaks[pid] = max(self._peaks.get(pid, 0), _kib(Path(f"/proc/{pid}/status"), "VmHWM:"))
            self._shared = max(self._shared, sum(_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids))

    def _is_excluded(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/exe").readlink() == self._without
        except OSError:
            return os.geteuid() == 0  # it has gone; for others than root it is one that hides its memory

    def stop(self) -> int:
        """What was held at most, in bytes."""
        self._ended.set()
        self.join()
        return self._shared if os.geteuid() == 0 else sum(self._peaks.values())
