"""Whether this host has the memory for a domain: what ``xl migrate-receive`` will want, asked before the guest has stopped at the source.

Where xl takes memory from dom0 for a domain
("autoballoon"), what dom0 can spare counts as free; xl decides on it as xl.c does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..link.config import Config
from ..link.say import say
from ..link.xl import XenInfo, run_xl, xl_info
from ..proto.domain import needed_memory
from ..proto.errors import SystemFailure
from ..proto.policy import PolicyRefusedError, shown_value

PROGRAM = "xensecure-launcher"
_XL_CONF = Path("/etc/xen/xl.conf")
_MIB = 1 << 20
_DOM0_LEAST = 128  # MiB: LIBXL_MIN_DOM0_MEM of libxl_internal.h, below which libxl makes dom0 no smaller
# xl.c, auto_autoballoon(): dom0 has been given its size by hand.
_DOM0_MEM = re.compile(r"(^| )dom0_mem=((|min:|max:)[0-9]+[bBkKmMgG]?,?)+($| )")
_AUTOBALLOON = re.compile(r"^[ \t]*autoballoon[ \t]*=[ \t]*[\"']?(\w+)", re.MULTILINE)
_DOM0 = re.compile(r"^Domain-0 +0 +([0-9]{1,9}) ", re.MULTILINE)


def available_memory(config: Config, xen: XenInfo, xl_conf: Path = _XL_CONF) -> int:
    """MiB that a domain could get here; SystemFailure if xl does not say."""
    free = xen.memory_free // _MIB
    if not _balloons(xl_conf, xen.commandline):
        return free
    found = _DOM0.search(run_xl(config, "list", "0"))
    return free + max(0, int(found[1]) - _DOM0_LEAST) if found else free


def _balloons(xl_conf: Path, commandline: str) -> bool:
    """Whether xl here takes memory from dom0 for a domain."""
    try:
        said = _AUTOBALLOON.findall(xl_conf.read_text("utf-8", "replace"))
    except OSError:
        said = []
    word = said[-1] if said else "auto"
    return word in ("on", "1") or (word not in ("off", "0") and not _DOM0_MEM.search(commandline))


def require_memory(config: Config, configuration: Mapping[str, Any], key: str, xen: XenInfo | None = None) -> None:
    """PolicyRefusedError if the domain has no room here; where xl cannot say, it does when the domain is built.

    ``key``: of the policy, for people. ``xen``: what xl has just said, if it has been asked; without memory if it did not.
    """
    if xen is not None and not xen.memory_total:
        return
    try:
        available = available_memory(config, xen or xl_info(config))
    except SystemFailure as error:
        say(PROGRAM, f"free memory is not looked at: {error}")
        return
    need = needed_memory(configuration)
    if need > available:
        built = configuration.get("b_info")
        value = shown_value(built.get("target_memkb") if isinstance(built, dict) else None)
        raise PolicyRefusedError("b_info.target_memkb", value, f"it needs {need} MiB there, and {available} MiB could be had ({key})")
