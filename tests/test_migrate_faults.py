"""Processes killed at known points of a migration: one running copy, or the state that the documentation names; nothing left behind, no hang."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from pathlib import Path

import pytest

from tests.pair import Pair, Session, transports, wait_for
from tests.xl.hosts import Fault, Outcome, Point, Running, alive, running_copies
from tests.xl.stream import StreamSpec, make_stream

# Offsets in the stream behind xl's header: before its first byte, in the first PAGE_DATA record, in a later one.
HEAD, FIRST_RECORD, LATER_RECORD = 0, 100_000, 5_500_000
OFFSETS = (HEAD, FIRST_RECORD, LATER_RECORD)
READY = -1  # no offset: the target has read all and has not yet said so
POINTS = (*OFFSETS, READY)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight MiB in two passes."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(8, seed=7))


class Held:
    """A migration that stands still at a point: at the target in the stream or at READY, with all its processes known."""

    def __init__(self, pair: Pair, point: int | Point) -> None:
        self.pair = pair
        source, target = pair.source.xen, pair.destination.xen
        if isinstance(point, Point):
            self.at, self.host = point, source if point is Point.RENAME else target
        elif point == READY:
            self.at, self.host = Point.READY, target
        else:
            self.at, self.host = Point.RESTORE, target
            target.set_fault(Fault.RESTORE_AT, point)
        self.host.set_hold(self.at)
        self.running: Running = pair.migrate("web1", "-e")
        self.holder = self.host.wait_held(self.at)
        self.session: Session = pair.destination.session()
        (self.transport,) = transports(self.running.pid)

    def release(self) -> None:
        """Let it go on."""
        self.host.release(self.at)

    def kill(self, pid: int) -> None:
        """Kill one process, and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), f"the end of process {pid}")

    def finish(self) -> Outcome:
        """Release what is held, wait for the source's xl and for every process of the session."""
        self.release()
        outcome = self.running.wait()
        wait_for(self.session.gone, "the session's processes to end")
        wait_for(lambda: not alive(self.transport), "the end of xensecure")
        assert "Traceback" not in outcome.stderr
        return outcome

    def expect_resumed(self) -> Outcome:
        """The source's xl has failed, its domain runs on, and the target has nothing of it."""
        outcome = self.finish()
        assert outcome.status != 0
        assert self.pair.source.xen.domains() == {"web1": "running"}
        assert self.pair.destination.xen.domains() == {}
        assert self.pair.source.xen.calls("libxl_domain_resume")
        return outcome


def end_words(pair: Pair) -> str:
    """How the journal's last session ended."""
    end = pair.destination.last_end()
    assert end["domain"] == "web1"
    return f"{end['outcome']}; {end['xl']}"


@pytest.mark.parametrize("point", POINTS)
def test_transport_killed(pair: Pair, point: int) -> None:
    """The source's xensecure killed before GO: the source resumes, the target's xl destroys its copy and says so itself."""
    held = Held(pair, point)
    held.kill(held.transport)
    held.expect_resumed()
    assert end_words(pair).startswith("failed: the source closed the connection before the end") or "reset" in end_words(pair)
    assert pair.destination.xen.calls("libxl_domain_destroy") or point != READY


@pytest.mark.parametrize("point", POINTS)
def test_transport_stopped(pair: Pair, point: int) -> None:
    """SIGTERM to the source's xensecure before GO: one clear line, 255, the source resumes, the target's xl destroys its copy."""
    held = Held(pair, point)
    os.kill(held.transport, signal.SIGTERM)
    wait_for(lambda: not alive(held.transport), "the end of xensecure")  # or GO may be on its way when it hears the signal
    outcome = held.expect_resumed()
    assert "xensecure: stopped by SIGTERM; the domain stays on this host\n" in outcome.stderr
    assert "exited with error status 255" in outcome.stderr
    assert end_words(pair).startswith("failed: given up by the source: stopped by SIGTERM at the source")


@pytest.mark.parametrize("point", POINTS)
def test_receiver_killed(pair: Pair, point: int) -> None:
    """The receiver killed before GO: xensecure fails with 255, the source resumes, and the launcher reads xl's output until its copy is gone."""
    held = Held(pair, point)
    held.kill(held.session.receiver)
    outcome = held.expect_resumed()
    assert "exited with error status 255" in outcome.stderr
    assert re.search("^xensecure: link lost: .*; the domain stays on this host$", outcome.stderr, re.MULTILINE)
    assert end_words(pair).startswith("failed: the receiver ended")


@pytest.mark.parametrize("point", POINTS)
def test_keeper_killed(pair: Pair, point: int) -> None:
    """The launcher's process for this session killed before GO: the receiver gives up, and reads xl's output until its copy is gone."""
    held = Held(pair, point)
    held.kill(held.session.keeper)
    outcome = held.expect_resumed()
    assert "the destination gave up: the launcher there has ended" in outcome.stderr
    assert "the domain stays on this host" in outcome.stderr


@pytest.mark.parametrize("point", POINTS)
def test_target_xl_killed(pair: Pair, point: int) -> None:
    """The target's xl killed before GO: its helper goes with it, its copy is destroyed by name, the source resumes."""
    held = Held(pair, point)
    held.kill(held.session.xl)
    wait_for(lambda: not alive(held.holder), "the end of xl's helper")
    held.expect_resumed()
    assert end_words(pair) == "failed: xl was killed; killed by SIGKILL"
    assert "'xl destroy web1--incoming' ended with status 0" in pair.destination.log("xensecure-launcher")


@pytest.mark.parametrize("offset", OFFSETS)
def test_source_xl_killed(pair: Pair, offset: int) -> None:
    """The source's xl and its helper killed in the stream: the domain runs on as it was, the target destroys its copy."""
    source = pair.source.xen
    source.set_fault(Fault.SUSPEND_AT, offset)
    source.set_hold(Point.SUSPEND)
    running = pair.migrate("web1", "-e")
    helper = source.wait_held(Point.SUSPEND)
    session = pair.destination.session()
    (transport,) = transports(running.pid)
    running.kill()
    os.kill(helper, signal.SIGKILL)
    wait_for(lambda: not alive(transport), "the end of xensecure")
    wait_for(session.gone, "the session's processes to end")
    assert source.domains() == {"web1": "running"}
    assert pair.destination.xen.domains() == {}
    assert end_words(pair).startswith("failed: ")


@pytest.mark.parametrize("point", [FIRST_RECORD, READY, Point.UNPAUSE])
def test_launcher_restarted(pair: Pair, stream: Path, point: int | Point) -> None:
    """The launcher's main process killed and started anew: the session that runs meanwhile arrives, and the next one as well."""
    destination = pair.destination
    held = Held(pair, point)
    held.kill(destination.processes["xensecure-launcher"].pid)
    destination.processes["xensecure-launcher"].wait()
    destination.start_until_ready("xensecure-launcher")
    assert held.finish().status == 0
    assert destination.xen.digest("web1") == hashlib.sha256(stream.read_bytes()).hexdigest()
    assert end_words(pair) == "arrived; exit status 0"
    pair.source.xen.create_domain("web2", stream)
    assert pair.migrate("web2", "-e").wait().status == 0


@pytest.mark.parametrize("victim", ["transport", "receiver", "keeper", "xl"])
def test_killed_between_ready_and_go(pair: Pair, victim: str) -> None:
    """A session that ends when xl has READY and is about to write GO: the target destroys its copy, and the source resumes its own.

    Without its transport xl writes GO into nothing, leaves its domain suspended, and says so.
    """
    held = Held(pair, Point.RENAME)
    held.kill(held.transport if victim == "transport" else getattr(held.session, victim))
    wait_for(lambda: pair.destination.xen.domains() == {}, "the end of the copy")
    if victim == "transport":
        wait_for(lambda: not alive(held.transport), "the end of xensecure")
    outcome = held.finish()
    assert outcome.status != 0
    left = {"web1--migratedaway": "suspended"} if victim == "transport" else {"web1": "running"}
    assert pair.source.xen.domains() == left, outcome.stderr + pair.destination.log("xensecured") + pair.destination.log("xensecure-launcher")
    assert pair.destination.xen.domains() == {}
    assert ("xl resumes it here" in outcome.stderr) == (victim != "transport")


@pytest.mark.parametrize("victim", ["transport", "receiver"])
def test_killed_after_go(pair: Pair, victim: str) -> None:
    """A process killed after GO: the domain runs on the target, and the journal has the truth. Without its transport the source keeps a copy."""
    held = Held(pair, Point.UNPAUSE)
    held.kill(held.transport if victim == "transport" else held.session.receiver)
    wait_for(lambda: not alive(held.session.receiver), "the end of the receiver")
    outcome = held.finish()
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]
    assert end_words(pair).startswith("arrived")
    if victim == "receiver":
        # The launcher has read the report in its place, and gives it to the source, which asks.
        assert outcome.status == 0
        assert "xensecure: web1 moved to hv2: " in outcome.stderr
        assert pair.source.xen.domains() == {}
    else:
        assert outcome.status != 0
        assert pair.source.xen.domains() == {"web1--migratedaway": "suspended"}


def test_keeper_killed_after_go(pair: Pair) -> None:
    """The launcher's process killed after GO: the report goes through all the same."""
    held = Held(pair, Point.UNPAUSE)
    held.kill(held.session.keeper)
    assert held.finish().status == 0
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]


def test_target_xl_killed_after_go(pair: Pair) -> None:
    """The target's xl killed after GO: what it has made stays, for the source has let go of its own; both hosts say where to look."""
    held = Held(pair, Point.UNPAUSE)
    held.kill(held.session.xl)
    outcome = held.finish()
    assert outcome.status != 0
    assert pair.source.xen.domains() == {"web1--migratedaway": "suspended"}
    assert pair.destination.xen.domains() == {"web1": "paused"}
    assert end_words(pair).startswith("unknown")
    assert "killed by SIGKILL" in end_words(pair)


def test_target_xl_killed_between_go_and_rename(pair: Pair) -> None:
    """The target's xl killed when GO has come and its copy is still called --incoming: that copy is not destroyed."""
    pair.destination.xen.set_hold(Point.RENAME)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RENAME)
    session = pair.destination.session()
    os.kill(session.xl, signal.SIGKILL)
    assert running.wait().status != 0
    wait_for(session.gone, "the session's processes to end")
    assert pair.destination.xen.domains() == {"web1--incoming": "paused"}
    assert "unpause" in pair.destination.log("xensecure-launcher")


def test_xl_killed_before_the_header(pair: Pair) -> None:
    """The target's xl killed before a domain's name has come: nothing is destroyed, and the source fails cleanly."""
    process = pair.pipe()
    assert process.stdout
    assert process.stdout.read(10)
    session = pair.destination.session()
    os.kill(session.xl, signal.SIGKILL)
    assert process.wait(10) == 128 + signal.SIGKILL
    wait_for(session.gone, "the session's processes to end")
    assert pair.destination.last_end()["xl"] == "killed by SIGKILL"
    assert not pair.destination.xen.calls("libxl_domain_destroy")
    process.communicate()
