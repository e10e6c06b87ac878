"""The records of a migration stream: names, layout and a strict parser.

Formats: xen.git ``docs/specs/libxl-migration-stream.pandoc`` and
``docs/specs/libxc-migration-stream.pandoc``; the header that xl puts before
them: ``tools/xl/xl_saverestore.c``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

PAGE_SIZE = 4096
BATCH_PAGES = 1024  # pages a PAGE_DATA record at most: MAX_BATCH_SIZE in xg_sr_common.h
RECORD_MAX = 128 << 20  # bytes of a record's body: REC_LENGTH_MAX in xg_sr_common.h

XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
XL_HEADER = struct.Struct("<32sIIII")  # magic, byte order, mandatory, optional, length
XL_BYTE_ORDER = 0x01020304
XL_MANDATORY = 0x3  # configuration as JSON, stream version 2

LIBXL_HEADER = struct.Struct(">QII")  # ident, version, options
LIBXL_IDENT = 0x4C6962786C466D74  # "LibxlFmt"
LIBXL_VERSION = 2

IMAGE_HEADER = struct.Struct(">QIIHHI")  # marker, ident, version, options, 0, 0
IMAGE_MARKER = 0xFFFFFFFFFFFFFFFF
IMAGE_IDENT = 0x58454E46  # "XENF"
IMAGE_VERSION = 3
DOMAIN_HEADER = struct.Struct("<IHHII")  # type, page shift, 0, Xen major, Xen minor

RECORD_HEADER = struct.Struct("<II")  # type, bytes of the body without padding
PFN_MASK = (1 << 52) - 1
PFN_TYPE_SHIFT = 60
PFN_TYPE_BROKEN = 0xD  # this type and those above it have no page contents

GO_MESSAGE = b"domain is yours, you are cleared to unpause\0"


class StreamError(Exception):
    """The bytes are no valid migration stream."""


class Layer(enum.Enum):
    """Which of the two nested formats a record belongs to."""

    LIBXL = "libxl"
    LIBXC = "libxc"


class LibxlType(enum.IntEnum):
    """Record types of the outer stream."""

    END = 0
    LIBXC_CONTEXT = 1
    EMULATOR_XENSTORE_DATA = 2
    EMULATOR_CONTEXT = 3
    CHECKPOINT_END = 4
    CHECKPOINT_STATE = 5


class LibxcType(enum.IntEnum):
    """Record types of the memory image inside it."""

    END = 0x00
    PAGE_DATA = 0x01
    X86_PV_INFO = 0x02
    X86_PV_P2M_FRAMES = 0x03
    X86_PV_VCPU_BASIC = 0x04
    X86_PV_VCPU_EXTENDED = 0x05
    X86_PV_VCPU_XSAVE = 0x06
    SHARED_INFO = 0x07
    X86_TSC_INFO = 0x08
    HVM_CONTEXT = 0x09
    HVM_PARAMS = 0x0A
    TOOLSTACK = 0x0B
    X86_PV_VCPU_MSRS = 0x0C
    VERIFY = 0x0D
    CHECKPOINT = 0x0E
    CHECKPOINT_DIRTY_PFN_LIST = 0x0F
    STATIC_DATA_END = 0x10
    X86_CPUID_POLICY = 0x11
    X86_MSR_POLICY = 0x12


RecordType = LibxlType | LibxcType


class DomainType(enum.IntEnum):
    """Guest type in the domain header of the image."""

    PV = 1
    HVM = 2


@dataclass(frozen=True)
class Record:
    """One record; offset counts from the first byte given to the parser."""

    kind: RecordType
    offset: int
    body: bytes

    @property
    def layer(self) -> Layer:
        """Which format the record belongs to."""
        return Layer.LIBXL if isinstance(self.kind, LibxlType) else Layer.LIBXC

    @property
    def size(self) -> int:
        """Bytes in the stream, header and padding included."""
        return RECORD_HEADER.size + len(self.body) + padding(len(self.body))


@dataclass(frozen=True)
class PageData:
    """Body of a PAGE_DATA record: entries (type << 60 | pfn) and the pages' bytes."""

    entries: tuple[int, ...]
    pages: memoryview

    @classmethod
    def parse(cls, body: bytes) -> PageData:
        """Take the body apart.

        Raises:
            StreamError: count, entries and length don't fit together.

        """
        if len(body) < 8:
            raise StreamError(f"PAGE_DATA of {len(body)} bytes")
        count, zero = struct.unpack_from("<II", body)
        start = 8 + 8 * count
        if zero or not 1 <= count <= BATCH_PAGES or start > len(body):
            raise StreamError(f"PAGE_DATA of {len(body)} bytes says that it has {count} pages")
        entries = struct.unpack_from(f"<{count}Q", body, 8)
        with_data = sum(map(has_data, entries))
        if len(body) != start + PAGE_SIZE * with_data:
            raise StreamError(f"PAGE_DATA of {len(body)} bytes has {with_data} pages with data")
        return cls(entries, memoryview(body)[start:])


def has_data(entry: int) -> bool:
    """Whether a PAGE_DATA entry comes with a page's contents."""
    return entry >> PFN_TYPE_SHIFT < PFN_TYPE_BROKEN


def padding(length: int) -> int:
    """Bytes that follow a body of that length: records are multiples of 8 bytes."""
    return -length % 8


def pack_record(kind: RecordType, body: bytes = b"") -> bytes:
    """The bytes of one record."""
    return RECORD_HEADER.pack(kind, len(body)) + body + bytes(padding(len(body)))


def pack_page_data(entries: list[int], pages: bytes) -> bytes:
    """The bytes of one PAGE_DATA record."""
    head = struct.pack(f"<II{len(entries)}Q", len(entries), 0, *entries)
    return pack_record(LibxcType.PAGE_DATA, head + pages)


def pack_xl_header(config: str) -> bytes:
    """What xl writes before the libxl stream: its header and the configuration."""
    data = config.encode() + b"\0"
    optional = struct.pack("<I", len(data)) + data
    return XL_HEADER.pack(XL_MAGIC, XL_BYTE_ORDER, XL_MANDATORY, 0, len(optional)) + optional


class StreamReader:
    """Reads one stream, header by header, from a binary file."""

    def __init__(self, file: BinaryIO) -> None:
        """Start at the file's present position; offsets count from there."""
        self._file = file
        self.offset = 0

    def _exact(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise StreamError(f"stream ends at byte {self.offset + len(data)}")
        self.offset += size
        return data

    def xl_header(self) -> str:
        """Read xl's own header; returns the domain's configuration."""
        magic, order, mandatory, _, length = XL_HEADER.unpack(self._exact(XL_HEADER.size))
        if (magic, order, mandatory) != (XL_MAGIC, XL_BYTE_ORDER, XL_MANDATORY) or length < 5:
            raise StreamError("no xl header")
        data = self._exact(length)
        if struct.unpack_from("<I", data)[0] != length - 4 or data[-1]:
            raise StreamError("configuration and its length don't fit together")
        return data[4:-1].decode()

    def records(self) -> Iterator[Record]:
        """Read the libxl stream to its END record and not a byte further."""
        ident, version, options = LIBXL_HEADER.unpack(self._exact(LIBXL_HEADER.size))
        if (ident, version, options) != (LIBXL_IDENT, LIBXL_VERSION, 0):
            raise StreamError("no libxl header")
        while True:
            record = self._record(LibxlType)
            yield record
            if record.kind is LibxlType.LIBXC_CONTEXT:
                self._image_header()
                yield from self._libxc_records()
            elif record.kind is LibxlType.CHECKPOINT_END:
                yield from self._libxc_records()
            elif record.kind is LibxlType.END:
                return

    def _image_header(self) -> None:
        marker, ident, version, *rest = IMAGE_HEADER.unpack(self._exact(IMAGE_HEADER.size))
        if (marker, ident, version) != (IMAGE_MARKER, IMAGE_IDENT, IMAGE_VERSION) or any(rest):
            raise StreamError(f"bad image header before byte {self.offset}")
        kind, shift, zero, _, _ = DOMAIN_HEADER.unpack(self._exact(DOMAIN_HEADER.size))
        if kind not in tuple(DomainType) or shift != 12 or zero:
            raise StreamError(f"bad domain header before byte {self.offset}")

    def _libxc_records(self) -> Iterator[Record]:
        while True:
            record = self._record(LibxcType)
            if record.kind is LibxcType.PAGE_DATA:
                PageData.parse(record.body)
            yield record
            if record.kind in (LibxcType.END, LibxcType.CHECKPOINT):
                return

    def _record(self, types: type[LibxlType | LibxcType]) -> Record:
        offset = self.offset
        number, length = RECORD_HEADER.unpack(self._exact(RECORD_HEADER.size))
        if length > RECORD_MAX or number not in tuple(types):
            raise StreamError(f"bad record of type {number:#x}, {length} bytes, at byte {offset}")
        body = self._exact(length)
        if any(self._exact(padding(length))):
            raise StreamError(f"padding of the record at byte {offset} is not zero")
        return Record(types(number), offset, body)


def parse(file: BinaryIO) -> Iterator[Record]:
    """Records of a libxl stream, checked.

    Raises:
        StreamError: at the first thing that the format does not allow.

    """
    return StreamReader(file).records()
