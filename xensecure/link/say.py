"""One line to the operator: on stderr, never on stdout, and never a failure of its own."""

from __future__ import annotations

import contextlib
import os

from ..proto.messages import printable


def say(program: str, text: str) -> None:
    """Write ``program: text`` as one line with one write, so that lines of several processes do not mix."""
    with contextlib.suppress(OSError):
        os.write(2, f"{program}: {printable(text)}\n".encode("utf-8", "replace"))
