"""What runs out at a destination: disk, memory, descriptors, the right time. Each ends in one line, and a domain that runs once."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.limits import cpu_seconds, make_clock, memory_kib, restart
from tests.pair import Pair, wait_for
from tests.xl.hosts import Fault, Outcome, Point, running_copies
from tests.xl.stream import StreamSpec, make_stream

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file system is mounted")
with_prlimit = pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit(1)")
_SMALL_DISK = 192 << 10  # bytes: a session's reserve, what a host has in its state folder, and little more
_DAY = 86400


@pytest.fixture
def pair(new_pair: Pair, stream: Path) -> Iterator[Pair]:
    """Two hosts for one test, and web1 on the source; afterwards nothing of a session may be left."""
    new_pair.source.xen.create_domain("web1", stream)
    yield new_pair
    new_pair.expect_nothing_left()


def expect_stays(pair: Pair, outcome: Outcome) -> None:
    """The source's domain runs on, and the destination has nothing of it."""
    assert outcome.status != 0
    assert pair.source.xen.domains() == {"web1": "running"}
    assert pair.destination.xen.domains() == {}
    assert "Traceback" not in outcome.stderr


def expect_arrives(pair: Pair, outcome: Outcome) -> None:
    """It runs at the destination, and there alone."""
    assert outcome.status == 0, outcome.stderr
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]


# ---- disk


@pytest.fixture
def small_disk(pair: Pair) -> Path:
    """The destination's state folder on a disk of its own, as its launcher sees it, in a mount namespace that nobody else is in."""
    state, aside = pair.destination.state, pair.destination.folder / "aside"
    script = f"cp -a {state} {aside} && mount -t tmpfs -o size={_SMALL_DISK},mode=0700 tmpfs {state} && cp -a {aside}/. {state} && exec \"$@\""
    pid = restart(pair.destination, "xensecure-launcher", "unshare", "--mount", "sh", "-c", script, "sh")
    return Path(f"/proc/{pid}/root{state}")


def fill(disk: Path) -> None:
    """Leave no room."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@as_root
def test_disk_is_full_before(pair: Pair, small_disk: Path) -> None:
    """With no room for a session's journal nothing is received: one line with the reason on both hosts, and no xl is started."""
    fill(small_disk)
    outcome = pair.migrate("web1", "-e").wait()
    expect_stays(pair, outcome)
    reason = "the journal there cannot be written"
    assert outcome.stderr.count(reason) == 1
    assert "No space left on device" in outcome.stderr
    assert reason in pair.destination.log("xensecure-launcher")
    assert not pair.destination.xen.calls("libxl_domain_create_restore")
    (small_disk / "filler").unlink()
    expect_arrives(pair, pair.migrate("web1", "-e").wait())


@as_root
def test_disk_fills_up_meanwhile(pair: Pair, small_disk: Path) -> None:
    """A disk that fills up in mid session keeps no word from the journal: its room was set aside before the session began."""
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    fill(small_disk)
    pair.destination.xen.release(Point.RESTORE)
    expect_arrives(pair, running.wait())
    wait_for(lambda: '"event": "end"' in (small_disk / "journal.jsonl").read_text(), "the end in the journal")
    said = (small_disk / "journal.jsonl").read_text()
    assert all(f'"event": "{event}"' in said for event in ("start", "domain", "ready", "go", "report", "end"))
    assert "is not in the journal" not in pair.destination.log("xensecure-launcher")


# ---- memory


@with_prlimit
def test_receiver_has_no_memory(pair: Pair, tmp_path: Path) -> None:
    """A receiver that gets no memory for what its xl does not take yet ends its session with one line, and the listener goes on."""
    pair.source.xen.set_stream("web1", make_stream(tmp_path / "stream", StreamSpec(48, seed=4, zero_share=0)))
    listener = pair.destination.processes["xensecured"].pid
    room = memory_kib(listener, "VmSize") + (16 << 10)
    restart(pair.destination, "xensecured", "prlimit", f"--as={room << 10}")
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    wait_for(lambda: "hv1 (127.0.0.1): " in pair.destination.log("xensecured"), "the receiver's line")
    pair.destination.xen.release(Point.RESTORE)
    expect_stays(pair, running.wait())
    assert "the socket failed (Cannot allocate memory)" in pair.destination.log("xensecured")
    restart(pair.destination, "xensecured")
    expect_arrives(pair, pair.migrate("web1", "-e").wait())


# ---- descriptors


@with_prlimit
@pytest.mark.parametrize("name", ["xensecured", "xensecure-launcher"])
def test_no_descriptor_for_a_connection(pair: Pair, name: str) -> None:
    """A daemon without a descriptor for the next connection says so once, waits without turning, and goes on when there is one again."""
    host = pair.destination
    used = len(list(Path(f"/proc/{host.processes[name].pid}/fd").iterdir()))
    pid = restart(host, name, "prlimit", f"--nofile={used}")
    before, begun = cpu_seconds(pid), time.monotonic()
    outcome = pair.migrate("web1", "-e", transport="-o connect_timeout=3").wait()
    expect_stays(pair, outcome)
    share = (cpu_seconds(pid) - before) / (time.monotonic() - begun)
    assert share < 0.1, f"{name} used {share:.0%} of a processor"
    assert host.log(name).count("no descriptor for the next connection") == 1
    restart(host, name)
    expect_arrives(pair, pair.migrate("web1", "-e").wait())


@with_prlimit
def test_source_has_no_descriptors(pair: Pair) -> None:
    """A source that gets no descriptor ends with one line before anything has begun."""
    pair.destination.xen.clear_faults()
    words = ["prlimit", "--nofile=4", *pair.transport().split(), "hv2", "xl", "migrate-receive"]
    done = subprocess.run(words, env=pair.source.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert not pair.destination.journal()


# ---- the clock


def test_clock_jumps(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A wall clock that jumps by a day in either direction, in mid session and between them, ends nothing and cuts nothing short."""
    folder = pair.folder / "clock"
    folder.mkdir(mode=0o755)
    library, shift = make_clock(folder)
    for name in ("xensecure-launcher", "xensecured"):
        restart(pair.destination, name, preload=library)
    pair.destination.xen.set_fault(Fault.RESTORE_AT, 1_000_000)
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.source.xen.migrate(f"env LD_PRELOAD={library} {pair.transport()}", "web1", "hv2", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    for seconds in (_DAY, -_DAY, 0, -30 * 365 * _DAY, 3 * _DAY):
        shift.write_text(str(seconds))
        time.sleep(0.3)
    pair.destination.xen.release(Point.RESTORE)
    outcome = running.wait()
    expect_arrives(pair, outcome)
    assert "lost" not in outcome.stderr
    end = pair.destination.last_end()
    assert end["outcome"] == "arrived"
    assert 0 <= end["seconds"] < 30, "how long it took is no difference of wall clocks"
