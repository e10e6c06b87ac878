"""One run of a transport, measured."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bench.processes import MemoryWatch, cpu_seconds, descendants
from bench.transports import Transport

BANNER = b"xl migration receiver ready, send binary domain data.\n"
# programs.c: a record carries 4 MiB of pages behind its header.
_RECORD_MIB = 4
_RECORD_BYTES = (_RECORD_MIB << 20) + 16 + 1024 * 8

_IDLE_SECONDS = 10.0  # until something is wrong


class FailedError(Exception):
    """A transport did not do its work."""


@dataclass(frozen=True)
class Carried:
    """A stream that was carried: MiB a second, CPU seconds and most memory (bytes) of either side, the receiving program's memory not counted."""

    rate: float
    source_cpu: float
    destination_cpu: float
    source_memory: int
    destination_memory: int


def _read_banner(descriptor: int) -> None:
    got = b""
    while len(got) < len(BANNER):
        piece = os.read(descriptor, len(BANNER) - len(got))
        if not piece:
            raise FailedError("the transport ended before the banner came")
        got += piece
    if got != BANNER:
        raise FailedError(f"not xl's banner: {got!r}")


def _require_received(log: BinaryIO, transport: Transport, count: int) -> None:
    """The receiving program's own word, which comes back as its standard error, that it got all."""
    log.seek(0)
    text = log.read().decode(errors="replace")
    if f"received {count} bytes" not in text:
        raise FailedError(f"{transport.name} did not carry {count} bytes to the end:\n{text}")


def _wait_idle(daemons: list[int]) -> None:
    """Until the daemons have waited for all their children, whose CPU time is theirs then."""
    end = time.monotonic() + _IDLE_SECONDS
    while any(len(descendants(pid)) > 1 for pid in daemons):
        if time.monotonic() > end:
            raise FailedError("a daemon still has children long after its session")
        time.sleep(0.05)


def time_to_banner(transport: Transport) -> float:
    """Seconds from the transport's start until the receiving program's banner is here."""
    start = time.monotonic()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(transport.words(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        if process.stdin is None or process.stdout is None:
            raise FailedError("no pipes")
        _read_banner(process.stdout.fileno())
        took = time.monotonic() - start
        process.stdin.close()
        process.stdout.read()
        process.wait()
        _require_received(log, transport, 0)
    return took


def carry(transport: Transport, programs: Path, mib: int) -> Carried:
    """Carry so many MiB of random pages (a multiple of 4), from the banner until the transport has ended."""
    with tempfile.TemporaryFile() as log:
        carried = _carry(transport, programs, mib, log)
        _require_received(log, transport, mib // _RECORD_MIB * _RECORD_BYTES)
    return carried


def _carry(transport: Transport, programs: Path, mib: int, log: BinaryIO) -> Carried:
    daemons = list(transport.daemons().values())
    _wait_idle(daemons)
    cpu_before = sum(map(cpu_seconds, daemons))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(transport.words(), stdin=reader, stdout=subprocess.PIPE, stderr=log)
    os.close(reader)
    if process.stdout is None:
        raise FailedError("no pipes")
    watches = [MemoryWatch([process.pid], without=programs), MemoryWatch(daemons, without=programs)]
    for watch in watches:
        watch.start()
    _read_banner(process.stdout.fileno())
    start = time.monotonic()
    writing = subprocess.Popen([str(programs), "write", str(mib)], stdout=writer)
    os.close(writer)
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    writing.wait()
    _wait_idle(daemons)
    source_memory, destination_memory = (watch.stop() for watch in watches)
    return Carried(
        rate=mib / took,
        source_cpu=usage.ru_utime + usage.ru_stime,
        destination_cpu=sum(map(cpu_seconds, daemons)) - cpu_before,
        source_memory=source_memory,
        destination_memory=destination_memory,
    )
