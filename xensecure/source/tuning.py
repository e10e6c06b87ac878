"""How a migration uses the line: what of ``compress`` the two hosts can do, and ``bwlimit``, which may change meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from ..link.config import HostOptions
from ..link.engine import Compression, Pump, compiled_features
from ..link.say import say
from ..proto.errors import XensecureError
from ..proto.memory import size
from ..proto.messages import Feature

PROGRAM = "xensecure"
_COMPRESSIONS = {"off": Compression.OFF, "auto": Compression.AUTO, "zstd": Compression.ZSTD}


def agreed_compression(options: HostOptions, features: Feature, peer: str) -> Compression:
    """What ``compress`` comes to; where it cannot be done, a line says so, and the migration goes on without."""
    wanted = _COMPRESSIONS[options.compress]
    if wanted is Compression.OFF or Feature.ZSTD in features:
        return wanted
    if not options.quiet:
        who = f"{peer} cannot take compressed data: its xensecure" if Feature.ZSTD in compiled_features() else "this xensecure"
        say(PROGRAM, f"compress = {options.compress!r} has no effect: {who} was built without libzstd")
    return Compression.OFF


def change_limit(pump: Pump, reread: Callable[[], HostOptions], old: HostOptions) -> HostOptions:
    """Take ``bwlimit`` from the configuration as it is now; returns the options in force. A configuration with a mistake changes nothing."""
    try:
        new = reread()
    except XensecureError as error:
        say(PROGRAM, f"SIGHUP: {error}; bwlimit stays {limit_words(old.bwlimit)}")
        return old
    pump.limit(new.bwlimit)
    say(PROGRAM, f"SIGHUP: bwlimit was {limit_words(old.bwlimit)} and is {limit_words(new.bwlimit)}")
    return new


def limit_words(bwlimit: int) -> str:
    """A limit as people read it."""
    return f"{size(bwlimit)}/s" if bwlimit else "off"
