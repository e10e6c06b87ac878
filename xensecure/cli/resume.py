"""``xensecurectl resume``: bring a suspended ``NAME--migratedaway`` back, if it runs nowhere else."""

from __future__ import annotations

import argparse
import contextlib

from ..link.config import Config
from ..link.domains import AWAY, Seen, Sightings, own_name, sight
from ..link.journal import Journal
from ..link.say import say
from ..link.xl import run_xl
from ..proto.errors import StateError, SystemFailure, UsageError
from ..proto.messages import printable
from . import libxl
from .common import out
from .status import Inquiry
from .verdict import Verdict, is_safe_name

PROGRAM = "xensecurectl"
_RENAME_SECONDS = 60.0


def resume(config: Config, chosen: argparse.Namespace) -> int:
    """The command."""
    name = own_name(chosen.domain)
    if not is_safe_name(name):
        raise UsageError(f"{printable(name)!r} is no domain's name")
    inquiry = Inquiry(config)
    running = [session for session in inquiry.live if session.domain == name]
    if running:
        raise StateError(f"a migration of {name} runs here (process {running[0].pid}); xl decides what becomes of it: wait for its end, or end it")
    if isinstance(inquiry.domains, str):
        raise SystemFailure(f"what is here is not known: {inquiry.domains}")
    seen = sight(inquiry.domains, name)
    _require_suspended(name, seen)
    verdict = inquiry.verdict(name)
    if not verdict.may_resume:
        _require_reason(verdict, chosen.force)
    if seen.away is Seen.SUSPENDED:
        run_xl(config, "rename", f"{name}{AWAY}", name, seconds=_RENAME_SECONDS)
    libxl.resume_domain(name)
    _note(config, inquiry, name, chosen.force)
    out(f"{name} runs on {config.name} again")
    return 0


def _require_suspended(name: str, seen: Sightings) -> None:
    here = (seen.own, seen.away)
    if here not in ((Seen.ABSENT, Seen.SUSPENDED), (Seen.SUSPENDED, Seen.ABSENT)):
        shown = f"{name}: {seen.own}, {name}{AWAY}: {seen.away}"
        raise StateError(f"there is nothing to resume ({shown}): one of the two has to be there, suspended, and the other not")


def _require_reason(verdict: Verdict, reason: str | None) -> None:
    """Somebody who has looked at the other host knows more than we do."""
    if not (reason or "").strip():
        raise StateError(
            f"{verdict.words}; two running copies of one domain destroy its disk. Look at the other host ('xensecurectl status {verdict.domain}'); "
            "if you know that it runs nowhere, say how: --force REASON"
        )
    say(PROGRAM, f"resuming {verdict.domain} by your word: {reason}")


def _note(config: Config, inquiry: Inquiry, name: str, reason: str | None) -> None:
    """The journal is to have it."""
    record = next((record for record in reversed(inquiry.records) if record.domain == name), None)
    if record is not None:
        with contextlib.suppress(StateError):
            Journal(config.state, record.role).append(bytes.fromhex(record.session), "recovered", why=reason or "it has run nowhere else")
