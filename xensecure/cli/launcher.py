"""``xensecure-launcher``: the destination's keeper of link keys."""

from __future__ import annotations

from ..destination.launcher import serve
from ..link.config import load_config
from .common import parser, run

PROGRAM = "xensecure-launcher"


def main() -> int:
    """The command."""
    options = parser(PROGRAM, "Keep the link keys, start 'xl migrate-receive' for peers that have proved themselves, keep the journal.")

    def body() -> int:
        serve(load_config(options.parse_args().config))
        return 0

    return run(PROGRAM, body)
