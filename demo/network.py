"""The network of the demonstration: two hosts and a router between them, in network namespaces; without root, loopback alone.

    hv1 192.0.2.2 ── router ── 198.51.100.2 hv2          (addresses of RFC 5737, in namespaces that nothing else is in)

Whoever holds the router is the man in the middle: he can pass packets on, or answer for hv2 himself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_IP_TRANSPARENT = 19  # linux/in.h: accept and answer for addresses that are not ours
_INTERCEPT_TABLE = "100"
_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")


class NoNamespacesError(Exception):
    """This machine does not let us make network namespaces; the text says why."""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespacesError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _enter(namespace: Path) -> None:
    """Put the calling thread, and what it starts from now on, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise NoNamespacesError(f"setns {namespace}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


class Loopback:
    """Everything on 127.0.0.1. The man in the middle has a port of his own, to which the source is sent, as forged DNS would send it."""

    words = "loopback, for lack of root"
    source_address = "127.0.0.1"
    destination_address = "127.0.0.1"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def inside(self, _host: str) -> contextlib.AbstractContextManager[None]:
        """Where the commands of a host run."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def intercept(self, _port: int) -> Iterator[tuple[socket.socket, str]]:
        """The man in the middle's listening socket, and the options that lead the source to it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener, f"-p {listener.getsockname()[1]}"


class Namespaces:
    """Three network namespaces joined by two veth pairs; removed on leaving."""

    words = "two network namespaces and a router between them"
    source_address = "192.0.2.2"
    destination_address = "198.51.100.2"

    def __init__(self) -> None:
        self._name = {host: f"xensecure{os.getpid()}-{host}" for host in ("hv1", "router", "hv2")}
        self._made: list[str] = []

    def __enter__(self) -> Self:
        try:
            for name in self._name.values():
                _ip("netns", "add", name)
                self._made.append(name)
            for host in self._name:
                self._ip(host, "link", "set", "lo", "up")
            self._cable("hv1", self.source_address, "192.0.2.1")
            self._cable("hv2", self.destination_address, "198.51.100.1")
            with self.inside("router"):
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        except (OSError, NoNamespacesError) as error:
            self._remove()
            raise NoNamespacesError(str(error)) from None
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        for name in self._made:
            with contextlib.suppress(NoNamespacesError):
                _ip("netns", "del", name)
        self._made.clear()

    def _ip(self, host: str, *words: str) -> None:
        """Ip run inside; its own -n would also mount /sys anew, which not every container lets it."""
        with self.inside(host):
            _ip(*words)

    def _cable(self, host: str, address: str, gateway: str) -> None:
        end = f"to-{host}"
        self._ip(host, "link", "add", "eth0", "type", "veth", "peer", "name", end, "netns", self._name["router"])
        for place, device, ip in ((host, "eth0", address), ("router", end, gateway)):
            self._ip(place, "addr", "add", f"{ip}/30", "dev", device)
            self._ip(place, "link", "set", device, "up")
        self._ip(host, "route", "add", "default", "via", gateway)

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Where the commands of a host run: this thread's namespace, and that of all it starts, is the host's meanwhile."""
        before = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(Path("/run/netns") / self._name[host])
            yield
        finally:
            _enter(Path(f"/proc/self/fd/{before}"))
            os.close(before)

    @contextlib.contextmanager
    def intercept(self, port: int) -> Iterator[tuple[socket.socket, str]]:
        """The man in the middle's listening socket; the source needs no leading, its packets to hv2 come to the router anyway."""
        with self.inside("router"):
            listener = socket.socket()
        with listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
            listener.bind(("0.0.0.0", port))  # noqa: S104 - of the router's namespace
            listener.listen()
            self._ip("router", "route", "add", "local", f"{self.destination_address}/32", "dev", "lo", "table", _INTERCEPT_TABLE)
            self._ip("router", "rule", "add", "iif", "to-hv1", "lookup", _INTERCEPT_TABLE)
            try:
                yield listener, ""
            finally:
                self._ip("router", "rule", "del", "iif", "to-hv1", "lookup", _INTERCEPT_TABLE)
                self._ip("router", "route", "flush", "table", _INTERCEPT_TABLE)


Network = Namespaces | Loopback


@contextlib.contextmanager
def make_network() -> Iterator[Network]:
    """Namespaces where they are allowed, loopback otherwise."""
    with contextlib.ExitStack() as stack:
        network: Network = Loopback()
        if os.geteuid() == 0:
            try:
                network = stack.enter_context(Namespaces())
            except (NoNamespacesError, FileNotFoundError) as error:
                network = Loopback()
                network.words = f"loopback ({error})"
        yield network


class Interceptor(threading.Thread):
    """A thread on the router that takes the next connection; ``attack`` gets that and one to hv2."""

    def __init__(self, network: Network, listener: socket.socket, port: int) -> None:
        super().__init__(daemon=True)
        self._network = network
        self._listener = listener
        self._port = port
        self.failure = ""

    def run(self) -> None:
        """Take one connection and attack it."""
        try:
            with self._network.inside("router"):
                victim, _ = self._listener.accept()
                with victim, socket.create_connection((self._network.destination_address, self._port), timeout=10) as target:
                    self.attack(victim, target)
        except OSError as error:
            self.failure = str(error)

    def attack(self, victim: socket.socket, target: socket.socket) -> None:
        """What a man in the middle does."""
        raise NotImplementedError
