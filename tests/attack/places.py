"""What the hosts have, whatever carries the domain: stub Xens, the domain with its planted credential, processes, what a migration came to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.attack.certificates import Certificates
from tests.attack.segment import Segment
from tests.xl.hosts import XenHost, running_copies
from tests.xl.records import PAGE_SIZE, LibxcType, parse
from tests.xl.stream import StreamSpec, make_stream

# What Xensploit did to sshd's memory in a moving guest: a line that somebody's login rests on, and another of the same length.
PLANT, INSTEAD = b"root:$y$j9T$wRiTtEnByAlice$0:0:99999", b"root:$y$j9T$wRiTtEnByMallo$0:0:99999"
DOMAIN = "web1"
_PLANTS = 6
XL_WORDS = ("migrate-receive", "-e")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class LabError(Exception):
    """An attack did not take place, or a tool is missing: then there is no verdict."""


def plant(path: Path, *, mib: int = 2, seed: int = 11) -> Path:
    """A domain with the credential in some of its pages."""
    make_stream(path, StreamSpec(mib, seed=seed, zero_share=0.2))
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        pages = [record for record in parse(file) if record.kind is LibxcType.PAGE_DATA]
    for number in range(_PLANTS):
        record = pages[number % len(pages)]
        end = record.offset + record.size - (number // len(pages)) * PAGE_SIZE
        data[end - 1000 : end - 1000 + len(PLANT)] = PLANT
    path.write_bytes(data)
    return path


def digest(data: bytes) -> str:
    """As the stub toolstack computes it of what it restores."""
    return hashlib.sha256(data).hexdigest()


def until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Wait for a condition; LabError with ``what`` if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


@dataclass
class Program:
    """A process of the lab's, its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """End it, and what it has started: it leads a process group."""
        for signum, patience in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Lab:
    """The segment, the hosts' folders, the certificates and the domain."""

    def __init__(self, segment: Segment, folder: Path) -> None:
        self.segment = segment
        self.folder = folder
        folder.chmod(0o755)
        self.certificates = Certificates(folder / "certificates")
        self.stream = plant(folder / "domain")
        self.sent = self.stream.read_bytes()
        self._number = 0

    def subfolder(self, name: str) -> Path:
        """A new folder."""
        self._number += 1
        folder = self.folder / f"{self._number}-{name}"
        folder.mkdir(mode=0o755)
        return folder

    def start(self, host: str, words: Sequence[str], *, ready: Callable[[Program], object], stdin: int = subprocess.DEVNULL) -> Program:
        """Start a program of a host's, and wait until it is ready."""
        log = self.subfolder("log") / Path(words[0]).name
        with self.segment.inside(host), log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    words, stdin=stdin, stdout=output, stderr=output, start_new_session=True, env={**os.environ, "PATH": _PATH}
                )
            except FileNotFoundError:
                raise LabError(f"there is no {words[0]} here: scripts/setup.sh attack") from None
        program = Program(process, log)

        def is_ready() -> bool:
            if process.poll() is not None:
                raise LabError(f"{words[0]} has ended: {program.said().strip()}")
            return bool(ready(program))

        try:
            until(is_ready, f"{words[0]} ready")
        except BaseException:
            program.end()
            raise
        return program

    @contextlib.contextmanager
    def running(self, host: str, words: Sequence[str], *, ready: Callable[[Program], object], stdin: int = subprocess.DEVNULL) -> Iterator[Program]:
        """The same for a while."""
        program = self.start(host, words, ready=ready, stdin=stdin)
        try:
            yield program
        finally:
            program.end()

    def listens(self, host: str, port: int) -> Callable[[Program], bool]:
        """Whether somebody listens on a port of a host's."""

        def check(_program: Program) -> bool:
            done = self.segment.run(host, "ss", "-ltnH", f"sport = :{port}", check=False)
            return bool(done.stdout.strip())

        return check


def receiving_script(xen: XenHost, folder: Path, loot: Path | None = None, *, before: str = "") -> Path:
    """What a transport starts at the receiving end: that host's xl; ``loot``: what comes is copied there first."""
    script = folder / "receive"
    run = f'exec {xen.xl_wrapper()} "$@"' if loot is None else f'tee {loot} | {xen.xl_wrapper()} "$@"'
    script.write_text(f"#!/bin/sh\n{before}{run}\n")
    script.chmod(0o755)
    return script


def forget(xen: XenHost) -> None:
    """Forget domains, faults and calls."""
    xen.close()
    xen.clear_faults()
    for path in (*xen.path.glob("held.*"), *(xen.path / "domains").iterdir(), xen.path / "calls.log"):
        path.unlink(missing_ok=True)


@dataclass
class Facts:
    """What an attacked migration came to."""

    status: int | None = None  # xl's at the source; None: it had not ended in time
    received: bool = False  # a receive was started at the destination
    arrived: bool = False  # the domain runs there
    intact: bool = True  # and is what was sent
    rewritten: bool = False  # and is what the attacker made of it
    kept: bool = False  # it runs at the source
    taken: bool = False  # it runs with the attacker
    read: bool = False  # he has its credential in the clear
    copies: int = 0  # that run, wherever
    stderr: str = ""
    security: tuple[str, ...] = ()
    guard: tuple[str, ...] = ()  # what the neighbour guard has said: of the way, not of the attack that he then makes

    def harm(self) -> list[str]:
        """What he has done."""
        words = {
            "memory read": self.read,
            "memory changed": self.arrived and not self.intact,
            "domain taken": self.taken,
            "runs nowhere": self.copies == 0,
            "runs twice": self.copies > 1,
        }
        return [word for word, true in words.items() if true]

    def end(self) -> str:
        """Where the domain is, if nothing was done to it."""
        return "arrives" if self.arrived else "stays at the source"


def facts_of(source: XenHost, destination: XenHost, attacker: XenHost | None, sent: bytes) -> Facts:
    """Look at the books of all hosts."""
    facts = Facts()
    facts.received = bool(destination.calls())
    facts.kept = source.domains().get(DOMAIN) == "running"
    facts.arrived = destination.domains().get(DOMAIN) == "running"
    facts.copies = len(running_copies(DOMAIN, source, destination))
    if attacker is not None:
        facts.taken = bool(running_copies(DOMAIN, attacker))
        facts.copies += facts.taken
    if facts.arrived:
        facts.intact = destination.digest(DOMAIN) == digest(sent)
        facts.rewritten = destination.digest(DOMAIN) == digest(sent.replace(PLANT, INSTEAD))
    return facts

