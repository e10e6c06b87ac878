"""How connections reach receivers: from systemd (``Accept=yes``: this process serves one), or from a listening socket of our own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections import Counter
from dataclasses import dataclass

from ..link import hardening
from ..link.config import Config
from ..link.connection import peer_address, prepare
from ..link.engine import find_backend
from ..link.events import Event, Events
from ..link.identity import load_credentials
from ..link.roles import Role
from ..link.say import say
from ..proto import limits
from ..proto.errors import AuthenticationError, Cause, SystemFailure, UsageError, XensecureError
from ..proto.tls import Credentials
from .accepting import Accepting
from .receiver import Receiver
from .systemd import inherited_sockets

PROGRAM = "xensecured"
_BACKLOG = 128  # connections the kernel holds while we fork


def serve_inherited(config: Config) -> int:
    """Serve the one connection that systemd passed on; returns the exit status."""
    sockets = inherited_sockets()
    if len(sockets) != 1:
        raise UsageError("no connection was passed on by systemd; start it with --listen to listen by hand")
    credentials = load_credentials(config)
    hardening.drop_root(config.user)
    prepare(sockets[0])
    return serve_connection(sockets[0], config, credentials)


def serve_connection(sock: socket.socket, config: Config, credentials: Credentials, authenticated: int = -1) -> int:
    """Serve one connection in this process; ``authenticated``: a descriptor to write a byte to when the source has proved itself."""
    address = peer_address(sock)
    peer = "unknown"
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # its keeper answers
        hardening.confine_receiver()
        receiver = Receiver(sock, config=config, credentials=credentials)
        if authenticated >= 0:
            receiver.on_authenticated = lambda: _report(authenticated)
        try:
            receiver.run()
        finally:
            peer = receiver.peer or peer
    except XensecureError as error:
        if isinstance(error, AuthenticationError) and error.cause is not Cause.NOT_ACCEPTED:  # the launcher has not heard of it
            Events(config, PROGRAM, Role.DESTINATION, confined=True).emit(
                Event.AUTHENTICATION_FAILED, address=address, cause=error.cause, why=str(error)
            )
        if isinstance(error, AuthenticationError) and error.impostor:
            say(PROGRAM, f"SECURITY: {address}: {error}")
        else:
            say(PROGRAM, f"{peer} ({address}): {error}")
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last resort of a process of its own: one line, no traceback
        say(PROGRAM, f"{address}: internal error, please report: {type(error).__name__}: {error}")
        return 1
    return 0


def _report(descriptor: int) -> None:
    """Tell the listener that this process's source has proved itself."""
    with contextlib.suppress(OSError):
        os.write(descriptor, os.getpid().to_bytes(4, "big"))


@dataclass
class _Child:
    """A receiver process: whom it serves, and whether that one has proved itself."""

    address: str
    authenticated: bool = False


class Listener:
    """Accepts connections and forks a receiver for each, within the limits on those that have proved nothing."""

    def __init__(self, config: Config) -> None:
        find_backend(config.cipher)
        self._config = config
        self._credentials = load_credentials(config)
        self._children: dict[int, _Child] = {}
        self._accepting = Accepting(PROGRAM)
        self._events = Events(config, PROGRAM, confined=True)
        self._stopping = False

    def run(self) -> None:
        """Listen until SIGTERM or SIGINT; receivers at work go on."""
        sockets = [self._listen(address) for address in self._config.listen]
        hardening.drop_root(self._config.user)
        hardening.no_core_dumps()
        hardening.hide_memory()
        wake, wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._authenticated, self._authenticated_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._own = (wake, wake_end, self._authenticated)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        poll = select.poll()
        for descriptor in (wake, self._authenticated, *(sock.fileno() for sock in sockets)):
            poll.register(descriptor, select.POLLIN)
        where = ", ".join(self._config.listen)
        say(PROGRAM, f"listening on port {self._config.port} of {where}")
        while not self._stopping:
            ready = dict(poll.poll())
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 512)
            self._note_authenticated()
            self._reap()
            for sock in sockets:
                if sock.fileno() in ready:
                    self._accept(sock, sockets)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _listen(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            host, _, scope = address.partition("%")
            sock.bind((host, self._config.port, 0, socket.if_nametoindex(scope)) if scope else (host, self._config.port))
            sock.listen(_BACKLOG)
            sock.settimeout(0)
        except OSError as error:
            raise SystemFailure(f"cannot listen on {address} port {self._config.port}: {error.strerror}; see [listen]") from None
        return sock

    def _note_authenticated(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._authenticated, 4):
                child = self._children.get(int.from_bytes(data, "big"))
                if child is not None:
                    child.authenticated = True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._children.pop(pid, None)

    def _accept(self, listener: socket.socket, listeners: list[socket.socket]) -> None:
        sock = self._accepting.next(listener)
        if sock is None:
            return
        with contextlib.closing(sock):
            address = peer_address(sock)
            strangers = Counter(child.address for child in self._children.values() if not child.authenticated)
            if strangers.total() >= limits.UNAUTHENTICATED_MAX or strangers[address] >= limits.UNAUTHENTICATED_PER_ADDRESS_MAX:
                say(PROGRAM, f"{address}: turned away, {strangers.total()} connections have not authenticated yet")
                self._events.emit(Event.TURNED_AWAY, address=address, why=f"{strangers.total()} connections have not authenticated yet")
                return
            try:
                pid = os.fork()
            except OSError as error:
                say(PROGRAM, f"{address}: turned away, no process for it: {error.strerror}")
                return
            if pid == 0:
                self._serve(sock, listeners)
            self._children[pid] = _Child(address)

    def _serve(self, sock: socket.socket, listeners: list[socket.socket]) -> None:
        """The child's whole life."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for listener in listeners:
                listener.close()
            for descriptor in self._own:
                os.close(descriptor)
            prepare(sock)
            status = serve_connection(sock, self._config, self._credentials, self._authenticated_end)
        finally:
            os._exit(status)
