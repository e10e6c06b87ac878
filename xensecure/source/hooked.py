"""One migration as the source's hooks see it: what they are told, and when they run."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import replace
from pathlib import Path

from ..link.config import Config
from ..link.engine import Phase, Stats
from ..link.hooks import Facts, Outcome, Point, Role, ask, find_hooks, tell
from ..link.say import say
from ..proto.domain import configuration, domain_name
from ..proto.errors import HookError, ProtocolError
from ..proto.messages import printable
from ..proto.request import ReceiveRequest

_STDIN, _STDOUT = 0, 1  # xl's pipes


class MigrationHooks:
    """Collects what is known of a migration, and runs the hooks of this host. ``host``: what xl calls the destination."""

    def __init__(self, config: Config, *, host: str, request: ReceiveRequest, program: str) -> None:
        self._config = config
        self._program = program
        self._start = time.monotonic()
        self.facts = Facts(role=Role.SOURCE, host=config.name, peer=host, request=tuple(request.arguments()), domain=_named_to_xl())
        self._checkpointed = request.checkpointed
        self._phase = Phase.START
        self._status = -1

    def knows(self, *, peer: str = "", address: str = "", session: str = "") -> None:
        """Keep what has become known; "" changes nothing."""
        facts = self.facts
        self.facts = replace(facts, peer=peer or facts.peer, address=address or facts.address, session=session or facts.session)

    def has_seen(self, stats: Stats, head: bytes, status: int) -> None:
        """Keep how far it has come: the last word before the pump is closed.

        ``head``: the domain's configuration, b"" if it has not passed; ``status``: what xl there has reported, -1 if nothing.
        """
        self._phase, self._status = stats.phase, status
        self.facts = replace(self.facts, stream_bytes=stats.channel_bytes[0])
        if head:
            self.facts = replace(self.facts, domain=domain_name(head), configuration=_readable(head))

    def before(self, wake: int) -> None:
        """Run pre-send; HookError if a hook says no, or xl goes away or ``wake`` becomes readable meanwhile."""
        # xl's end of our standard input: no events but the hang-up, for xl says nothing before the destination's banner.
        abandon = {_STDIN: 0, wake: select.POLLIN}
        ask(self._config, Point.PRE_SEND, self.facts, self._program, abandon=abandon)

    def after(self, reason: str) -> None:
        """Run post-send or failed, in a process of their own: xl may wait for the end of ours. ``reason``: what went wrong, in words."""
        outcome = self.outcome
        point = Point.POST_SEND if outcome is Outcome.SUCCESS else Point.FAILED
        seconds = time.monotonic() - self._start
        self.facts = replace(self.facts, outcome=outcome, reason="" if point is Point.POST_SEND else reason, seconds=seconds)
        try:
            if not find_hooks(self._config.hooks, point) or os.fork() != 0:
                return
        except (HookError, OSError) as error:
            say(self._program, f"no {point} hook is run: {error}")
            return
        try:
            _let_go_of_xl()
            tell(self._config, point, self.facts, self._program)
        finally:
            os._exit(0)

    @property
    def outcome(self) -> Outcome:
        """How it has ended, as far as has been seen."""
        if self._status == 0:
            return Outcome.SUCCESS
        # With Remus the end of the stream is the source's death to the destination, which then starts its copy and reports nothing.
        taken_over = self._checkpointed and self._phase >= Phase.HEAD
        unknown = self._phase is Phase.GO and self._status < 0
        return Outcome.UNKNOWN if taken_over or unknown else Outcome.FAILED


def _readable(head: bytes) -> dict[str, object] | None:
    try:
        return configuration(head)
    except ProtocolError:
        return None  # of this host's own xl: for the hooks to do without


def _named_to_xl() -> str:
    """The domain as xl's command line has it, a name or a number; "" if we are not xl's child. xl tells its transport nothing of it."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return ""
    called = len(words) > 3 and words[0].rpartition("/")[2] == "xl" and {"migrate", "remus"} & set(words)
    return printable(words[-2]) if called else ""  # xl(1): … DOMAIN HOST


def _let_go_of_xl() -> None:
    """In the child: no pipe, socket, process group or terminal of xl's and ours but standard error."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (_STDIN, _STDOUT):
        os.dup2(nothing, descriptor)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
