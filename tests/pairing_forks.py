"""Two hosts whose commands and daemons are forks of the test's own process: so fast that each of their steps can be the one at which they die."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.pair import RECEIVER_USER, free_port, wait_for
from xensecure.cli import ctl, launcher, xensecured
from xensecure.destination import invite
from xensecure.destination.packets import Packets
from xensecure.link.config import Config, load_config
from xensecure.link.connection import FrameChannel
from xensecure.link.identity import load_credentials, make_identity
from xensecure.link.peers import Peer, Peers
from xensecure.proto.errors import AuthenticationError
from xensecure.proto.messages import Purpose
from xensecure.source import establish, pairing

KILLED = -signal.SIGKILL
# Everything between which a process can die with a difference: what leaves it, what reaches it, what changes on disk, and its forks.
STEPS: tuple[tuple[Any, str], ...] = (
    (FrameChannel, "send"),
    (FrameChannel, "receive"),
    (Packets, "send"),
    (Packets, "receive"),
    (pairing, "establish"),
    (establish, "establish"),
    (os, "fsync"),
    (os, "fork"),
    (Path, "rename"),
    (Path, "unlink"),
)


class Fate:
    """Kills a process, or a fork of it, before its step number ``at`` (0: never); counts the steps of all of them.

    After a step is before the next one: what lies between changes nothing that would outlive the process.
    """

    def __init__(self, at: int = 0) -> None:
        self._at = at
        self._count = mmap.mmap(-1, 8)

    @property
    def steps(self) -> int:
        """How many there have been."""
        return int.from_bytes(self._count[:], "little")

    def _step(self) -> None:
        self._count[:] = (self.steps + 1).to_bytes(8, "little")
        if self.steps == self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def take_hold(self) -> None:
        """Count this process's steps from now on."""
        for owner, name in STEPS:
            setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._step()
            return function(*arguments, **named)

        return counted


class ForkedHost:
    """One host in a folder: its configuration, its state, its daemons."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.name = name
        self.state = folder / "state"
        self.port = free_port()
        self.path = folder / "xensecure.toml"
        self.path.write_text(
            f'[paths]\nstate = "{self.state}"\nrun = "{folder}/run"\n[identity]\nname = "{name}"\n'
            f'[listen]\naddresses = ["127.0.0.1"]\nport = {self.port}\n[receive]\nxl = "/bin/false"\nuser = "{RECEIVER_USER}"\n'
        )
        self._daemons: dict[str, int] = {}
        make_identity(self.config)

    @property
    def config(self) -> Config:
        """As its commands read it."""
        return load_config(str(self.path))

    @property
    def peers(self) -> Peers:
        """Its peers."""
        return Peers(self.config)

    def token(self) -> str:
        """A fresh token of this host's."""
        return invite.make_token(self.config, ttl=600, addresses=("127.0.0.1",)).encode()

    def log(self, name: str) -> str:
        """What a daemon or command has said since it was started last."""
        return (self.folder / f"{name}.log").read_text()

    def fork(self, name: str, main: Callable[[], int], arguments: tuple[str, ...], fate: Fate | None = None) -> int:
        """Start a command as a fork in its own session; returns its process id."""
        log = self.folder / f"{name}.log"
        log.write_bytes(b"")
        pid = os.fork()
        if pid:
            return pid
        status = 70
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", buffering=0, closefd=False), write_through=True)
            sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", buffering=0, closefd=False), write_through=True)
            sys.argv = [name, *arguments]
            os.environ["XENSECURE_CONFIG"] = str(self.path)
            if fate is not None:
                fate.take_hold()
            status = main()
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else 0
        finally:
            os._exit(status)

    def start_ctl(self, *arguments: str, fate: Fate | None = None) -> int:
        """Start xensecurectl; returns its process id."""
        return self.fork("xensecurectl", ctl.main, arguments, fate)

    def ctl(self, *arguments: str, fate: Fate | None = None) -> int:
        """Run xensecurectl; returns its exit status, KILLED if its fate was that."""
        return status_of(self.start_ctl(*arguments, fate=fate))

    def start_launcher(self, fate: Fate | None = None) -> None:
        """Start the launcher and wait until it serves."""
        self._daemons["launcher"] = self.fork("launcher", launcher.main, (), fate)
        wait_for(lambda: "ready for receivers" in self.log("launcher") or self._has_ended("launcher"), "launcher ready")

    def start_receiver(self, fate: Fate | None = None) -> None:
        """Start the receiver and wait until it listens."""
        self._daemons["receiver"] = self.fork("receiver", xensecured.main, ("--listen",), fate)
        wait_for(lambda: "listening on port" in self.log("receiver") or self._has_ended("receiver"), "receiver ready")

    def _has_ended(self, name: str) -> bool:
        return os.waitid(os.P_PID, self._daemons[name], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self, name: str) -> None:
        """Kill a daemon with its forks, whether it lives or not."""
        pid = self._daemons.pop(name, 0)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def restart(self, name: str, fate: Fate | None = None) -> None:
        """Start a daemon anew, with or without a fate."""
        self.stop(name)
        (self.start_launcher if name == "launcher" else self.start_receiver)(fate)


def status_of(pid: int) -> int:
    """Wait for a process; its exit status, or less than 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class ForkedPair:
    """hv1 and hv2, both with daemons, and ``states``: what their state folders can be set back to, "fresh" and "met"."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # noqa: S108 - a file system in memory, where fsync takes no time
        self.folder = Path(tempfile.mkdtemp(prefix="xensecure-test-", dir=memory if os.access(memory, os.W_OK) else None))
        self.folder.chmod(0o755)
        self.first, self.second = (ForkedHost(self.folder / name, name) for name in ("hv1", "hv2"))
        self.hosts = (self.first, self.second)
        try:
            for host in self.hosts:
                host.start_launcher()
                host.start_receiver()
            self.save("fresh")
            assert self.first.ctl("join", self.second.token()) == 0, self.first.log("xensecurectl")
            assert self.both_ways()
            self.save("met")
        except BaseException:
            self.close()
            raise

    def save(self, name: str) -> None:
        """Keep both state folders as they are under a name."""
        for host in self.hosts:
            shutil.copytree(host.state, host.folder / name)

    def set_back(self, name: str) -> None:
        """Make both state folders what they were."""
        for host in self.hosts:
            while host.state.exists():  # a keeper may just be writing
                shutil.rmtree(host.state, ignore_errors=True)
            shutil.copytree(host.folder / name, host.state)

    def connects(self, source: ForkedHost, destination: ForkedHost) -> bool:
        """Whether a connection with what the two have stored is authenticated by both."""
        config = source.config
        try:
            route = establish.find_route(config, source.peers, destination.name, config.options_for(destination.name))
            establish.reach(config, source.peers, load_credentials(config), route, Purpose.MIGRATE).channel.close()
        except AuthenticationError:
            return False
        return True

    def both_ways(self, *, second_first: bool = False) -> bool:
        """Whether each can reach the other; ``second_first``: which is tried first."""
        one, other = reversed(self.hosts) if second_first else self.hosts
        return self.connects(one, other) and self.connects(other, one)

    def agree(self) -> bool:
        """Whether both hold exactly one and the same link key."""
        held = [self.peer_of(host).keys for host in self.hosts]
        return len(held[0]) == 1 and [key.id for key in held[0]] == [key.id for key in held[1]]

    def peer_of(self, host: ForkedHost) -> Peer:
        """What a host has stored of the other."""
        peer = host.peers.get(self.second.name if host is self.first else self.first.name)
        assert peer is not None
        return peer

    def close(self) -> None:
        """End and remove everything."""
        for host in self.hosts:
            for name in ("launcher", "receiver"):
                host.stop(name)
        shutil.rmtree(self.folder)

    def __enter__(self) -> ForkedPair:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """AssertionError if the body takes longer."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds, f"took {took:.1f} s"
