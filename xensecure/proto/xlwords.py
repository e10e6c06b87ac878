"""The fixed words of xl's own migration protocol, as they are on the wire (tools/xl/xl_migrate.c). The C engine has its own: csrc/xlphase.c."""

from __future__ import annotations

import struct

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
# What a receiving xl reports of a domain that it has not started: a byte that is no status of libxl's (xl sends its own 0xff then).
NOT_STARTED = 255


def receivers_words(status: int) -> bytes:
    """All that a receiving xl writes to its standard output, to that status. GO behind one that is not 0 clears the sender to resume."""
    return BANNER + READY + REPORT + bytes([status]) + (GO if status else b"")


# struct save_file_header of tools/xl/xl.h: magic, byte order, mandatory flags, optional flags, length of what follows.
_HEADER = struct.Struct("=32sIIII")
_MAGIC = b"Xen saved domain, xl format\n \0 \r"
_BYTE_ORDER = 0x01020304
_FLAGS = 1 | 2  # XL_MANDATORY_FLAG_JSON, XL_MANDATORY_FLAG_STREAMv2


def stream_head(configuration: bytes) -> bytes:
    """What a sending xl writes before the domain: its header and the configuration (libxl's JSON, without a NUL)."""
    follows = configuration + b"\0"
    return _HEADER.pack(_MAGIC, _BYTE_ORDER, _FLAGS, 0, 4 + len(follows)) + struct.pack("=I", len(follows)) + follows
