"""Two hosts on loopback, each with its own configuration, state and Xen: what most tests stand on.

Everything is the real thing but Xen's toolstack libraries: the four commands as installed, real sockets and processes, Debian's xl.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.xl.hosts import Running, XenHost, alive
from xensecure.link.journal import entries

BIN = Path(sys.executable).parent
# As root the receivers become this user, which every Debian has; otherwise everything runs as whoever runs the tests.
RECEIVER_USER = "nobody"
_PORTS = range(20000, 32000)  # below those that the kernel takes for connections (net.ipv4.ip_local_port_range: 32768 and up)
_given: set[int] = set()  # to this process
PATIENCE = 20.0  # seconds until something that should happen is taken as not happening


def command(name: str) -> str:
    """The path of one of xensecure's commands as installed beside this Python."""
    path = BIN / name
    assert path.exists(), f"{path} is missing: pip install -e . first"
    return str(path)


@functools.cache
def _port_locks() -> int:
    """A file with a byte for each port, on which processes of the tests have locks."""
    path = Path(tempfile.gettempdir()) / f"xensecure-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def free_port() -> int:
    """A TCP port nobody listens on, and that no other process of the tests is given while this one lives: a daemon takes seconds until it has it."""
    for port in random.sample([port for port in _PORTS if port not in _given], 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            fcntl.lockf(_port_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise AssertionError("no free port")


def listens(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1, found out without a connection to it (/proc/net/tcp)."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(fields[1] == f"0100007F:{port:04X}" and fields[3] == "0A" for fields in sockets)


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until a condition holds; AssertionError with ``what`` if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.01)


class Host:
    """One host: a folder with configuration, state and books.

    ``extra``: more TOML for the configuration; ``xl``: another program for xl; ``resume_window``: seconds, None for xensecure's own default.
    """

    def __init__(
        self, folder: Path, name: str, *, extra: str = "", xl: Path | None = None, address: str = "127.0.0.1", resume_window: int | None = 0
    ) -> None:
        self.folder = folder
        self.name = name
        self.address = address
        self.port = free_port()
        self.xen = XenHost(folder / "xen")
        self.xl = xl or self.xen.xl_wrapper()
        self.config = folder / "xensecure.toml"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.resume_window = resume_window
        self.configure(extra)

    def configure(self, extra: str = "") -> None:
        """Write the configuration."""
        if self.resume_window is not None:
            head, _, tail = extra.partition("[defaults]\n")
            extra = f"{head}[defaults]\nresume_window = {self.resume_window}\n{tail}"
        self.config.write_text(
            f"""\
[paths]
state = "{self.state}"
run = "{self.folder / "run"}"
hooks = "{self.hooks}"
[identity]
name = "{self.name}"
[listen]
addresses = ["{self.address}"]
port = {self.port}
[receive]
xl = "{self.xl}"
user = "{RECEIVER_USER}"
{extra}
"""
        )
        self.config.chmod(0o644)

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    @property
    def hooks(self) -> Path:
        """The folder of the operator's hooks."""
        return self.folder / "hooks.d"

    def add_hook(self, point: str, name: str, script: str) -> Path:
        """Make a hook."""
        folder = self.hooks / point
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.hooks, folder):
            path.chmod(0o755)
        hook = folder / name
        hook.write_text(script)
        hook.chmod(0o755)
        return hook

    def environment(self) -> dict[str, str]:
        """The environment in which a command is this host's."""
        return {**os.environ, "XENSECURE_CONFIG": str(self.config), "XENSECURE_TRACEBACK": ""}

    def ctl(self, *arguments: str, status: int = 0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run xensecurectl and check its exit status."""
        done = subprocess.run(
            [command("xensecurectl"), *arguments], env=self.environment(), input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, f"xensecurectl {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def invite(self, *arguments: str) -> str:
        """A fresh token."""
        return self.ctl("invite", "--address", self.address, *arguments).stdout.strip()

    @contextlib.contextmanager
    def other_xl(self, script: str) -> Iterator[None]:
        """Meanwhile another xl in the configuration that is written and the daemons that are started: a shell script, whose $xl is the real one."""
        real = self.xl
        self.xl = real.with_name("xl-other")
        self.xl.write_text(f"#!/bin/sh\nxl={real}\n{script}\n")
        self.xl.chmod(0o755)
        try:
            yield
        finally:
            self.xl = real

    def log(self, name: str) -> str:
        """What a daemon has said so far."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of the daemons; its stderr goes to its log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([command(name), *arguments], env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes[name] = process
        return process

    def start_daemons(self) -> None:
        """Start launcher and receiver, and wait until both are ready."""
        for name, arguments in (("xensecure-launcher", ()), ("xensecured", ("--listen",))):
            self.start_until_ready(name, *arguments)

    def start_until_ready(self, name: str, *arguments: str) -> None:
        """Start one of the daemons, and wait until it says that it is ready."""
        said = self.log(name).count(_READY[name])
        process = self.start(name, *arguments)

        def ready() -> bool:
            assert process.poll() is None, f"{name} has ended with status {process.returncode}:\n{self.log(name)}"
            return self.log(name).count(_READY[name]) > said

        wait_for(ready, f"{name} ready")

    def stop_daemons(self) -> None:
        """End the daemons; what they forked for sessions is ended too."""
        for process in self.processes.values():
            for child in children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.terminate()
        for name, process in self.processes.items():
            assert process.wait(PATIENCE) is not None, name
        self.processes.clear()

    def children(self, name: str) -> list[int]:
        """The processes that a daemon has forked and that still live: receivers, or keepers."""
        return children(self.processes[name].pid)

    def session(self) -> Session:
        """The processes of the one session that this host receives, once xl runs in it."""
        found: list[Session] = []

        def complete() -> bool:
            receivers, keepers = self.children("xensecured"), self.children("xensecure-launcher")
            found[:] = [Session(receivers[0], keeper, xl) for keeper in keepers for xl in children(keeper)] if receivers else []
            return len(found) == 1

        wait_for(complete, "one session")
        return found[0]

    def journal(self) -> list[dict[str, Any]]:
        """The journal's entries."""
        return list(entries(self.state))

    def last_end(self) -> dict[str, Any]:
        """The journal's last ``end``, once there is one for every ``start``."""

        def over() -> bool:
            events = [entry["event"] for entry in self.journal()]
            return 0 < events.count("start") == events.count("end")

        wait_for(over, "the journal's end entry")
        return [entry for entry in self.journal() if entry["event"] == "end"][-1]

    def reset(self) -> None:
        """Forget domains, faults, calls, hooks and journal, so that the next test finds the host as new but for its keys."""
        shutil.rmtree(self.hooks, ignore_errors=True)
        self.xen.close()
        self.xen.clear_faults()
        marks, domains = self.xen.path.glob("held.*"), (self.xen.path / "domains").iterdir()
        for path in (*marks, *domains, self.xen.path / "calls.log", *self.state.glob("journal.jsonl*")):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """End everything this host has started."""
        self.stop_daemons()
        self.xen.close()


_READY = {"xensecure-launcher": "ready for receivers", "xensecured": "listening on port"}


@dataclass(frozen=True)
class Session:
    """The three processes of a session at the destination, by process id."""

    receiver: int
    keeper: int
    xl: int

    def gone(self) -> bool:
        """Whether none of them is left."""
        return not any(alive(pid) for pid in (self.receiver, self.keeper, self.xl))


def children(pid: int) -> list[int]:
    """The living children of a process."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if alive(int(word))]
    return []


def command_line(pid: int) -> list[bytes]:
    """A process's program and arguments; nothing of one that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def transports(xl: int) -> list[int]:
    """The xensecure processes that an xl on the source has started."""
    mark = os.fsencode(command("xensecure"))
    return [pid for pid in children(xl) if mark in command_line(pid)]


class Pair:
    """A source (hv1) and a destination (hv2) that have met, and the destination's daemons running.

    ``resume_window``: 0, so that a lost link ends what is tested at once; for the tests of lost links something else.
    """

    def __init__(
        self,
        *,
        source_extra: str = "",
        destination_extra: str = "",
        met: bool = True,
        xl: Path | None = None,
        address: str = "127.0.0.1",
        resume_window: int | None = 0,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="xensecure-test-"))
        self.folder.chmod(0o755)  # the receivers' user has to reach the launcher's socket
        (self.folder / "hv1").mkdir()
        (self.folder / "hv2").mkdir()
        self.source = Host(self.folder / "hv1", "hv1", extra=source_extra, resume_window=resume_window)
        self.destination = Host(self.folder / "hv2", "hv2", extra=destination_extra, xl=xl, address=address, resume_window=resume_window)
        try:
            self.source.ctl("init")
            self.destination.ctl("init")
            self.destination.start_daemons()
            if met:
                self.source.ctl("join", self.destination.invite())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def transport(self, options: str = "") -> str:
        """What `xl migrate -s` gets on the source."""
        return f"{command('xensecure')} -F {self.source.config} {options}".strip()

    def migrate(self, domain: str, *options: str, transport: str = "", xl_options: tuple[str, ...] = (), host: str = "hv2") -> Running:
        """`xl migrate [options] -s "xensecure [transport]" DOMAIN HOST` on the source."""
        return self.source.xen.migrate(self.transport(transport), domain, host, *options, xl_options=xl_options)

    def pipe(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start xensecure on the source as xl does, its standard descriptors in the test's hands; for ``xl migrate-receive`` by default."""
        words = arguments or ("hv2", "xl", "migrate-receive")
        return subprocess.Popen(
            [command("xensecure"), *words],
            env={**self.source.environment(), **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )

    def quiet(self) -> bool:
        """Whether no session runs, and no receiver."""
        return not any(self.destination.children(name) for name in self.destination.processes)

    def expect_nothing_left(self) -> None:
        """Wait until no process of a session is left; its logs may tell of no fault of the destination's own."""
        wait_for(self.quiet, "the session's processes to end")
        for name in self.destination.processes:
            for words in ("internal error", "please report", "Traceback"):
                assert words not in self.destination.log(name), self.destination.log(name)

    def reset(self) -> None:
        """Make both hosts ready for the next test."""
        self.source.xen.close()
        self.destination.xen.close()
        wait_for(self.quiet, "the last test's sessions to end")
        self.source.reset()
        self.destination.reset()

    def close(self) -> None:
        """End and remove everything."""
        for host in (self.source, self.destination):
            host.close()
        shutil.rmtree(self.folder)
