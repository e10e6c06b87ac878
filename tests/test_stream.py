"""Tests of the stream generator, the parser and the recorded stream."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import pytest

from tests.xl import cut_stream, records, stream
from tests.xl.fetch import ToolstackMissingError, fetch, verify_stream
from tests.xl.records import LibxcType, LibxlType, PageData, StreamError, StreamReader, parse
from tests.xl.stream import StreamSpec

DATA = Path(__file__).with_name("data")


@pytest.fixture(scope="module")
def xen_root() -> Path:
    """Unpacked xen-utils, or a skipped test where they can't be had."""
    try:
        return fetch()
    except ToolstackMissingError as error:
        pytest.skip(str(error))


def generate(spec: StreamSpec) -> bytes:
    """One generated stream in memory."""
    file = io.BytesIO()
    stream.write_stream(file, spec)
    return file.getvalue()


def recorded() -> bytes:
    """The cut recording, unpacked."""
    return lzma.decompress((DATA / "migrate-pv-small.up.xz").read_bytes())


@pytest.mark.parametrize(
    "spec",
    [
        StreamSpec(1),
        StreamSpec(1, zero_share=0, passes=0),
        StreamSpec(5, seed=7, zero_share=1),
        StreamSpec(9, seed=2, zero_share=0.5, passes=9),
    ],
    ids=str,
)
def test_xen_accepts_generated_stream(xen_root: Path, tmp_path: Path, spec: StreamSpec) -> None:
    """verify-stream-v2 of xen-utils finds no fault in what the generator writes."""
    path = stream.make_stream(tmp_path / "stream", spec)
    done = verify_stream(xen_root, path)
    assert done.returncode == 0, done.stderr


def test_pages_are_as_asked_for() -> None:
    """A stream has each page once, an eighth again for each pass, and the share of zeros."""
    spec = StreamSpec(16, seed=3, zero_share=0.25, passes=2)
    bodies = [
        PageData.parse(record.body)
        for record in parse(io.BytesIO(generate(spec)))
        if record.kind is LibxcType.PAGE_DATA
    ]
    pfns = [pfn for body in bodies for pfn in body.entries]
    pages = b"".join(body.pages for body in bodies)
    starts = range(0, len(pages), records.PAGE_SIZE)
    zero = sum(not any(pages[start : start + records.PAGE_SIZE]) for start in starts)
    assert pfns[: spec.pages] == list(range(spec.pages))
    assert len(pfns) == spec.pages + 2 * spec.pages // 8
    assert abs(zero / len(pfns) - 0.25) < 0.05


def test_stream_is_function_of_its_arguments() -> None:
    """The same arguments give the same bytes, another seed gives others of the same length."""
    first, again = generate(StreamSpec(2, seed=1)), generate(StreamSpec(2, seed=1))
    other = generate(StreamSpec(2, seed=2, zero_share=0.3))
    assert first == again
    assert first != other
    assert len(first) == len(other)


def test_command_writes_stream(tmp_path: Path) -> None:
    """The command line gives the stream that the function gives."""
    path = tmp_path / "out"
    assert stream.main(["--mib", "1", "--seed", "4", "--passes", "2", str(path)]) == 0
    assert path.read_bytes() == generate(StreamSpec(1, seed=4, passes=2))


def test_impossible_stream_is_refused() -> None:
    """A guest without memory makes no stream."""
    with pytest.raises(ValueError, match="no stream"):
        StreamSpec(0)


def test_recording_is_what_xl_writes() -> None:
    """The recording has xl's header and configuration, all record types of a PV guest, and GO."""
    file = io.BytesIO(recorded())
    reader = StreamReader(file)
    assert '"name": "g128"' in reader.xl_header()
    kinds = {record.kind for record in reader.records()}
    assert kinds == {
        LibxlType.LIBXC_CONTEXT,
        LibxlType.END,
        LibxcType.X86_PV_INFO,
        LibxcType.X86_CPUID_POLICY,
        LibxcType.X86_MSR_POLICY,
        LibxcType.STATIC_DATA_END,
        LibxcType.X86_PV_P2M_FRAMES,
        LibxcType.PAGE_DATA,
        LibxcType.X86_TSC_INFO,
        LibxcType.SHARED_INFO,
        LibxcType.X86_PV_VCPU_BASIC,
        LibxcType.X86_PV_VCPU_EXTENDED,
        LibxcType.X86_PV_VCPU_XSAVE,
        LibxcType.END,
    }
    assert file.read() == records.GO_MESSAGE


def test_recording_sends_changed_pages_again() -> None:
    """Some pages of the recording come several times with different contents."""
    reader = StreamReader(io.BytesIO(recorded()))
    reader.xl_header()
    seen: dict[int, set[bytes]] = {}
    for record in reader.records():
        if record.kind is LibxcType.PAGE_DATA:
            data = PageData.parse(record.body)
            for index, entry in enumerate(data.entries):
                start = index * records.PAGE_SIZE
                page = bytes(data.pages[start : start + records.PAGE_SIZE])
                seen.setdefault(entry & records.PFN_MASK, set()).add(page)
    assert sum(len(contents) > 1 for contents in seen.values()) >= 3


def test_xen_accepts_recording(xen_root: Path, tmp_path: Path) -> None:
    """verify-stream-v2 of xen-utils finds no fault in the cut recording."""
    path = tmp_path / "recording"
    path.write_bytes(recorded())
    done = verify_stream(xen_root, path, "xl")
    assert done.returncode == 0, done.stderr


def test_answers_are_what_xl_reads() -> None:
    """The recorded answers are banner, "ready", report and a status byte of success."""
    assert (DATA / "migrate-pv.down.bin").read_bytes() == (
        b"xl migration receiver ready, send binary domain data.\n"
        b"domain received, ready to unpause\0"
        b"my copy unpause results are as follows\0"
        b"\0"
    )


def test_cutting_keeps_a_stream_whole() -> None:
    """A stream that is cut is a smaller stream with the same records."""
    whole = records.pack_xl_header(stream.make_config("web1")) + generate(StreamSpec(4))
    small = cut_stream.cut(io.BytesIO(whole + records.GO_MESSAGE), 4)
    before, after = StreamReader(io.BytesIO(whole)), StreamReader(io.BytesIO(small))
    assert before.xl_header() == after.xl_header()
    assert [one.kind for one in before.records()] == [one.kind for one in after.records()]
    assert len(small) < len(whole) / 10
    assert small.endswith(records.GO_MESSAGE)


def test_every_truncation_is_seen() -> None:
    """A stream that ends one byte early, at a record or inside one, is no stream."""
    data = recorded()
    reader = StreamReader(io.BytesIO(data))
    reader.xl_header()
    ends = [record.offset + record.size for record in reader.records()]
    for end in ends[:-1]:
        for size in (end - 1, end, end + 1):
            with pytest.raises(StreamError):
                consume(data[:size])


@pytest.mark.parametrize(
    ("offset", "what"),
    [(0, "magic"), (36, "flags"), (925, "libxl"), (941, "record"), (949, "marker"), (957, "XENF")],
)
def test_changed_header_is_seen(offset: int, what: str) -> None:
    """A changed byte in a header is an error of the stream."""
    data = bytearray(recorded())
    data[offset] ^= 0x80
    with pytest.raises(StreamError):
        consume(bytes(data))
    assert what


def consume(data: bytes) -> None:
    """Parse everything that xl wrote."""
    reader = StreamReader(io.BytesIO(data))
    reader.xl_header()
    for _ in reader.records():
        pass
