"""Stub Xen hosts for tests: the real xl, run against books in a folder.

A test makes two hosts, gives one a domain and lets the real ``xl migrate`` run
with any transport::

    with XenHost(tmp_path / "hv1") as hv1, XenHost(tmp_path / "hv2") as hv2:
        hv1.create_domain("web1", stream)
        done = hv1.migrate(f"transport {hv2.xl_wrapper()}", "web1", "hv2").wait()
        assert running_copies("web1", hv1, hv2) == [hv2]

What a host can be told to do wrong is listed at :class:`Fault`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.xl.build import Toolstack, build
from tests.xl.stream import make_config

POLL = 0.005  # seconds between two looks at the books
PATIENCE = 10.0  # seconds after which a test that waits has failed


class Fault(StrEnum):
    """What can be set with XenHost.set_fault; offsets count from "LibxlFmt" on, in bytes."""

    RESTORE_REFUSE = "restore_refuse"  # 1: the target fails before it has read anything
    RESTORE_FAIL_AT = "restore_fail_at"  # offset: the target fails when it has read so much
    RESTORE_AT = "restore_at"  # offset of Point.RESTORE, 0 if not set
    SUSPEND_FAIL = "suspend_fail"  # libxl's error at once: -3 xl resumes, -8 guest did not answer
    SUSPEND_FAIL_AT = "suspend_fail_at"  # offset: the source fails when it has written so much
    SUSPEND_AT = "suspend_at"  # offset of Point.SUSPEND, 0 if not set
    SUSPEND_RATE = "suspend_rate"  # bytes a second that the source writes at most
    RESUME_FAIL = "resume_fail"  # 1: a suspended domain can't be resumed
    UNPAUSE_FAIL = "unpause_fail"  # 1: the target can't start its copy; status byte 3
    REMUS_CHECKPOINTS = "remus_checkpoints"  # number after which the source ends Remus
    DIGEST_OFF = "digest_off"  # 1: the target computes no SHA-256, for measurements of speed
    TOTAL_MEMORY = "total_memory"  # MiB that `xl info` says, 16384 if not set
    FREE_MEMORY = "free_memory"  # MiB, 8192 if not set
    POPULATED = "populated"  # MiB that a domain has got while it is restored, 0 if not set
    HW_CAPS = "hw_caps"  # the first 32 features of the CPU there, hexadecimal
    XEN_MINOR = "xen_minor"  # of the hypervisor's version 4.17.5
    NO_HVM = "no_hvm"  # 1: the hypervisor has no HVM, and so no PVH, guests
    AUTOBALLOON = "autoballoon"  # "on": xl holds its lock for the whole of a restore


class Point(StrEnum):
    """Where a host can be held (set_hold) or delayed (set_sleep)."""

    SUSPEND = "suspend"  # source: in the stream, at SUSPEND_AT
    RESTORE = "restore"  # target: in the stream, at RESTORE_AT
    READY = "ready"  # target: all read, "ready" not yet said
    RENAME = "rename"  # source: before GO; target: after GO, before unpause
    UNPAUSE = "unpause"  # target: after GO, before the guest runs
    DESTROY = "destroy"  # source: after the report; target: when it failed, after its report
    RESUME = "resume"  # source: before the guest runs again


@dataclass(frozen=True)
class Call:
    """One toolstack call of a host, as calls.log has it."""

    time: float
    pid: int
    name: str
    arguments: Mapping[str, str]


@dataclass(frozen=True)
class Domain:
    """One domain in the books of a host."""

    domid: int
    name: str
    state: str
    digest: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Outcome:
    """How an xl ended: its exit status (negative: signal) and what it said on stderr."""

    status: int
    stderr: str


@dataclass
class Running:
    """An xl that a host has started. Its stderr is a file: no reader is needed."""

    process: subprocess.Popen[bytes]
    stderr_path: Path

    @property
    def pid(self) -> int:
        """Process id of xl, which leads its own session and process group."""
        return self.process.pid

    def stderr(self) -> str:
        """What has been said on stderr so far by xl, its transport and the other end."""
        return self.stderr_path.read_text(errors="replace")

    def wait(self, timeout: float = PATIENCE) -> Outcome:
        """Wait for xl (not for its transport) to end."""
        return Outcome(self.process.wait(timeout), self.stderr())

    def kill(self) -> None:
        """Kill xl alone, as the kernel or an operator would."""
        self.process.kill()
        self.process.wait()


def wait_until(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Poll until the condition holds.

    Raises:
        TimeoutError: it did not within timeout seconds; what names it.

    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"still waiting for {what} after {timeout:g} s")
        time.sleep(POLL)


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


def open_files(pid: int) -> dict[int, str]:
    """Descriptors of a process and what they are, as /proc has them."""
    files = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            files[int(entry.name)] = str(entry.readlink())
    return files


@dataclass(eq=False)
class XenHost:
    """One host: a folder with its books, and the real xl to run on them."""

    path: Path
    toolstack: Toolstack = field(default_factory=build)
    _started: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the books of a host without domains."""
        self.path = self.path.absolute()
        for folder in ("domains", "configs", "log"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Give the host for a with block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what the host has left running."""
        self.close()

    # ---- domains

    def create_domain(self, name: str, stream: Path, *, state: str = "running") -> int:
        """Add a domain whose memory is the libxl stream in that file; returns its id."""
        domid = max((domain.domid for domain in self._domains()), default=0) + 1
        config = self.path / f"configs/{domid}.json"
        config.write_text(make_config(name, mib=max(1, stream.stat().st_size >> 20)))
        self._write_domain(
            domid, {"name": name, "state": state, "config": config, "stream": stream.absolute()}
        )
        return domid

    def create_dom0(self, *, mib: int = 1024) -> None:
        """Let xl list this host itself, as domain 0."""
        config = self.path / "configs/0.json"
        config.write_text(make_config("Domain-0", mib=mib))
        self._write_domain(0, {"name": "Domain-0", "state": "running", "config": config})

    def create_nameless(self) -> int:
        """Add a domain that has no name, as one that is being built or torn down; returns its id."""
        domid = max((int(path.name) for path in (self.path / "domains").iterdir()), default=0) + 1
        self._write_domain(domid, {"name": "", "state": "paused"})
        return domid

    def set_stream(self, name: str, stream: Path) -> None:
        """Give a domain that came by migration a stream, so that it can leave again."""
        domid = self.domain(name).domid
        fields = _read_fields(self.path / f"domains/{domid}")
        self._write_domain(domid, {**fields, "stream": stream.absolute()})

    def destroy(self, name: str) -> None:
        """Let the domain die; its monitor daemon ends soon after."""
        (self.path / f"domains/{self.domain(name).domid}").unlink()

    def domains(self) -> dict[str, str]:
        """State (running, paused or suspended) of each domain by name."""
        return {domain.name: domain.state for domain in self._domains()}

    def domain(self, name: str) -> Domain:
        """The domain of that name; KeyError if there is none."""
        return {domain.name: domain for domain in self._domains()}[name]

    def running(self) -> list[str]:
        """Names of the domains that run."""
        return [name for name, state in self.domains().items() if state == "running"]

    def digest(self, name: str) -> str:
        """SHA-256 of the stream that the domain was restored from, hexadecimal."""
        return self.domain(name).digest

    def _domains(self) -> list[Domain]:
        found = []
        for entry in (self.path / "domains").iterdir():
            try:
                fields = _read_fields(entry)
            except FileNotFoundError:  # destroyed since the folder was read
                continue
            if fields.get("name"):
                found.append(
                    Domain(
                        int(entry.name),
                        fields["name"],
                        fields["state"],
                        fields.get("digest", ""),
                        int(fields.get("bytes") or 0),
                    )
                )
        return sorted(found, key=lambda domain: domain.domid)

    def _write_domain(self, domid: int, fields: Mapping[str, object]) -> None:
        temporary = self.path / f"domain-{domid}-test.tmp"
        temporary.write_text("".join(f"{key}={value}\n" for key, value in fields.items()))
        temporary.rename(self.path / f"domains/{domid}")

    # ---- what has happened

    def calls(self, name: str | None = None) -> list[Call]:
        """The toolstack calls so far, in order; only those of that name if one is given."""
        try:
            lines = (self.path / "calls.log").read_text().splitlines()
        except FileNotFoundError:
            return []
        calls = map(_parse_call, lines)
        return [call for call in calls if name is None or call.name == name]

    def monitors(self) -> list[int]:
        """Process ids of the monitor daemons that are alive."""
        started = {call.pid for call in self.calls("libxl_evenable_domain_death")}
        return [pid for pid in self.processes() if pid in started]

    def wait_monitor(self, timeout: float = PATIENCE) -> int:
        """Wait for the monitor daemon, which xl does not; returns its process id."""
        wait_until(self.monitors, f"a monitor daemon on {self.path.name}", timeout)
        return self.monitors()[-1]

    def processes(self) -> list[int]:
        """Process ids of this host's xl, helper and monitor processes that are alive.

        Known by the environment that they were started with: what xl starts
        does not inherit it, so transports are not among them.
        """
        mark = f"XEN_STUB_HOST={self.path}".encode()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if mark in _environment(pid) and alive(pid)]

    # ---- faults

    def set_fault(self, fault: Fault, value: float | str = 1) -> None:
        """Set one fault; it holds for every xl that is started after."""
        self._set(fault, value)

    def set_hold(self, point: Point) -> None:
        """Stop at the point until release(); wait_held() waits for that."""
        self._set(f"{point}_hold", 1)

    def set_sleep(self, point: Point, seconds: float) -> None:
        """Lose so much time at the point."""
        self._set(f"{point}_sleep", seconds)

    def clear_faults(self) -> None:
        """Let everything go right again, from the next xl on."""
        (self.path / "faults").unlink(missing_ok=True)
        for mark in self.path.glob("release.*"):
            mark.unlink()

    def wait_held(self, point: Point, timeout: float = PATIENCE) -> int:
        """Wait until a process has stopped at the point; returns its process id."""
        wait_until((self.path / f"held.{point}").exists, f"{self.path.name} at {point}", timeout)
        return [call.pid for call in self.calls("hold") if call.arguments["point"] == point][-1]

    def release(self, point: Point) -> None:
        """Let whoever is held at the point, or comes to it later, go on."""
        (self.path / f"release.{point}").touch()

    def _set(self, key: str, value: object) -> None:
        path = self.path / "faults"
        fields = _read_fields(path) if path.exists() else {}
        fields[key] = str(value)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{name}={text}\n" for name, text in fields.items()))
        temporary.rename(path)

    # ---- xl

    def xl_env(self) -> dict[str, str]:
        """Environment that the real xl needs; xl gives no part of it to what it starts."""
        return {
            "XEN_STUB_HOST": str(self.path),
            "LD_LIBRARY_PATH": str(self.toolstack.libraries),
        }

    def xl_wrapper(self) -> Path:
        """A command that runs this host's xl whatever the environment is."""
        path = self.path / "xl"
        if not path.exists():
            settings = [f"{key}={shlex.quote(value)}" for key, value in self.xl_env().items()]
            command = f"exec env {' '.join(settings)} {shlex.quote(str(self.toolstack.xl))}"
            temporary = self.path / "xl.tmp"
            temporary.write_text(f'#!/bin/sh\n{command} "$@"\n')
            temporary.chmod(0o755)
            temporary.rename(path)
        return path

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Running:
        """Start xl with these arguments in its own session; stdin is empty."""
        path = self.path / f"log/xl-{len(self._started)}.err"
        with path.open("wb") as stderr:
            process = subprocess.Popen(
                [str(self.toolstack.xl), *arguments],
                env={**os.environ, **(env or {}), **self.xl_env()},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        running = Running(process, path)
        self._started.append(running)
        return running

    def xl(self, *arguments: str) -> Outcome:
        """Run an xl command to its end, "list" for one; stderr has its stdout too."""
        return self.start(*arguments).wait()

    def migrate(
        self,
        command: str,
        domain: str,
        host: str,
        *options: str,
        xl_options: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> Running:
        """Start ``xl XL_OPTIONS migrate OPTIONS -s COMMAND DOMAIN HOST``."""
        return self.start(*xl_options, "migrate", *options, "-s", command, domain, host, env=env)

    def remus(self, command: str, domain: str, host: str, *options: str) -> Running:
        """Start ``xl remus OPTIONS -s COMMAND DOMAIN HOST``."""
        return self.start("remus", *options, "-s", command, domain, host)

    def close(self) -> None:
        """End every process of this host that is left, by its id."""
        for running in self._started:
            if running.process.poll() is None:
                running.kill()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), f"the processes of {self.path.name} to end")


def running_copies(name: str, *hosts: XenHost) -> list[XenHost]:
    """Hosts on which the domain runs, under its own or one of xl's temporary names."""
    suffixes = ("", "--incoming", "--migratedaway")
    return [host for host in hosts for suffix in suffixes if f"{name}{suffix}" in host.running()]


def _read_fields(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in path.read_text().splitlines())
    return {key: value for key, _, value in pairs}


def _parse_call(line: str) -> Call:
    moment, pid, name, *arguments = line.split(" ")
    pairs = (argument.partition("=") for argument in arguments if argument)
    return Call(float(moment), int(pid), name, {key: value for key, _, value in pairs})


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
