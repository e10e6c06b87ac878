"""One run of a transport, measured."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.processes import MemoryWatch, cpu_seconds, descendants
from bench.transports import Transport
from bench.workloads import Workload

BANNER = b"xl migration receiver ready, send binary domain data.\n"
_WORD = re.compile(rb"received (\d+) bytes in (\d+) us\n")

_IDLE_SECONDS = 10.0  # until something is wrong


class FailedError(Exception):
    """A transport did not do its work."""


@dataclass(frozen=True)
class Carried:
    """A stream that was carried.

    Seconds from the banner until the transport has ended; CPU seconds and most memory (bytes; 0 where nobody looked) of either side, without
    those of the sending and the receiving program; the latter's CPU seconds stand beside them.
    """

    mib: float
    seconds: float
    source_cpu: float
    destination_cpu: float
    source_memory: int
    destination_memory: int
    reader_cpu: float

    @property
    def rate(self) -> float:
        """MiB/s."""
        return self.mib / self.seconds

    @property
    def cpu_per_gib(self) -> float:
        """CPU seconds of both ends for each GiB of the stream."""
        return (self.source_cpu + self.destination_cpu) * 1024 / self.mib

    @property
    def memory(self) -> int:
        """Bytes of the end that held more."""
        return max(self.source_memory, self.destination_memory)


def _read_banner(descriptor: int, transport: Transport) -> None:
    got = b""
    while len(got) < len(BANNER):
        piece = os.read(descriptor, len(BANNER) - len(got))
        if not piece:
            said = (transport.place.folder / "source.log").read_text(errors="replace").strip()
            raise FailedError(f"{transport.name} ended before the banner came: {said}")
        got += piece
    if got != BANNER:
        raise FailedError(f"not xl's banner: {got!r}")


def _reader_cpu(said: bytes, transport: Transport, count: int) -> float:
    """The receiving program's own word, which comes back last, that it got all; its CPU seconds."""
    found = _WORD.fullmatch(said)
    if found is None or int(found[1]) != count:
        raise FailedError(f"{transport.name} did not carry {count} bytes to the end: {said[-500:]!r}")
    return int(found[2]) / 1e6


def _wait_idle(daemons: list[int]) -> None:
    """Until the daemons have waited for all their children, whose CPU time is theirs then."""
    end = time.monotonic() + _IDLE_SECONDS
    while any(len(descendants(pid)) > 1 for pid in daemons):
        if time.monotonic() > end:
            raise FailedError("a daemon still has children long after its session")
        time.sleep(0.05)


def _start(transport: Transport, stdin: IO[bytes] | int) -> subprocess.Popen[bytes]:
    with (transport.place.folder / "source.log").open("wb") as log, transport.place.network.inside("hv1"):
        return subprocess.Popen(transport.words(), stdin=stdin, stdout=subprocess.PIPE, stderr=log)


def time_to_banner(transport: Transport) -> float:
    """Seconds from the transport's start until the receiving program's banner is here."""
    start = time.monotonic()
    with _start(transport, subprocess.PIPE) as process:
        if process.stdin is None or process.stdout is None:
            raise FailedError("no pipes")
        _read_banner(process.stdout.fileno(), transport)
        took = time.monotonic() - start
        process.stdin.close()
        _reader_cpu(process.stdout.read(), transport, 0)
    return took


def _used(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; its CPU seconds, and those of its children."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def carry(transport: Transport, workload: Workload, programs: Path, *, watched: bool) -> Carried:
    """Carry a stream, from the banner until the transport has ended.

    ``watched``: look at its memory meanwhile. That walks the page tables of every process of the transport ten times a second, holds their
    page faults up, and costs xensecure, which has the most processes, a fifth of its rate: such a run's seconds mean nothing.
    """
    daemons = transport.daemons()
    _wait_idle(daemons)
    before = sum(map(cpu_seconds, daemons))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb", closefd=True) as stdin:
        process = _start(transport, stdin)
    watches = [MemoryWatch([process.pid], without=programs), MemoryWatch(daemons, without=programs)] if watched else []
    for watch in watches:
        watch.start()
    if process.stdout is None:
        raise FailedError("no pipes")
    with process.stdout as answers:
        _read_banner(answers.fileno(), transport)
        with open(writer, "wb", closefd=True) as stdout:
            writing = subprocess.Popen([str(programs), "write", *workload.arguments], stdout=stdout)
        os.waitid(os.P_PID, writing.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # programs.c stops itself when it is ready
        start = time.monotonic()
        writing.send_signal(signal.SIGCONT)
        said = answers.read()
    source_cpu = _used(process)
    seconds = time.monotonic() - start
    writing.wait()
    _wait_idle(daemons)
    source_memory, destination_memory = (watch.stop() for watch in watches) if watched else (0, 0)
    reader_cpu = _reader_cpu(said, transport, workload.size)
    return Carried(
        mib=workload.size / 2**20,
        seconds=seconds,
        source_cpu=source_cpu,
        destination_cpu=sum(map(cpu_seconds, daemons)) - before - reader_cpu,
        source_memory=source_memory,
        destination_memory=destination_memory,
        reader_cpu=reader_cpu,
    )
