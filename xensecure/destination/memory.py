"""Whether this host has the memory for a domain: what ``xl migrate-receive`` will want, asked before the guest has stopped at the source.

Where xl takes memory from dom0 for a domain ("autoballoon"), what dom0 can spare counts as free; xl decides on it as xl.c does. What has been
promised to a domain is its own from then on, though Xen gives it that page by page, as they come.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..link import store
from ..link.config import Config
from ..link.domains import INCOMING, Listed, list_table
from ..link.live import Live, LiveSession, live_sessions
from ..link.roles import Role
from ..link.say import say
from ..link.xl import XenInfo, xl_info
from ..proto import limits
from ..proto.domain import needed_memory, target_memory
from ..proto.errors import StateError, SystemFailure
from ..proto.launcher import Milestone
from ..proto.policy import PolicyRefusedError, shown_value

PROGRAM = "xensecure-launcher"
_XL_CONF = Path("/etc/xen/xl.conf")
_MIB = 1 << 20
_DOM0_LEAST = 128  # MiB: LIBXL_MIN_DOM0_MEM of libxl_internal.h, below which libxl makes dom0 no smaller
# xl.c, auto_autoballoon(): dom0 has been given its size by hand.
_DOM0_MEM = re.compile(r"(^| )dom0_mem=((|min:|max:)[0-9]+[bBkKmMgG]?,?)+($| )")
_AUTOBALLOON = re.compile(r"^[ \t]*autoballoon[ \t]*=[ \t]*[\"']?(\w+)", re.MULTILINE)
_GETS_MEMORY = ("", Milestone.DOMAIN.name.lower())  # phases of a session in which its domain is still being built


@dataclass(frozen=True)
class Room:
    """MiB that a new domain could get here, beside those that are ``promised`` to domains on their way."""

    free: int
    promised: int = 0


def find_room(config: Config, xen: XenInfo | None = None, xl_conf: Path = _XL_CONF) -> Room:
    """What room there is; SystemFailure if xl does not say. ``xen``: what it has just said, if it has been asked."""
    waiting = _waiting(config)
    listed: list[Listed] = []
    failure: SystemFailure | None = None
    if waiting:  # before what is free is asked: of what comes between the two both figures are the worse ones
        try:
            listed = list_table(config)
        except SystemFailure as error:
            failure = error
            say(PROGRAM, f"what domains on their way have been promised is not looked at: {error}")
    promised = 0 if failure else sum(_outstanding(session, listed) for session in waiting)
    xen = xen or xl_info(config)
    free = xen.memory_free // _MIB
    if _balloons(xl_conf, xen.commandline):
        if failure:
            raise failure
        free += max(0, _dom0_memory(listed or list_table(config)) - _DOM0_LEAST)
    return Room(max(0, free - promised), promised)


def _dom0_memory(listed: list[Listed]) -> int:
    """MiB that dom0 has."""
    return next((each.memory // _MIB for each in listed if each.id == 0), 0)


def known_room(config: Config) -> Room | None:
    """The same; None, and a line, if xl does not say."""
    try:
        return find_room(config)
    except SystemFailure as error:
        say(PROGRAM, f"free memory is not looked at: {error}")
        return None


def _balloons(xl_conf: Path, commandline: str) -> bool:
    """Whether xl here takes memory from dom0 for a domain."""
    try:
        said = _AUTOBALLOON.findall(xl_conf.read_text("utf-8", "replace"))
    except OSError:
        said = []
    word = said[-1] if said else "auto"
    return word in ("on", "1") or (word not in ("off", "0") and not _DOM0_MEM.search(commandline))


def _waiting(config: Config) -> list[LiveSession]:
    """The sessions whose domain has been promised memory and does not have all of it yet."""
    try:
        found = live_sessions(config.run)
    except StateError as error:
        say(PROGRAM, f"what domains on their way have been promised is not looked at: {error}")
        return []
    return [session for session in found if session.role is Role.DESTINATION and session.promised and session.phase in _GETS_MEMORY]


def _outstanding(session: LiveSession, listed: list[Listed]) -> int:
    """MiB that its domain has still to get: all that it needs, until Xen has made it; then those of its pages that have not come."""
    got = next((each.memory for each in listed if each.name == f"{session.domain}{INCOMING}"), None)
    return (session.promised if got is None else max(0, session.promised_pages - got)) // _MIB


def promise_memory(config: Config, found: Mapping[str, Any], key: str, live: Live, domain: str) -> None:
    """PolicyRefusedError if the domain has no room here; else that room is its own from now on.

    Where xl does not say what there is, it does when the domain is built: nobody is refused, and nothing is promised. One domain after the other,
    for two may come at the same moment. ``found``: its configuration; ``key``: of the policy, for people; ``live``: its session as others see it.
    """
    with _one_at_a_time(config):
        room = known_room(config)
        if room is not None:
            require_room(room, found, key)
            live.update(domain=domain, promised=needed_memory(found) * _MIB, promised_pages=target_memory(found))


@contextlib.contextmanager
def _one_at_a_time(config: Config) -> Iterator[None]:
    """Hold a lock of this host's, as far as it is to be had."""
    lock, why = None, "others take too long"
    try:
        lock = store.lock_within(config.run / "status" / ".promising", limits.PROMISE_SECONDS)
    except StateError as error:
        why = str(error)
    if lock is None:
        say(PROGRAM, f"domains that come at the same moment are not told apart: {why}")
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def require_room(room: Room, found: Mapping[str, Any], key: str) -> None:
    """PolicyRefusedError if a domain of that configuration needs more; ``key``: of the policy, for people."""
    need = needed_memory(found)
    if need > room.free:
        built = found.get("b_info")
        value = shown_value(built.get("target_memkb") if isinstance(built, dict) else None)
        others = f" besides {room.promised} MiB for domains that are arriving" if room.promised else ""
        raise PolicyRefusedError("b_info.target_memkb", value, f"it needs {need} MiB there, and {room.free} MiB could be had{others} ({key})")
