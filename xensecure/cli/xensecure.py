"""``xensecure HOST xl … migrate-receive …``: what xl runs in ssh's place. Options end at HOST, as ssh's do."""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from .. import __version__
from ..link import hardening
from ..link.config import Config, HostOptions, load_config, with_option
from ..proto.errors import TRANSPORT_FAILURE, UsageError
from ..proto.request import ReceiveRequest
from ..source.job import Job
from ..source.migrate import migrate
from .common import run

PROGRAM = "xensecure"
_VALUED = {"-p": "port", "-b": "bind"}
USAGE = """\
usage: xl migrate -s xensecure DOMAIN HOST
       xensecure [-4|-6] [-p PORT] [-b ADDRESS] [-F CONFIG] [-o KEY=VALUE]... [-q] [-v]... [USER@]HOST xl ... migrate-receive ...

  -4, -6         use IPv4 or IPv6 only
  -p PORT        the destination's port (default: as paired, usually 8003)
  -b ADDRESS     connect from this address of this host
  -F CONFIG      the configuration file (also --config CONFIG)
  -o KEY=VALUE   any key of a [host.NAME] section of the configuration
  -q             no progress and no summary
  -v             say more; again for still more
  -V, --version  the version
  -h, --help     this text

Hosts are made known to each other with xensecurectl(8). See xensecure(1)."""


def parse(arguments: Sequence[str]) -> tuple[Config, Job] | None:
    """What the command line asks for; None if help or version was printed. UsageError for anything that is not a receive."""
    try:
        options, words = getopt.getopt(list(arguments), "46p:b:F:o:qvhV", ["config=", "help", "version"])
    except getopt.GetoptError as error:
        raise UsageError(f"{error}; see xensecure --help") from None
    names = [name for name, _ in options]
    if "--help" in names or "-h" in names:
        os.write(1, f"{USAGE}\n".encode())
        return None
    if "--version" in names or "-V" in names:
        os.write(1, f"xensecure {__version__}\n".encode())
        return None
    if not words:
        raise UsageError("no HOST; xl calls this command, see xensecure --help")
    # ssh's form: the user plays no part, for it is the launcher that starts xl.
    host = words[0].rpartition("@")[2]
    if not host or host.startswith("-"):
        raise UsageError(f"{words[0]!r} is no host")
    request = ReceiveRequest.from_command(words[1:])
    path = next((value for name, value in reversed(options) if name in ("-F", "--config")), None)

    def reread() -> HostOptions:
        return _host_options(load_config(path).options_for(host), options)

    config = load_config(path)
    return config, Job(host=host, request=request, options=_host_options(config.options_for(host), options), reread=reread)


def _host_options(base: HostOptions, options: list[tuple[str, str]]) -> HostOptions:
    verbose = 0
    for name, value in options:
        if name == "-4":
            base = replace(base, family="inet")
        elif name == "-6":
            base = replace(base, family="inet6")
        elif name in _VALUED:
            base = with_option(base, f"{_VALUED[name]}={value}")
        elif name == "-o":
            base = with_option(base, value)
        elif name == "-q":
            base = replace(base, quiet=True)
        elif name == "-v":
            verbose += 1
    return replace(base, verbose=max(base.verbose, verbose))


def main() -> int:
    """The command."""

    def body() -> int:
        parsed = parse(sys.argv[1:])
        if parsed is None:
            return 0
        hardening.no_core_dumps()
        hardening.hide_memory()
        return migrate(*parsed)

    return run(PROGRAM, body, failure_status=TRANSPORT_FAILURE)
