"""Sockets that systemd (or anything that follows sd_listen_fds(3)) has opened for us."""

from __future__ import annotations

import os
import socket

_FIRST = 3  # SD_LISTEN_FDS_START


def inherited_sockets() -> list[socket.socket]:
    """The sockets passed on, close-on-exec; the environment's word of them is removed, so that no child believes it."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = [socket.socket(fileno=descriptor) for descriptor in range(_FIRST, _FIRST + int(count))]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets
