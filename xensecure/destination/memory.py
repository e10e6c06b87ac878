"""Whether this host has the memory for a domain: what ``xl migrate-receive`` will want, asked before the guest has stopped at the source.

Where xl takes memory from dom0 for a domain ("autoballoon"), what dom0 can spare counts as free; xl decides on it as xl.c does. What has been
promised to a domain is its own from then on, though Xen gives it that page by page, as they come.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..link import store
from ..link.config import Config
from ..link.live import Live, live_sessions
from ..link.roles import Role
from ..link.say import say
from ..link.xl import XenInfo, domains_memory, run_xl, xl_info
from ..proto import limits
from ..proto.domain import needed_memory
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


def available_memory(config: Config, xen: XenInfo, xl_conf: Path = _XL_CONF) -> int:
    """MiB that a domain could get here; SystemFailure if xl does not say."""
    free = xen.memory_free // _MIB
    if not _balloons(xl_conf, xen.commandline):
        return free
    dom0 = domains_memory(run_xl(config, "list", "0")).get("Domain-0", 0)
    return free + max(0, dom0 - _DOM0_LEAST)


def _balloons(xl_conf: Path, commandline: str) -> bool:
    """Whether xl here takes memory from dom0 for a domain."""
    try:
        said = _AUTOBALLOON.findall(xl_conf.read_text("utf-8", "replace"))
    except OSError:
        said = []
    word = said[-1] if said else "auto"
    return word in ("on", "1") or (word not in ("off", "0") and not _DOM0_MEM.search(commandline))


def promised_memory(config: Config) -> int:
    """MiB of what could be had that are for domains on their way here; SystemFailure if xl does not say what they have got already."""
    waiting = [shown for shown in live_sessions(config.run) if shown.role is Role.DESTINATION and shown.promised and shown.phase in _GETS_MEMORY]
    got = domains_memory(run_xl(config, "list")) if waiting else {}
    return sum(max(0, shown.promised // _MIB - got.get(f"{shown.domain}--incoming", 0)) for shown in waiting)


@contextlib.contextmanager
def promising(config: Config, live: Live, domain: str, memory: int) -> Iterator[None]:
    """Around what decides whether a domain may come: one domain after the other, and if it may, its memory (in bytes) is promised to it."""
    lock = None
    try:
        lock = store.lock_within(config.run / "status" / ".promising", limits.XL_SECONDS)
    except StateError as error:
        say(PROGRAM, f"domains that come at the same moment are not told apart: {error}")
    try:
        yield
        live.update(domain=domain, promised=memory)
    finally:
        if lock is not None:
            os.close(lock)


def require_memory(config: Config, configuration: Mapping[str, Any], key: str, xen: XenInfo | None = None) -> None:
    """PolicyRefusedError if the domain has no room here; where xl cannot say, it does when the domain is built.

    ``key``: of the policy, for people. ``xen``: what xl has just said, if it has been asked; without memory if it did not.
    """
    if xen is not None and not xen.memory_total:
        return
    try:
        promised = promised_memory(config)
        available = available_memory(config, xen or xl_info(config)) - promised
    except (SystemFailure, StateError) as error:
        say(PROGRAM, f"free memory is not looked at: {error}")
        return
    need = needed_memory(configuration)
    if need > available:
        built = configuration.get("b_info")
        value = shown_value(built.get("target_memkb") if isinstance(built, dict) else None)
        others = f" besides {promised} MiB for domains that are arriving" if promised else ""
        raise PolicyRefusedError("b_info.target_memkb", value, f"it needs {need} MiB there, and {max(0, available)} MiB could be had{others} ({key})")
