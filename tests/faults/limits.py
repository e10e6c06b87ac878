"""Daemons of a host started again with less than they would like: descriptors, memory, disk, another clock."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.pair import PATIENCE, Host, command, wait_for

_ARGUMENTS = {"xensecured": ["--listen"], "xensecure-launcher": []}
_READY = {"xensecured": "listening on port", "xensecure-launcher": "ready for receivers"}


def restart(host: Host, name: str, *before: str, preload: Path | None = None) -> int:
    """End a daemon and start it as ``before... daemon``, where ``before`` ends in executing it; returns its process id."""
    old = host.processes.pop(name)
    old.terminate()
    old.wait(PATIENCE)
    said = host.log(name).count(_READY[name])
    environment = host.environment() | ({"LD_PRELOAD": str(preload)} if preload else {})
    with (host.folder / f"{name}.log").open("ab") as log:
        words = [*before, command(name), *_ARGUMENTS[name]]
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    host.processes[name] = process

    def ready() -> bool:
        assert process.poll() is None, host.log(name)
        return host.log(name).count(_READY[name]) > said

    wait_for(ready, f"{name} ready")
    return process.pid


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; hundredths of a second, as Linux counts them for everybody (USER_HZ)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def memory_kib(pid: int, what: str = "VmRSS") -> int:
    """Resident memory of a process, or another line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


_CLOCK = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    long shift = 0;
    FILE *file;
    int rc = (int)syscall(SYS_clock_gettime, clock, now);

    if (rc == 0 && clock == CLOCK_REALTIME && (file = fopen("%s", "re")) != NULL) {
        if (fscanf(file, "%%ld", &shift) == 1)
            now->tv_sec += shift;
        fclose(file);
    }
    return rc;
}
"""


def make_clock(folder: Path) -> tuple[Path, Path]:
    """A library to preload, and the file that says by how many seconds the wall clock is wrong there."""
    shift, source, library = folder / "shift", folder / "clock.c", folder / "clock.so"
    shift.write_text("0")
    shift.chmod(0o644)
    source.write_text(_CLOCK % shift)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return library, shift
