"""The answer to CHECK: how this host is, and whether it would take a domain (docs/protocol.md, section 8). By root's keeper; nothing is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import __version__
from ..link.config import Config
from ..link.engine import compiled_backends, compiled_features, find_backend
from ..link.hooks import Point, Role, find_hooks
from ..link.journal import Journal
from ..link.xl import XenInfo, cpu_names, xl_info
from ..proto.errors import RefusedError, XensecureError
from ..proto.hostreport import HostReport
from ..proto.messages import Feature
from .admission import judge_domain, require_sender
from .memory import Room, find_room

_CPUINFO = Path("/proc/cpuinfo")


def report_on(config: Config, peer: str, sessions: int, head: bytes) -> HostReport:
    """This host's report for a peer that has proved itself.

    ``peer``: its name; ``sessions``: migrations that arrive now; ``head``: the configuration of the domain that it asks about, empty or white space
    for none. Hooks are not run: they may do things.
    """
    faults: list[str] = []
    xen = XenInfo(version="", memory_total=0, memory_free=0, cpus=0, hw_caps="", virt_caps="")
    room: Room | None = None
    try:
        xen = xl_info(config)
        room = find_room(config, xen)
    except XensecureError as error:
        faults.append(str(error))
    faults += _faults(config, peer)
    vendor, model = cpu_names(_CPUINFO)
    return HostReport(
        xensecure=__version__,
        clock=int(time.time()),
        xen=xen.version,
        memory_total=xen.memory_total,
        memory_free=room.free << 20 if room else 0,
        cpus=xen.cpus,
        cpu_vendor=vendor,
        cpu_model=model,
        cpu_features=xen.hw_caps,
        virtualization=xen.virt_caps,
        sessions=sessions,
        sessions_max=config.sessions,
        lanes=config.lanes,
        window=config.window,
        zstd=Feature.ZSTD in compiled_features(),
        cipher=find_backend(config.cipher),
        ciphers=tuple(compiled_backends()),
        faults=tuple(faults),
        refusal=_refusal(partial(judge_domain, config, peer, head, room)) if head.strip() else "",
    )


def _refusal(judge: Callable[[], object]) -> str:
    """Why something would be refused here, in one line; "" if it would not."""
    try:
        judge()
    except RefusedError as error:
        return str(error)
    return ""


def _faults(config: Config, peer: str) -> list[str]:
    """What would keep any domain of that peer's from arriving here."""
    refusal = _refusal(partial(require_sender, config, peer))
    found = [refusal] if refusal else []
    try:
        find_hooks(config.hooks, Point.PRE_RECEIVE)
    except XensecureError as error:
        found.append(f"the hooks there cannot be trusted: {error}")
    try:
        Journal(config.state, Role.DESTINATION).reserve()
    except XensecureError as error:
        found.append(f"the journal there cannot be written ({error})")
    return found
