"""``xensecured``: the destination's receiver."""

from __future__ import annotations

from ..destination.listen import Listener, serve_inherited
from ..link.config import load_config
from .common import parser, run

PROGRAM = "xensecured"


def main() -> int:
    """The command."""
    options = parser(PROGRAM, "Receive migrations: one connection passed on by systemd, or, with --listen, each that comes.")
    options.add_argument("--listen", action="store_true", help="listen on the addresses of [listen] and fork a process for each connection")

    def body() -> int:
        chosen = options.parse_args()
        config = load_config(chosen.config)
        if not chosen.listen:
            return serve_inherited(config)
        Listener(config).run()
        return 0

    return run(PROGRAM, body)
