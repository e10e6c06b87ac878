"""How far a domain's memory has come: pass, per cent and time left, of streams whose passes are known, at both hosts and in all places."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Host, Pair, command, transports, wait_for
from tests.xl.hosts import Fault, Point
from tests.xl.records import RECORD_HEADER, LibxcType, PageData, StreamReader, pack_xl_header
from tests.xl.stream import BATCH_PAGES, RESEND_STEP, StreamSpec, make_config, make_stream
from xensecure.link.config import load_config
from xensecure.link.live import LiveSession, live_sessions
from xensecure.proto.domain import domain_memory
from xensecure.proto.launcher import Milestone, Note
from xensecure.proto.memory import Memory, progress_words

MIB = 1 << 20
SPEC = StreamSpec(24, seed=7, passes=2)
PAGE_HEAD = RECORD_HEADER.size + 16  # bytes of a PAGE_DATA record behind which it counts


# ---- in words and numbers


def test_the_first_pass_is_the_domains_memory() -> None:
    """Per cent and what is left follow from the domain's size; of a later pass from where it is; and of what nobody knows, nothing."""
    first = Memory(total=4 << 30, number=1, sent=1 << 30, frame=1, frame_max=1)
    assert (first.percent, first.left, first.seconds(1 << 28)) == (25, 3 << 30, 12.0)
    assert Memory(total=4 << 30, number=1, sent=5 << 30).percent == 100  # a guest with more than its configuration says
    later = Memory(total=4 << 30, number=3, sent=100 * MIB, frame=250, frame_max=1000)
    assert (later.percent, later.left, later.seconds(100 * MIB)) == (25, 300 * MIB, 3.0)
    begun = Memory(total=5, number=2, sent=5, frame=0, frame_max=9)
    assert (begun.percent, begun.left) == (0, None)
    for unknown in (Memory(), Memory(number=1, sent=5)):
        assert (unknown.percent, unknown.left, unknown.seconds(1e6)) == (None, None, None)
    assert later.seconds(0) is None


def test_words() -> None:
    """As much as is known."""
    assert progress_words(0, None, 5, None) == ""
    assert progress_words(1, 61, 4 << 30, 14.0) == "pass 1, 61 % of 4.0 GiB, 14.0 s left"
    assert progress_words(3, 40, 4 << 30, 75.0) == "pass 3, 40 %, 1:15 min left"
    assert progress_words(2, None, 0, None) == "pass 2"


@pytest.mark.parametrize(
    ("build", "memory"),
    [
        ('{"target_memkb": 2048, "max_memkb": 4096}', 2 * MIB),
        ('{"max_memkb": 4096}', 4 * MIB),
        ('{"target_memkb": -1, "max_memkb": 4096}', 4 * MIB),
        ('{"target_memkb": null, "max_memkb": 4096}', 4 * MIB),
        ('{"target_memkb": 0, "max_memkb": 4096}', 4 * MIB),
        ("{}", 0),
        ("[]", 0),
        ('{"target_memkb": -1}', 0),
        ('{"target_memkb": true}', 0),
        ('{"target_memkb": "2048"}', 0),
        ('{"target_memkb": 18446744073709551615}', 0),
    ],
)
def test_memory_of_a_configuration(build: str, memory: int) -> None:
    """The target counts, or the most; what is neither is not known."""
    assert domain_memory(f'{{"b_info": {build}}}'.encode()) == memory


def test_memory_of_what_is_no_configuration() -> None:
    """Nothing of a stranger's breaks it."""
    for head in (b"", b"[", b"3", b"{}", b"[" * 100000, b"\xff"):
        assert domain_memory(head) == 0
    assert domain_memory(make_config("web1", mib=24).encode()) == 24 * MIB


def test_receivers_tell_keepers() -> None:
    """The counts stand in every note, as large as they may be."""
    memory = Memory(1 << 63, 1 << 31, (1 << 64) - 1, 1 << 52, 5)
    assert Note.pull(Note(Milestone.PROGRESS, memory=memory).push()).memory == memory


# ---- of known streams


def pages_before(stream: bytes, end: int) -> tuple[int, int]:
    """Of a generated stream's first bytes: the pass, by its place in what was generated, and the bytes of pages in it."""
    per_pass = [-(-SPEC.pages // BATCH_PAGES), *[-(-(SPEC.pages // RESEND_STEP) // BATCH_PAGES)] * SPEC.passes]
    number, sent, left = 0, 0, 0
    for record in StreamReader(io.BytesIO(stream)).records():
        if record.kind is not LibxcType.PAGE_DATA or record.offset + PAGE_HEAD > end:
            continue
        if left == 0:
            number, sent, left = number + 1, 0, per_pass[number]
        left -= 1
        sent += len(PageData.parse(record.body).pages)
    return number, sent


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB, sent in three passes."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", SPEC)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two hosts of which the destination holds little, so that a held xl holds the source; their events go to files."""
    folder = tmp_path_factory.mktemp("events")
    extra = [f'[log]\nevents = "{folder / name}"\n' for name in ("hv1", "hv2")]
    with Pair(source_extra=extra[0], destination_extra=f"window = 1048576\n{extra[1]}") as made:
        yield made


def live(host: Host) -> LiveSession:
    """The one session that runs on a host."""
    (found,) = live_sessions(load_config(str(host.config)).run)
    return found


def settled(*hosts: Host) -> list[LiveSession]:
    """The same of each, when its bytes grow no more."""
    seen = [[live(host) for host in hosts]]

    def stands() -> bool:
        time.sleep(1.1)  # more than between two looks of a session at itself
        seen.append([live(host) for host in hosts])
        return all(now.bytes == before.bytes > 0 for before, now in zip(*seen[-2:], strict=True))

    wait_for(stands, "sessions that stand still")
    return seen[-1]


@pytest.mark.parametrize("at", [3 * MIB, 26 * MIB])
def test_both_hosts_show_the_pass(pair: Pair, stream: Path, at: int) -> None:
    """In the middle of any pass, both hosts show the one that the stream is in, by its bytes so far; `status` says it."""
    head = len(pack_xl_header(make_config("web1", mib=stream.stat().st_size >> 20)))
    data = stream.read_bytes()
    pair.destination.xen.set_fault(Fault.RESTORE_AT, at)
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    there, here = settled(pair.destination, pair.source)
    total = (stream.stat().st_size >> 20) * MIB
    number, sent = pages_before(data, there.bytes - head)
    assert (there.pass_number, there.memory) == (number, total)
    assert there.percent == (100 * sent // max(total, sent) if number == 1 else there.percent)
    # The source has read further than it has sent, by what its queue holds at most.
    assert pages_before(data, here.bytes - head)[0] <= here.pass_number <= pages_before(data, here.bytes - head + 2 * MIB)[0]
    assert here.memory == total
    for host in (pair.source, pair.destination):
        shown = live(host)
        assert f"pass {shown.pass_number}, {shown.percent} %" in host.ctl("status").stdout
        (described,) = json.loads(host.ctl("status", "--json").stdout)["live"]
        assert (described["pass_number"], described["percent"], described["memory"]) == (shown.pass_number, shown.percent, total)
    pair.destination.xen.release(Point.RESTORE)
    assert running.wait().status == 0


# ---- where people see it


def test_verbose_lines(pair: Pair) -> None:
    """With -v and no terminal there is a line when a pass has begun; without, none."""
    outcome = pair.migrate("web1", "-e", transport="-v -o bwlimit=8M -o elide=off").wait()
    assert outcome.status == 0
    lines = [line for line in outcome.stderr.splitlines() if ", pass " in line or ": pass " in line]
    assert re.fullmatch(r"xensecure: web1 to hv2: pass 1, \d+ % of \d+\.0 MiB, [\d.]+ s left, [\d.]+ MiB in [\d.]+ s \([\d.]+ MiB/s\)", lines[0])
    assert [line.split("pass ")[1][0] for line in lines] == sorted({line.split("pass ")[1][0] for line in lines})


@contextlib.contextmanager
def on_a_terminal(pair: Pair, columns: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Xensecure as xl runs it, with a terminal for its standard error, of which the other end is given."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    words = [command("xensecure"), "-o", "bwlimit=4M", "-o", "elide=off", "hv2", "xl", "migrate-receive"]
    process = subprocess.Popen(words, env=pair.source.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=slave, bufsize=0)
    os.close(slave)
    try:
        yield process, master
    finally:
        process.terminate()
        process.wait(20)
        os.close(master)


@pytest.mark.parametrize("columns", [200, 70])
def test_a_terminals_line(pair: Pair, stream: Path, columns: int) -> None:
    """On a terminal one line moves, with pass, per cent and time left, and is never longer than the terminal is wide."""
    data = pack_xl_header(make_config("web1", mib=24)) + stream.read_bytes()[: 8 * MIB]

    def write(sink: io.RawIOBase) -> None:
        with contextlib.suppress(OSError):
            sink.write(data)

    with on_a_terminal(pair, columns) as (process, master):
        assert process.stdin
        writer = threading.Thread(target=write, args=(process.stdin,), daemon=True)
        writer.start()
        seen = b""
        end = time.monotonic() + 15
        while b" left" not in seen and time.monotonic() < end:
            seen += os.read(master, 4096)
    lines = [line for line in re.split(r"[\r\n]+", seen.decode()) if "pass 1" in line]
    assert re.match(r"xensecure: web1 to hv2: pass 1, \d+ % of 24\.0 MiB, [\d.]+ s left", lines[0])
    assert all(len(line) < columns for line in lines)


def test_sigusr1(pair: Pair) -> None:
    """SIGUSR1 has the source and the destination's keeper say in one line how far they are; launcher and receivers outlive it."""
    pair.destination.xen.set_fault(Fault.RESTORE_AT, 3 * MIB)
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    settled(pair.destination)
    session = pair.destination.session()
    (transport,) = transports(running.pid)
    daemons = [process.pid for process in pair.destination.processes.values()]
    for pid in (transport, session.keeper, session.receiver, *daemons):
        os.kill(pid, signal.SIGUSR1)
    figures = r"running, phase \w+, pass 1, \d+ % of [\d.]+ MiB, .*[\d.]+ MiB in [\d.]+ s, [\d.]+ \wi?B?/s now; session [0-9a-f]{32}"
    wait_for(lambda: re.search(rf"xensecure: web1 to hv2: {figures}", running.stderr()), "the source's line")
    log = pair.destination.log
    wait_for(lambda: re.search(rf"xensecure-launcher: web1 from hv1: {figures}", log("xensecure-launcher")), "the keeper's line")
    wait_for(lambda: "1 migrations arrive here, 0 more receivers are connected" in log("xensecure-launcher"), "the launcher's line")
    pair.destination.xen.release(Point.RESTORE)
    assert running.wait().status == 0


def test_sigusr1_before_there_is_a_session(pair: Pair) -> None:
    """While a hook runs the signal ends neither the hook nor the migration."""
    mark = pair.folder / "running"
    mark.unlink(missing_ok=True)
    pair.source.add_hook("pre-send", "slow", f"#!/bin/sh\ntouch {mark}\nwhile [ -e {mark} ]; do sleep 0.05; done\n")
    running = pair.migrate("web1", "-e")
    wait_for(mark.exists, "the hook")
    (transport,) = transports(running.pid)
    os.kill(transport, signal.SIGUSR1)
    wait_for(lambda: "no session yet: a hook runs, or the connection is being made" in running.stderr(), "the line")
    mark.unlink()
    assert running.wait().status == 0
