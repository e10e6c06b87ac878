"""One session as the destination's hooks see it: the launcher's half of pre-receive, and what runs when all is over.

What they are told of the domain is the receiver's word. It is looked at as a stranger's: bounded, sealed, once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

from ..link.config import Config
from ..link.hooks import Facts, Outcome, Point, ask, find_hooks, tell
from ..proto.domain import configuration, domain_name
from ..proto.errors import HookError, ProtocolError, Reason, RefusedError
from ..proto.launcher import Wish

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class SessionHooks:
    """Runs the hooks of one session. ``wish``: what they want of the domain's configuration; RefusedError if they cannot be trusted."""

    def __init__(self, config: Config, facts: Facts, program: str) -> None:
        self._config = config
        self._facts = facts
        self._program = program
        self._start = time.monotonic()
        self.wish = self._find_wish()

    def _find_wish(self) -> Wish:
        try:
            if find_hooks(self._config.hooks, Point.PRE_RECEIVE):
                return Wish.ASKED
        except HookError as error:
            raise RefusedError(f"the hooks there cannot be trusted: {error}", Reason.NOT_ALLOWED) from None
        with contextlib.suppress(HookError):  # said when they would be run
            if any(find_hooks(self._config.hooks, point) for point in (Point.POST_RECEIVE, Point.FAILED)):
                return Wish.TOLD
        return Wish.NOTHING

    def show(self, head: bytes) -> None:
        """Keep the domain's configuration; RefusedError if the hooks have to say yes to it and do not."""
        wish, self.wish = self.wish, Wish.NOTHING
        try:
            self._facts = replace(self._facts, domain=domain_name(head), configuration=configuration(head))
            if wish is Wish.ASKED:
                ask(self._config, Point.PRE_RECEIVE, self._timed(), self._program)
        except (ProtocolError, HookError) as error:
            if wish is Wish.ASKED:
                raise RefusedError(str(error), Reason.NOT_ALLOWED) from None

    def fence(self, reason: str, domain: str) -> None:
        """Have the source fenced off; HookError if a hook cannot. ``reason``: why it is taken for dead."""
        facts = replace(self._timed(), reason=reason, domain=self._facts.domain or domain)
        ask(self._config, Point.FENCE, facts, self._program)

    def _timed(self) -> Facts:
        return replace(self._facts, seconds=time.monotonic() - self._start)

    def over(self, outcome: Outcome, reason: str, *, domain: str = "", stream_bytes: int = 0) -> None:
        """Run post-receive or failed. ``reason``: what went wrong, in words; ``domain``: its name, where no configuration was shown."""
        point = Point.POST_RECEIVE if outcome in (Outcome.SUCCESS, Outcome.FAILED_OVER) else Point.FAILED
        facts = replace(self._timed(), outcome=outcome, reason=reason, stream_bytes=stream_bytes, domain=self._facts.domain or domain)
        tell(self._config, point, facts, self._program)


class Plug:
    """What stands in the place of xl's standard input until the hooks have said yes: a socket whose buffer is full.

    A pipe would not do: the receiver's pump makes those that it gets larger.
    """

    def __init__(self) -> None:
        self._kept, given = socket.socketpair()
        self._given = given
        os.set_blocking(given.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while given.send(bytes(1 << 16)):
                pass
        with contextlib.suppress(BlockingIOError):
            while given.send(b"\0"):
                pass

    def fileno(self) -> int:
        """The end that the receiver gets."""
        return self._given.fileno()

    def pull(self) -> None:
        """Close our ends: what the receiver still writes goes nowhere. It may be called again."""
        self._kept.close()
        self._given.close()


def read_sealed(descriptors: Sequence[int], length: int) -> bytes:
    """What a receiver has put into the memory file that came with its packet; ProtocolError unless nobody can change it any more."""
    if len(descriptors) != 1:
        raise ProtocolError(f"{len(descriptors)} descriptors where a domain's configuration belongs")
    try:
        sealed = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False  # no memory file at all: reading it could take for ever
    if not sealed or os.fstat(descriptors[0]).st_size != length:
        raise ProtocolError("a domain's configuration that is not sealed, or of another length")
    return os.pread(descriptors[0], length, 0)


def sealed_file(content: bytes) -> int:
    """The receiver's half: a memory file with that content that nobody can change any more. The descriptor is the caller's to close."""
    descriptor = os.memfd_create("xensecure-configuration", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
