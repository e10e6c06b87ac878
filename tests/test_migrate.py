"""`xl migrate -s xensecure`: the real xl at both ends, domains that arrive and domains that are refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.pair import PATIENCE, Pair, transports, wait_for
from tests.xl.hosts import Fault, Outcome, Point, alive, open_files, running_copies
from tests.xl.records import GO_MESSAGE, StreamReader
from tests.xl.stream import StreamSpec, make_stream

DATA = Path(__file__).with_name("data")
# Large recordings that are no part of the repository.
LAB = Path(os.environ.get("XENSECURE_LAB") or Path(__file__).resolve().parents[2] / "shared" / "xen-lab") / "streams"
LARGE = LAB / "migrate-pv-128.up.bin.zst"


def expect_moved(pair: Pair, outcome: Outcome, domain: str, stream: Path) -> None:
    """The domain runs at the destination alone, made from exactly the bytes of its stream."""
    assert outcome.status == 0, outcome.stderr + pair.destination.log("xensecured") + pair.destination.log("xensecure-launcher")
    assert running_copies(domain, pair.source.xen, pair.destination.xen) == [pair.destination.xen]
    assert pair.source.xen.domains() == {}
    assert pair.destination.xen.digest(domain) == hashlib.sha256(stream.read_bytes()).hexdigest()


def expect_refused(pair: Pair, outcome: Outcome) -> None:
    """The source resumes and the destination has nothing."""
    assert outcome.status == 1
    assert pair.source.xen.domains() == {"web1": "running"}
    assert pair.destination.xen.domains() == {}
    assert "Traceback" not in outcome.stderr


def test_domain_arrives_whole(pair: Pair, tmp_path: Path) -> None:
    """A migration ends with one running copy, at the destination, its bytes equal by digest."""
    stream = make_stream(tmp_path / "stream", StreamSpec(mib=32, seed=1, zero_share=0.3, passes=2))
    pair.source.xen.set_stream("web1", stream)
    expect_moved(pair, pair.migrate("web1", "-e").wait(), "web1", stream)


def test_journal_has_every_step(pair: Pair) -> None:
    """The destination's journal tells of one session from its start over GO to its end, with the peer's name."""
    assert pair.migrate("web1", "-e").wait().status == 0
    assert pair.destination.last_end()["outcome"] == "arrived"
    entries = pair.destination.journal()
    assert [entry["event"] for entry in entries] == ["start", "domain", "ready", "go", "report", "ended", "end"]
    assert len({entry["session"] for entry in entries}) == 1
    assert entries[0]["peer"] == "hv1"
    assert entries[0]["request"] == ["migrate-receive", "-e"]
    assert entries[1]["domain"] == "web1"
    assert entries[4]["status"] == 0


def test_domain_arrives_before_the_report_says_so(pair: Pair) -> None:
    """While the destination's xl has not unpaused its copy, no summary claims that the domain has moved."""
    pair.destination.xen.set_hold(Point.UNPAUSE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.UNPAUSE)
    assert "moved to" not in running.stderr()
    pair.destination.xen.release(Point.UNPAUSE)
    assert running.wait().status == 0
    assert running.stderr().count("xensecure: web1 moved to hv2") == 1


def test_eight_domains_at_once(pair: Pair, stream: Path) -> None:
    """Eight migrations at a time all arrive."""
    names = [f"db{number}" for number in range(8)]
    for name in names:
        pair.source.xen.create_domain(name, stream)
    running = [pair.migrate(name, "-e") for name in names]
    assert [one.wait().status for one in running] == [0] * 8
    assert sorted(pair.destination.xen.running()) == names


def test_recorded_stream(pair: Pair, tmp_path: Path) -> None:
    """The recorded stream of a real guest arrives byte for byte."""
    whole = io.BytesIO(lzma.decompress((DATA / "migrate-pv-small.up.xz").read_bytes()))
    StreamReader(whole).xl_header()
    real = tmp_path / "real"
    real.write_bytes(whole.read().removesuffix(GO_MESSAGE))
    pair.source.xen.set_stream("web1", real)
    expect_moved(pair, pair.migrate("web1", "-e").wait(), "web1", real)


@pytest.mark.skipif(not LARGE.exists() or shutil.which("zstd") is None, reason=f"needs {LARGE.name} in $XENSECURE_LAB/streams, and zstd")
def test_large_recorded_stream(pair: Pair, tmp_path: Path) -> None:
    """The whole recording of a guest of 128 MiB arrives byte for byte."""
    unpacked = tmp_path / "up"
    subprocess.run(["zstd", "-dq", str(LARGE), "-o", str(unpacked)], check=True)
    real = tmp_path / "real"
    with unpacked.open("rb") as recording:
        StreamReader(recording).xl_header()
        real.write_bytes(recording.read().removesuffix(GO_MESSAGE))
    pair.source.xen.set_stream("web1", real)
    expect_moved(pair, pair.migrate("web1", "-e").wait(), "web1", real)


@pytest.mark.parametrize("fault", [Fault.RESTORE_REFUSE, Fault.UNPAUSE_FAIL])
def test_target_refuses(pair: Pair, fault: Fault) -> None:
    """A target whose xl fails, before the stream or at the unpause, leaves the domain running at the source."""
    pair.destination.xen.set_fault(fault)
    outcome = pair.migrate("web1", "-e").wait()
    expect_refused(pair, outcome)
    assert pair.destination.last_end()["outcome"].startswith("failed: ")


@pytest.mark.parametrize("offset", [0, 100_000, 1_500_000])
def test_restore_fails_in_the_stream(pair: Pair, offset: int) -> None:
    """A restore that fails at any byte: the target's words come back, one line says that the domain has not moved, the source resumes."""
    pair.destination.xen.set_fault(Fault.RESTORE_FAIL_AT, offset)
    outcome = pair.migrate("web1", "-e").wait()
    expect_refused(pair, outcome)
    assert f"Restore failed: fault set at byte {offset}" in outcome.stderr
    assert outcome.stderr.count("xensecure: web1 not moved to hv2: ") == 1


def test_source_fails_in_the_stream(pair: Pair) -> None:
    """A source that fails in the stream keeps its domain, and the target destroys what it has."""
    pair.source.xen.set_fault(Fault.SUSPEND_FAIL_AT, 1_500_000)
    expect_refused(pair, pair.migrate("web1", "-e").wait())


def test_options_reach_the_target(pair: Pair) -> None:
    """-e leaves no monitor, -p leaves the domain paused, --debug and -v reach the target's xl."""
    outcome = pair.migrate("web1", "-e", "-p", "--debug", xl_options=("-vv",)).wait()
    assert outcome.status == 0
    assert pair.destination.xen.domains() == {"web1": "paused"}
    assert pair.destination.xen.calls("libxl_evenable_domain_death") == []
    assert pair.destination.xen.calls("libxl_domain_unpause") == []
    assert '"c_info"' in outcome.stderr
    assert pair.destination.journal()[0]["request"] == ["-vv", "migrate-receive", "-e", "-d", "-p"]


MOVING = "\rxensecure: web1 to hv2: "


def on_terminal(pair: Pair, *words: str) -> tuple[int, str]:
    """Run an xl of the source with a terminal for its stderr, and release the source when the moving line is there.

    Returns the exit status and what the terminal got.
    """
    master, slave = pty.openpty()
    xen = pair.source.xen
    process = subprocess.Popen([str(xen.xl_wrapper()), *words], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = ""
    with contextlib.suppress(OSError):  # EIO: nobody holds the terminal any more
        while piece := os.read(master, 4096):
            seen += piece.decode()
            if MOVING in seen:
                xen.release(Point.SUSPEND)
    os.close(master)
    return process.wait(PATIENCE), seen


def test_terminal(pair: Pair) -> None:
    """On a terminal xl asks the target for carriage returns, and xensecure shows a line that moves, then one summary."""
    pair.source.xen.set_fault(Fault.SUSPEND_AT, 1_000_000)
    pair.source.xen.set_hold(Point.SUSPEND)
    status, seen = on_terminal(pair, "migrate", "-e", "-s", pair.transport(), "web1", "hv2")
    assert status == 0
    assert pair.destination.journal()[0]["request"] == ["-t", "migrate-receive", "-e"]
    assert seen.count("xensecure: web1 moved to hv2") == 1


def test_quiet_terminal(pair: Pair) -> None:
    """With -q xensecure says nothing on a terminal either."""
    pair.source.xen.set_fault(Fault.SUSPEND_RATE, 2_500_000)
    status, seen = on_terminal(pair, "migrate", "-e", "-s", pair.transport("-q"), "web1", "hv2")
    assert status == 0
    assert "xensecure: " not in seen


def test_no_terminal_no_progress(pair: Pair) -> None:
    """Without a terminal there is no moving line, and one summary: domain, peer, bytes, seconds, rate, key-exchange group."""
    pair.source.xen.set_fault(Fault.SUSPEND_RATE, 3_500_000)
    outcome = pair.migrate("web1", "-e").wait()
    assert "\r" not in outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("xensecure: ")]
    assert line.startswith("xensecure: web1 moved to hv2: 2.")
    assert " MiB in " in line
    assert "/s), X25519" in line


def test_remus(pair: Pair) -> None:
    """Remus runs the receive with -r, in small windows, and fails over to the last checkpoint when the source ends."""
    pair.source.xen.set_fault(Fault.REMUS_CHECKPOINTS, 3)
    running = pair.source.xen.remus(pair.transport(), "web1", "hv2", "-i", "10", "-e")
    running.wait()
    wait_for(pair.destination.xen.running, "the failover")
    last = pair.source.xen.calls("checkpoint")[-1]
    assert last.arguments["number"] == "3"
    assert pair.destination.xen.digest("web1") == last.arguments["digest"]
    assert pair.destination.journal()[0]["request"] == ["migrate-receive", "-e", "-r"]
    wait_for(lambda: pair.destination.journal()[-1]["event"] == "end", "the end in the journal")
    assert pair.destination.journal()[-1]["outcome"] == "failed over: the source ended, and xl started the last checkpoint here"
    wait_for(lambda: "see that the domain runs on one host only" in running.stderr(), "xensecure's last word, for which xl does not wait")
    assert "not moved" not in running.stderr()


@pytest.mark.parametrize("remus", [True, False])
def test_window(pair: Pair, tmp_path: Path, *, remus: bool) -> None:
    """With a target that stands still, Remus' source gets no further than its small window and the pipes; a migration's is taken whole."""
    pair.source.xen.set_stream("web1", make_stream(tmp_path / "stream", StreamSpec(16, seed=9)))
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.source.xen.remus(pair.transport(), "web1", "hv2", "-i", "10", "-e") if remus else pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    session = pair.destination.session()
    (transport,) = transports(running.pid)
    if remus:
        wait_still(transport)
        os.kill(transport, signal.SIGTERM)
        running.wait()
        (sent,) = re.findall(r"checkpoints of web1 to hv2 ended: ([0-9.]+) MiB", running.stderr())
        # REMUS_WINDOW and the destination's pipe to xl (1 MiB)
        assert 1.0 <= float(sent) <= 2.1
    else:
        wait_for(lambda: pair.source.xen.calls("sent"), "the source to have written all")
        running.kill()
    pair.destination.xen.release(Point.RESTORE)
    wait_for(session.gone, "the session's end")


def wait_still(pid: int) -> None:
    """Wait until a process has not run for some looks at it."""
    seen: list[str] = []

    def still() -> bool:
        seen.append(Path(f"/proc/{pid}/status").read_text().partition("\nvoluntary_ctxt_switches")[2])
        return len(seen) > 20 and seen[-20] == seen[-1]

    wait_for(still, "the source to stand still")


def test_monitor_holds_nothing_of_ours(pair: Pair) -> None:
    """The daemon that xl leaves behind without -e has none of our descriptors, and ends with its domain."""
    assert pair.migrate("web1").wait().status == 0
    xen = pair.destination.xen
    monitor = xen.wait_monitor()
    log = str(xen.path / "log/xl-web1--incoming.log")
    wait_for(lambda: open_files(monitor).get(0) == "/dev/null", "the daemon's descriptors")
    assert open_files(monitor) == {0: "/dev/null", 1: log, 2: log, 3: log}
    pair.destination.last_end()
    xen.destroy("web1")
    wait_for(lambda: not alive(monitor), "the monitor's end")


def test_xl_has_three_descriptors(pair: Pair) -> None:
    """The target's xl itself starts with 0, 1 and 2 and nothing else of ours."""
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.READY)
    files = open_files(pair.destination.session().xl)
    assert all(files[number].startswith("pipe:") for number in range(3))
    others = {number: name for number, name in files.items() if number > 2 and not name.startswith(str(pair.destination.xen.path))}
    assert others == {}
    pair.destination.xen.release(Point.READY)
    assert running.wait().status == 0
