"""What xl asks of its transport, and the signals with which others ask for something else."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..link.config import HostOptions
from ..link.say import say
from ..proto.errors import HookError, LinkLostError
from ..proto.request import ReceiveRequest

PROGRAM = "xensecure"
_STOPPED = "stopped by SIGTERM; the domain stays on this host"


@dataclass(frozen=True)
class Job:
    """What xl asks for: which host, which request, with which options; ``reread`` makes these anew from the configuration as it is now."""

    host: str
    request: ReceiveRequest
    options: HostOptions
    reread: Callable[[], HostOptions]


class StopSignal:
    """SIGTERM: ends the making of a connection at once; after ``defer`` something to be asked for, and a descriptor that wakes the pump.

    SIGINT is left to xl, which is in our process group: it ends, and so does our standard input. So does SIGHUP of a terminal that is closed; sent to
    us it asks for the configuration to be read again. SIGUSR1 asks for a line on how far it is.
    """

    def __init__(self) -> None:
        self.asked = False
        self.hung_up = False
        self.asks_status = False
        self._deferred = self._held = False
        self.wake, self._end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGHUP, self._hang_up)
        signal.signal(signal.SIGUSR1, self._ask_status)

    def _ask(self, _number: int, _frame: object) -> None:
        self.asked = True
        self.ring()  # a SIGHUP that came with it may have taken its byte
        if not self._deferred:
            raise LinkLostError(_STOPPED)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """For as long as hooks run: they watch ``wake``, and must be ended before we end."""
        self._deferred = self._held = True
        try:
            yield
        except HookError:
            if not self.asked:
                raise
        finally:
            self._deferred = self._held = False
        if self.hung_up:
            self.ring()
        if self.asked:
            raise LinkLostError(_STOPPED)

    def _hang_up(self, _number: int, _frame: object) -> None:
        self.hung_up = True
        if self._held:
            self.drain()  # it is for later, and must not end the hooks

    def _ask_status(self, _number: int, _frame: object) -> None:
        if self._deferred and not self._held:
            self.asks_status = True
            return
        say(PROGRAM, "no session yet: a hook runs, or the connection is being made")
        if self._held:
            self.drain()  # it must not end the hooks

    def ring(self) -> None:
        """Make ``wake`` readable; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._end, b"\0")

    def defer(self) -> None:
        """From now on somebody looks at ``asked`` and ``hung_up`` whenever ``wake`` is readable."""
        self._deferred = True

    def drain(self) -> None:
        """Forget what woke us."""
        try:
            os.read(self.wake, 512)
        except BlockingIOError:
            return
