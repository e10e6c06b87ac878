"""What holds a domain back until it may come: xl's standard input stays with the launcher, and its configuration goes there first.

What the launcher is told of the domain is the receiver's word. It is looked at as a stranger's: bounded, sealed, once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Sequence

from ..proto.errors import ProtocolError

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Plug:
    """What stands in the place of xl's standard input until the domain may come: a socket whose buffer is full.

    A pipe would not do: the receiver's pump makes those that it gets larger.
    """

    def __init__(self) -> None:
        self._kept, given = socket.socketpair()
        self._given = given
        os.set_blocking(given.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while given.send(bytes(1 << 16)):
                pass
        with contextlib.suppress(BlockingIOError):
            while given.send(b"\0"):
                pass

    def fileno(self) -> int:
        """The end that the receiver gets."""
        return self._given.fileno()

    def pull(self) -> None:
        """Close our ends: what the receiver still writes goes nowhere. It may be called again."""
        self._kept.close()
        self._given.close()


def read_sealed(descriptors: Sequence[int], length: int) -> bytes:
    """What a receiver has put into the memory file that came with its packet; ProtocolError unless nobody can change it any more."""
    if len(descriptors) != 1:
        raise ProtocolError(f"{len(descriptors)} descriptors where a domain's configuration belongs")
    try:
        sealed = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False  # no memory file at all: reading it could take for ever
    if not sealed or os.fstat(descriptors[0]).st_size != length:
        raise ProtocolError("a domain's configuration that is not sealed, or of another length")
    return os.pread(descriptors[0], length, 0)


def sealed_file(content: bytes) -> int:
    """The receiver's half: a memory file with that content that nobody can change any more. The descriptor is the caller's to close."""
    descriptor = os.memfd_create("xensecure-configuration", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
