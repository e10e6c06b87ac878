"""What xensecure reads of a domain's configuration as xl sends it: its name, for people and journals."""

from __future__ import annotations

import json

from . import limits
from .messages import printable


def domain_name(head: bytes) -> str:
    """The name in a domain's configuration (JSON, libxl's ``c_info.name``); "?" if it cannot be found there."""
    try:
        name = json.loads(head)["c_info"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "?"
    return printable(name.encode("utf-8", "replace")[: limits.DOMAIN_NAME_MAX].decode("utf-8", "ignore")) if isinstance(name, str) else "?"
