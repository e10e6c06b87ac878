"""The launcher: takes receivers' connections on its socket, from their user alone, and forks a keeper for each."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
from pathlib import Path

from ..link import hardening, store
from ..link.config import Config
from ..link.events import Event, Events
from ..link.identity import load_credentials
from ..link.peers import Peers
from ..link.say import say
from ..proto import limits
from ..proto.errors import ConfigurationError, StateError, SystemFailure, XensecureError
from .accepting import Accepting
from .keeper import Keeper
from .lanes import sweep
from .packets import Packets, peer_user
from .slots import Slot, Slots, Use
from .systemd import inherited_sockets

PROGRAM = "xensecure-launcher"
# Connections at once from one process. A receiver has one; the rest is for keepers that have ended and are not reaped yet.
_PER_RECEIVER = 4
_BACKLOG = 64  # connections the kernel holds while we fork


class Launcher:
    """Listens for receivers."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._own_pin = load_credentials(config).pin
        # By hand receivers are of the configured user; under systemd of a dynamic one, in that user's group.
        account = hardening.find_user(config.user) if os.geteuid() == 0 else None
        self._user = account.pw_uid if account else os.geteuid()
        self._group = account.pw_gid if account else -1
        self._slots = Slots(config.state, config.sessions + limits.UNAUTHENTICATED_MAX)
        self._keepers: dict[int, Slot] = {}  # by process id
        self._served: dict[int, int] = {}  # process id: that of its receiver
        self._accepting = Accepting(PROGRAM)
        self._events = Events(config, PROGRAM)

    def run(self) -> None:
        """Serve until SIGTERM; the keepers go on by themselves."""
        listener = self._listen()
        wake, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        stopping: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: stopping.append(number))
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGUSR1, self._say_status)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(wake, select.POLLIN)
        noted = _noted(self._config)
        with contextlib.suppress(StateError, OSError):  # a full disk, or no descriptor, costs a warning of doctor's
            store.remove(noted)
            store.write_secret(noted, _note_of(self._config))
        say(PROGRAM, f"ready for receivers of user {self._user} on {self._config.launcher_socket}")
        while not stopping:
            ready = dict(poll.poll())
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 512)
            self._reap()
            if listener.fileno() in ready:
                self._accept(listener)
        with contextlib.suppress(OSError):
            store.remove(noted)

    def _say_status(self, _number: int, _frame: object) -> None:
        arriving, others = self._slots.count(Use.SESSION), self._slots.count(Use.BEGUN) + self._slots.count(Use.CHECK)
        say(PROGRAM, f"{arriving} migrations arrive here, {others} more receivers are connected")

    def _listen(self) -> socket.socket:
        given = inherited_sockets()
        if given:
            return given[0]
        path = self._config.launcher_socket
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
                _require_dead(str(path))
                path.unlink()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # Who may connect is decided by the kernel's word on each connection; the mode keeps others from filling the backlog.
            mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            if os.geteuid() == 0:
                os.chown(path, self._user, -1)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise SystemFailure(f"{path}: cannot listen: {error.strerror}") from None
        return listener

    def _accept(self, listener: socket.socket) -> None:
        sock = self._accepting.next(listener)
        if sock is None:
            return
        with contextlib.closing(sock):
            uid, gid, pid = peer_user(sock)
            if uid != self._user and gid != self._group:
                if uid == 0:
                    say(PROGRAM, f"process {pid} of root connected, and is no receiver; was a second xensecure-launcher started?")
                    return
                say(PROGRAM, f"SECURITY: process {pid} of user {uid} wanted to be a receiver; only user {self._user} and group {self._group} may")
                self._events.emit(Event.RECEIVER_MISBEHAVED, why=f"process {pid} of user {uid} wanted to be a receiver")
                return
            if list(self._served.values()).count(pid) >= _PER_RECEIVER:
                say(PROGRAM, f"SECURITY: process {pid} of user {uid} wanted more sessions; a receiver has one")
                self._events.emit(Event.RECEIVER_MISBEHAVED, why=f"process {pid} of user {uid} wanted more sessions")
                return
            slot = self._slots.take()
            if slot is None:
                say(PROGRAM, "too many receivers at once; one was turned away")
                self._events.emit(Event.TURNED_AWAY, why="too many receivers at once")
                return
            try:
                keeper = os.fork()
            except OSError as error:
                slot.free()
                say(PROGRAM, f"a receiver was turned away: no process for it: {error.strerror}")
                return
            if keeper == 0:
                listener.close()
                self._keep(sock, slot)
            self._keepers[keeper] = slot
            self._served[keeper] = pid

    def _keep(self, sock: socket.socket, slot: Slot) -> None:
        """The child's whole life."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, lambda _number, _frame: None)  # not SIG_IGN: xl would inherit that
            Keeper(Packets(sock), config=self._config, own_pin=self._own_pin, slot=slot).run()
            status = 0
        except XensecureError as error:
            say(PROGRAM, str(error))
        except Exception as error:  # noqa: BLE001 - the last resort of a process of its own: one line, no traceback
            say(PROGRAM, f"internal error, please report: {type(error).__name__}: {error}")
        finally:
            os._exit(status)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._keepers.pop(pid).free()
                self._served.pop(pid)


def _require_dead(path: str) -> None:
    """A socket that a launcher which has gone left behind may be removed; one that is served may not."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as probe:
        try:
            probe.connect(path)
        except OSError:
            return
    raise ConfigurationError(f"{path}: another xensecure-launcher is running; stop it first, or set another [paths] run")


# ---- what it goes by


def _noted(config: Config) -> Path:
    return config.run / "launcher.configuration"


def _note_of(config: Config) -> bytes:
    return f"{config.launcher_digest} ".encode() + os.fsencode(Path(config.path).absolute()) + b"\n"


def goes_by_older(config: Config) -> bool:
    """Whether the launcher here goes by another configuration than that file has now, or is of another release; False where nobody knows."""
    try:
        noted, now = store.read_secret(_noted(config)), _note_of(config)
    except (FileNotFoundError, StateError):
        return False
    return noted != now and noted.partition(b" ")[2] == now.partition(b" ")[2]


def serve(config: Config) -> None:
    """Run the launcher."""
    hardening.hide_memory()
    store.make_directory(config.state)
    sweep(config.run)
    Peers(config).require_private()
    if not os.access(config.xl, os.X_OK):
        say(PROGRAM, f"{config.xl} cannot be run: no domain can arrive; see [receive] xl")
    Launcher(config).run()
