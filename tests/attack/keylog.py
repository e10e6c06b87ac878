"""For the lab alone: ``python -m tests.attack.keylog FILE ARGUMENTS…`` is xensecure, its TLS secrets written to FILE, as SSLKEYLOGFILE has them."""

from __future__ import annotations

import sys
from pathlib import Path

from OpenSSL import SSL

from xensecure.cli import xensecure


def log_to(path: Path) -> None:
    """Have every TLS context that is made from now on write its secrets."""
    make = SSL.Context.__init__

    def note(_connection: SSL.Connection, line: bytes) -> None:
        with path.open("ab") as file:
            file.write(line + b"\n")

    def made(self: SSL.Context, *arguments: object) -> None:
        make(self, *arguments)  # type: ignore[arg-type]
        self.set_keylog_callback(note)

    SSL.Context.__init__ = made  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    log_to(Path(sys.argv.pop(1)))
    sys.exit(xensecure.main())
