"""Taking connections from a listening socket, also where descriptors or memory have run out."""

from __future__ import annotations

import errno
import socket
import time

from ..link.say import say

# What accept(2) fails with while the connection stays where it is: asked again at once, it would fail again at once.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.5  # seconds; somebody may have ended by then


class Accepting:
    """Says once what is missing, and then again when it has been there meanwhile."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._said = False

    def next(self, listener: socket.socket) -> socket.socket | None:
        """The next connection; None if there is none for now."""
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                if not self._said:
                    say(self._program, f"no descriptor for the next connection: {error.strerror}; it waits")
                self._said = True
                time.sleep(_PAUSE)
            return None  # or it went away between poll and accept
        self._said = False
        return sock
