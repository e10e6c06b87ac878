"""One SOCK_SEQPACKET connection between receiver and launcher, from either end: whole packets, with a deadline, and descriptors with them."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Sequence

from ..proto import limits
from ..proto.errors import SystemFailure

_NO_END = -1.0


class Packets:
    """Sends and receives packets; ``socket`` becomes the object's own."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """The socket's descriptor, for polling."""
        return self._sock.fileno()

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one packet; SystemFailure if the other end has gone."""
        try:
            socket.send_fds(self._sock, [packet], list(descriptors), flags=socket.MSG_NOSIGNAL)
        except OSError as error:
            raise SystemFailure(f"the other end of the launcher's socket has gone: {error.strerror}") from None

    def receive(self, seconds: float = _NO_END, *, descriptors: int = 0) -> tuple[bytes, list[int]]:
        """One packet (b"" at the end) and at most ``descriptors`` descriptors (close-on-exec); waits ``seconds`` at most (less than 0: no bound)."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(seconds * 1000 if seconds >= 0 else None):
            raise SystemFailure(f"no answer on the launcher's socket within {seconds:.0f} s; is xensecure-launcher stuck?")
        try:
            packet, received, flags, _ = socket.recv_fds(
                self._sock, limits.LAUNCHER_MESSAGE_MAX, descriptors, flags=socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return b"", []
        except OSError as error:
            raise SystemFailure(f"the launcher's socket: {error.strerror}") from None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(received) > descriptors:
            for descriptor in received:
                os.close(descriptor)
            raise SystemFailure("a packet on the launcher's socket that is longer than any of ours")
        return packet, list(received)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def peer_user(sock: socket.socket) -> tuple[int, int, int]:
    """User, group and process id at the other end, by the kernel's word (SO_PEERCRED, unix(7))."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid, gid, pid
