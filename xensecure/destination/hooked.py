"""One session as the destination's hooks see it: pre-receive, fence, and what runs when all is over."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..link.config import Config
from ..link.hooks import Facts, Outcome, Point, ask, find_hooks, tell
from ..proto.errors import HookError, Reason, RefusedError
from ..proto.launcher import Wish


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

    def learn(self, domain: str, configuration: Mapping[str, Any]) -> None:
        """Keep the domain's name and configuration for them."""
        self._facts = replace(self._facts, domain=domain, configuration=configuration)

    def ask(self) -> None:
        """Run those of pre-receive; RefusedError if one says no to the domain."""
        try:
            ask(self._config, Point.PRE_RECEIVE, self._timed(), self._program)
        except HookError as error:
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
