"""A lost link (docs/protocol.md, section 7) with the real xl at both ends: what was cut goes on, or ends with what is true."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Host, Pair, transports, wait_for
from tests.wires import Wires
from tests.xl.hosts import Fault, Outcome, Point, Running, XenHost, running_copies
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link.config import load_config
from xensecure.link.identity import load_credentials
from xensecure.proto import limits, messages
from xensecure.proto.messages import OutcomeState
from xensecure.source.guard import Guard
from xensecure.source.query import ask_outcome
from xensecure.source.resume import resume_session

WINDOW = 4 << 20
AGAIN = "connected again after "
MIDDLE = 9_000_000  # an offset in the stream
# Where a host stands still, and whether it is the destination.
HOLDS = {"middle": (Point.RESTORE, True), "ready": (Point.READY, True), "go": (Point.RENAME, False), "going": (Point.UNPAUSE, True)}


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts with short patience; the destination holds little, so that a held xl holds the source."""
    extra = "[defaults]\nkeepalive = 1\nsilence = 2\n"
    with Pair(source_extra=extra, destination_extra=f"window = {WINDOW}\n{extra}", resume_window=3) as made:
        yield made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB in two passes."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(24, seed=7, passes=2))


class Held:
    """A migration over wires that stands still at a point."""

    def __init__(self, pair: Pair, where: str, options: str = "") -> None:
        self.pair = pair
        self.point, at_destination = HOLDS[where]
        self.host: XenHost = pair.destination.xen if at_destination else pair.source.xen
        if self.point is Point.RESTORE:
            self.host.set_fault(Fault.RESTORE_AT, MIDDLE)
        self.host.set_hold(self.point)
        self.wires = Wires(pair.destination.port)
        self.running: Running = pair.migrate("web1", "-e", transport=f"-v -p {self.wires.port} {options}")
        self.host.wait_held(self.point)

    def lose(self, *, for_good: bool = True) -> None:
        """Cut the link; ``for_good``: and let no other through."""
        self.wires.refusing = for_good
        self.wires.all[-1].cut()

    def release(self) -> None:
        """Let the host go on."""
        self.host.release(self.point)

    def end(self) -> Outcome:
        """What xl at the source makes of it."""
        with self.wires:
            return self.running.wait()

    def copies(self) -> list[XenHost]:
        """The hosts on which the domain runs."""
        return running_copies("web1", self.pair.source.xen, self.pair.destination.xen)

    def session_id(self) -> bytes:
        """By the source's journal."""
        return bytes.fromhex(next(entry["session"] for entry in self.pair.source.journal() if entry["event"] == "start"))


def _ask(pair: Pair, session: bytes, word: OutcomeState = OutcomeState.UNKNOWN) -> messages.Outcome:
    return ask_outcome(load_config(str(pair.source.config)), "hv2", session, messages.Outcome(word))


def _arrived(held: Held, outcome: Outcome, resumptions: int) -> None:
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.count(AGAIN) == resumptions
    assert held.copies() == [held.pair.destination.xen]
    end = held.pair.destination.last_end()
    assert (end["outcome"], end["state"], end["status"]) == ("arrived", "reported", 0)
    source_end = held.pair.source.last_end()  # xl does not wait for it
    assert (source_end["event"], source_end["state"], source_end["status"], source_end["heard"]) == ("end", "reported", 0, True)


@pytest.mark.parametrize("where", sorted(HOLDS))
def test_cut_is_survived(pair: Pair, where: str) -> None:
    """The link is cut twice while one of the hosts stands still: others take its place, and the domain arrives."""
    held = Held(pair, where)
    for count in (2, 3):
        held.lose(for_good=False)
        held.wires.wait(count)
        wait_for(lambda count=count: held.running.stderr().count(AGAIN) == count - 1, "the session to go on")
    held.release()
    _arrived(held, held.end(), 2)
    assert pair.destination.last_end()["resumptions"] == 2


def test_black_hole_is_found_and_survived(pair: Pair) -> None:
    """Nothing comes through any more, and nobody says so: both ends notice by the silence, and a new link takes over."""
    held = Held(pair, "middle")
    held.wires.all[0].stall()
    wait_for(lambda: AGAIN in held.running.stderr(), "a new link", 10)
    held.release()
    outcome = held.end()
    assert "nothing came from the destination any more" in outcome.stderr
    _arrived(held, outcome, 1)


def test_changed_byte_is_survived(pair: Pair) -> None:
    """A byte is changed on the way: said as what it is, nothing of the frame is released, and a new link brings what was sent."""
    held = Held(pair, "middle")
    held.wires.all[0].spoil = True
    held.release()
    outcome = held.end()
    _arrived(held, outcome, 1)
    assert "SECURITY: a frame's tag does not hold" in pair.destination.log("xensecured")


def test_source_may_resume_a_link_that_the_destination_holds_for_alive(pair: Pair) -> None:
    """The source alone has lost it: the destination ends its own end when the new one comes (S4)."""
    held = Held(pair, "middle", "-o silence=60")
    wire = held.wires.all[0]
    wire.stall()
    wire.cut_near()
    wait_for(lambda: AGAIN in held.running.stderr(), "a new link", 10)
    held.release()
    _arrived(held, held.end(), 1)


def test_window_passes_before_go(pair: Pair) -> None:
    """No new link in time: the destination destroys its copy, the source keeps the domain, and both journals say so (S6, S10)."""
    held = Held(pair, "ready")
    held.lose()
    outcome = held.end()
    assert outcome.status != 0
    assert "no new one within 3 s" in outcome.stderr
    assert "xl waits while a new connection is tried for 3 s" in outcome.stderr
    assert held.copies() == [pair.source.xen]
    held.release()
    end = pair.destination.last_end()
    assert end["state"] in ("not cleared", "reported")
    assert not (end["state"] == "reported" and end["status"] == 0)
    assert pair.destination.xen.domains() == {}
    assert pair.source.journal()[-1]["state"] == "not cleared"


def test_go_that_never_left(pair: Pair) -> None:
    """The link is lost before xl's last word, and no other comes: it cannot have cleared anything, and xl gets its domain back (S8)."""
    held = Held(pair, "go")
    held.lose()
    wait_for(lambda: held.wires.refused, "an attempt")
    held.release()
    outcome = held.end()
    assert outcome.status != 0
    assert "it does not run there, and xl resumes it here" in outcome.stderr
    assert held.copies() == [pair.source.xen]
    assert pair.source.xen.domains() == {"web1": "running"}
    assert pair.destination.last_end()["state"] in ("not cleared", "reported")
    assert pair.destination.xen.domains() == {}


@pytest.mark.parametrize("fails", [False, True], ids=["starts", "fails"])
def test_report_after_the_window(pair: Pair, fails: bool) -> None:
    """The link is lost with GO delivered, for longer than the destination waits: its journal has the report meanwhile, which is replayed (S9)."""
    if fails:
        pair.destination.xen.set_fault(Fault.UNPAUSE_FAIL)
    held = Held(pair, "going")
    held.lose()
    held.release()
    wait_for(lambda: any(entry["event"] == "end" for entry in pair.destination.journal()), "the destination to end", 30)
    assert transports(held.running.pid), "xl at the source must still wait"
    assert pair.source.xen.running() == []
    held.wires.refusing = False
    outcome = held.end()
    if fails:
        assert outcome.status != 0
        assert held.copies() == [pair.source.xen]
        assert "it does not run there, and xl resumes it here" in outcome.stderr
        return
    _arrived(held, outcome, 0)


def test_sigterm_while_waiting_for_the_outcome(pair: Pair) -> None:
    """The operator ends the wait: what is known and where to ask is said, and the journal answers when it can be reached again (S8, S11)."""
    held = Held(pair, "going")
    held.lose()
    wait_for(lambda: held.wires.refused > 1, "attempts")
    held.release()
    (transport,) = transports(held.running.pid)
    os.kill(transport, signal.SIGTERM)
    outcome = held.end()
    assert outcome.status != 0
    assert "stopped by SIGTERM; xl had already cleared the domain to run there: 'xensecurectl status web1' asks hv2" in outcome.stderr
    assert pair.source.journal()[-1]["state"] == "cleared"
    pair.destination.last_end()
    answer = _ask(pair, held.session_id(), OutcomeState.CLEARED)
    assert (answer.state, answer.status) == (OutcomeState.REPORTED, 0)
    heard = [entry for entry in pair.destination.journal() if entry["event"] == "peer"]
    assert [entry["state"] for entry in heard] == ["cleared"]


def test_query(pair: Pair) -> None:
    """What the destination says of sessions that go on, that are over, and that never were."""
    assert _ask(pair, secrets.token_bytes(16)).state is OutcomeState.UNKNOWN
    held = Held(pair, "ready")
    session = held.session_id()
    assert _ask(pair, session).state is OutcomeState.GOING_ON
    held.release()
    _arrived(held, held.end(), 0)
    answer = _ask(pair, session)
    assert (answer.state, answer.status) == (OutcomeState.REPORTED, 0)
    assert [entry["event"] for entry in pair.destination.journal()].count("peer") == 2


def test_keeper_is_killed_at_go(pair: Pair) -> None:
    """GO is not delivered without the journal's word (S7): the destination gives up, and the source gets its domain back."""
    held = Held(pair, "go")
    keeper = pair.destination.session().keeper
    os.kill(keeper, signal.SIGSTOP)
    held.release()
    wait_for(lambda: pair.source.xen.domains() != {} and any(e["event"] == "go" for e in pair.source.journal()), "GO")
    time.sleep(1)
    assert pair.destination.xen.running() == []
    os.kill(keeper, signal.SIGKILL)
    outcome = held.end()
    assert outcome.status != 0
    assert held.copies() == [pair.source.xen]


def test_sessions_of_others(pair: Pair, tmp_path: Path) -> None:
    """A host that has proved itself can neither resume another's session nor learn of it: the answer is that to an id that never was."""
    (tmp_path / "hv3").mkdir()
    third = Host(tmp_path / "hv3", "hv3")
    third.ctl("init")
    third.ctl("join", pair.destination.invite())
    config = load_config(str(third.config))
    held = Held(pair, "middle")
    session = held.session_id()
    guard = Guard(config.defaults, wake=lambda: None)
    answers = [
        ask_outcome(config, "hv2", session, messages.Outcome(OutcomeState.NOT_CLEARED)),
        ask_outcome(config, "hv2", secrets.token_bytes(16), messages.Outcome(OutcomeState.UNKNOWN)),
        resume_session(config, load_credentials(config), "hv2", config.defaults, guard, session),
        resume_session(config, load_credentials(config), "hv2", config.defaults, guard, secrets.token_bytes(16)),
    ]
    assert len(set(answers)) == 1
    assert isinstance(answers[0], messages.Outcome)
    assert answers[0].state is OutcomeState.UNKNOWN
    assert f"SECURITY: hv3 wanted to join session {session.hex()}, which is hv1's" in pair.destination.log("xensecure-launcher")
    held.release()
    _arrived(held, held.end(), 0)
    assert "peer" not in [entry["event"] for entry in pair.destination.journal()]
    pair.destination.ctl("forget", "hv3")


def test_words_of_a_peer_are_bounded(pair: Pair) -> None:
    """However often a source says what it knows, the journal keeps the first words."""
    held = Held(pair, "ready")
    session = held.session_id()
    held.release()
    _arrived(held, held.end(), 0)
    for _ in range(limits.PEER_WORDS_MAX + 2):
        assert _ask(pair, session).state is OutcomeState.REPORTED
    assert [entry["event"] for entry in pair.destination.journal()].count("peer") == limits.PEER_WORDS_MAX
