"""Lost links on real Xen: the same cut hits one guest that moves with xensecure and, the other way, one that moves with ssh."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.xen.common import say
from tests.xen.cut import Cut, again_after, configured, cut_for, journal_of, status_of
from tests.xen.hosts import HOSTS, Host
from tests.xen.moves import MOVE_SECONDS, Ticks, WrongError, expect, put_guest, seconds_of, start_migration, wait_for, where
from xensecure.proto import limits

A, B = HOSTS["a"], HOSTS["b"]
OURS, THEIRS = "g1", "g3"
AWAY, INCOMING = f"{THEIRS}--migratedaway", f"{THEIRS}--incoming"
# The window of the case in which it passes, and that case's cut: what both hosts wait for is over before they meet again.
WINDOW_SECONDS = 5
WINDOW_CUT_SECONDS = limits.SILENCE_SECONDS + WINDOW_SECONDS + limits.SILENCE_SECONDS + limits.HANDSHAKE_SECONDS + 15
# Longer than `silence`, so that the source knows that its link is gone when xl says GO, and shorter than the window behind it.
HELD_SECONDS = limits.SILENCE_SECONDS + 3
# For what a dead ssh's socket still sends: TCP tries again at 0.2, 0.6, 1.4 s and so on, and 51 s after the first time.
_LATE_SECONDS = 20


@dataclass(frozen=True)
class Way:
    """How a guest went: from where to where, xl's status and words."""

    guest: str
    source: Host
    target: Host
    status: int
    said: str


@dataclass
class Going:
    """A migration under way."""

    guest: str
    source: Host
    target: Host
    process: subprocess.Popen[str]

    def end(self) -> Way:
        """Wait for it."""
        said, _ = self.process.communicate(timeout=MOVE_SECONDS)
        return Way(self.guest, self.source, self.target, self.process.returncode, said)


def _go(guest: str, source: Host, target: Host, command: str) -> Going:
    return Going(guest, source, target, start_migration(source, target, guest, f"-s '{command}'"))


def _require_one(guest: str, host: Host, ticks: Ticks) -> None:
    """It runs on that host, under its own name, nowhere else under any; and all its ticks are one row."""
    wait_for(lambda: where(guest).keys() == {host.name}, f"{guest} on {host.name} alone", 40)
    expect(list(where(guest)[host.name]) == [guest], f"copies: {where(guest)}")
    ticks.wait(host)
    ticks.check()


def _journal(host: Host, guest: str, role: str) -> tuple[dict[str, Any], list[str]]:
    """How the guest's last session ended by a host's journal, and all events of it; the end is written a moment after xl's."""
    events: list[dict[str, Any]] = []

    def has_ended() -> bool:
        events[:] = journal_of(host, guest, role)
        return any(entry["event"] == "end" for entry in events)

    wait_for(has_ended, f"the end of {guest}'s session in the journal of {host.name}", 15)
    return next(entry for entry in events if entry["event"] == "end"), [entry["event"] for entry in events]


def _require_arrived(way: Way, ticks: Ticks) -> str:
    """All that the issue of a lost link is to be; in a few words."""
    expect(way.status == 0, f"xensecure: status {way.status}\n{way.said}")
    _require_one(way.guest, way.target, ticks)
    before, after = ticks.on(way.source)[-1], ticks.on(way.target)[0]
    expect(after.number == before.number + 1, f"last tick there {before.number}, first here {after.number}")
    again = again_after(way.said)
    for host, role in ((way.source, "source"), (way.target, "destination")):
        end, names = _journal(host, way.guest, role)
        expect((end["state"], end["status"]) == ("reported", 0), f"the journal of {host.name}: {end}")
        expect(("resumed" in names) == (again is not None), f"resumed {again}, the journal of {host.name}: {names}")
    lost = "waited" if "link lost" not in way.said else "link lost, the report by the destination's word (RESUME, OUTCOME)"
    lost = lost if again is None else f"link lost, connected again after {again:.1f} s"
    return f"{lost}, moved in {seconds_of(way.said):.1f} s, not running for {after.seen - before.seen - 0.1:.1f} s"


# ---- the control: ssh


@dataclass(frozen=True)
class Control:
    """What the cut has made of the guest that went with ssh: its copies when xl at the source ended, and whether the link was still cut then."""

    way: Way
    ticks: Ticks
    copies: dict[str, dict[str, str]]
    in_the_cut: bool

    def require_undefined(self) -> None:
        """The source's xl has given up, and its guest is suspended."""
        expect(self.way.status != 0 and "Domain state is now undefined" in self.way.said, f"ssh: status {self.way.status}\n{self.way.said}")
        expect("s" in self.copies.get(self.way.source.name, {}).get(AWAY, ""), f"copies after ssh's end: {self.copies}")


def _ssh_survived_or_failed(seen: Control) -> str:
    """After a cut that ssh may live through, what came of it is said, not judged."""
    took = f"{seconds_of(seen.way.said):.1f} s"
    if seen.way.status == 0:
        _require_one(seen.way.guest, seen.way.target, seen.ticks)
        return f"survived, {took}"
    if "resuming at sender" in seen.way.said:
        seen.ticks.wait(seen.way.source)
        return f"the migration fails after {took}, the guest goes on at the source"
    seen.require_undefined()
    return f"the migration fails after {took}, {_ssh_at_go(seen)}"


def _ssh_at_go(seen: Control) -> str:
    """GO lost: it runs nowhere while the link is cut; what comes of it then is the network's to decide."""
    seen.require_undefined()
    there = seen.copies.get(seen.way.target.name, {})
    expect("p" in there.get(INCOMING, "") or not seen.in_the_cut, f"the destination after ssh's end: {there}")
    try:
        seen.ticks.wait(seen.way.target, seconds=_LATE_SECONDS)
    except WrongError:
        left = where(seen.way.guest)
        expect("s" in left.get(seen.way.source.name, {}).get(AWAY, ""), f"copies: {left}")
        return f"the guest runs nowhere: {left}"
    copies = where(seen.way.guest)
    return f"the guest runs nowhere until GO comes out of a dead ssh's socket after all, then {copies}; xl calls its state undefined"


def _ssh_at_report(seen: Control) -> str:
    """Report lost: it runs, and xl at the source does not know."""
    seen.require_undefined()
    seen.ticks.wait(seen.way.target)
    seen.ticks.check()
    return f"the guest runs, and xl calls its state undefined: {where(seen.way.guest)}"


def _tidy(guest: str) -> None:
    for name, copies in where(guest).items():
        for copy in copies:
            HOSTS[name].sh(f"xl destroy {copy}", check=False)


# ---- the cases


@contextlib.contextmanager
def _same_cut(mode: str, point: str, seconds: float, here: Host, there: Host) -> Iterator[tuple[Way, Ticks, Control]]:
    """Both guests under way, cut at the same moment, both migrations at their end, and the hosts together again."""
    put_guest(mode, OURS, here)
    put_guest(mode, THEIRS, there)
    with contextlib.ExitStack() as stack:
        at_report = point == "report"
        if at_report:
            stack.enter_context(configured(there, '[receive]\nxl = "/usr/bin/lab-receive"\n', launcher=True))
        ours, theirs = stack.enter_context(Ticks(OURS)), stack.enter_context(Ticks(THEIRS))
        ours.wait(here)
        theirs.wait(there)
        cut = stack.enter_context(cut_for(2, seconds))
        first = _go(OURS, here, there, "xensecure" if at_report else f"lab-at {point} xensecure")
        second = _go(THEIRS, there, here, "lab-ssh lab-at report --" if at_report else f"lab-at {point} lab-ssh")
        other = second.end()
        control = Control(other, theirs, where(THEIRS), not cut.is_up)
        one = first.end()
        cut.wait_up()
        yield one, ours, control
    _tidy(THEIRS)


def _case(mode: str, point: str, seconds: float, here: Host, there: Host) -> str:
    is_long = seconds > limits.SILENCE_SECONDS
    with _same_cut(mode, point, seconds, here, there) as (way, ticks, control):
        words = _require_arrived(way, ticks)
        expect(not is_long or "link lost" in way.said, f"the source does not say that its link was lost\n{way.said}")
        # Where the destination had ended the session with its report, there is nothing to go on with: it is asked, and says how it ended.
        is_over = "peer" in _journal(way.source, way.guest, "source")[1]
        expect(not is_long or again_after(way.said) is not None or is_over, f"the source does not say that it is connected again\n{way.said}")
        say(f"    xensecure: {words}")
        judge = {"go": _ssh_at_go, "report": _ssh_at_report}[point] if is_long else _ssh_survived_or_failed
        beside = judge(control)
        say(f"    ssh: {beside}")
        if is_long:
            _require_refused(control.way)
    return f"xensecure: {words}; ssh: {beside}"


def _require_refused(way: Way) -> None:
    """``xensecurectl resume`` knows of no session there, and wants a reason of who has looked."""
    refused = way.source.sh(f"xensecurectl resume {way.guest}", check=False)
    expect(refused.status != 0 and "--force" in refused.out, f"resumed without a reason: {refused.out}")


def page_10(mode: str) -> str:
    """No link between the hosts for 10 s while memory is sent: xensecure and ssh side by side."""
    return _case(mode, "page", 10, A, B)


def go_10(mode: str) -> str:
    """No link for 10 s as xl says GO."""
    return _case(mode, "go", 10, B, A)


def go_40(mode: str) -> str:
    """No link for 40 s as xl says GO: with ssh the guest runs nowhere meanwhile."""
    return _case(mode, "go", 40, A, B)


def report_40(mode: str) -> str:
    """No link for 40 s as xl there reports: with ssh xl does not know where the guest runs."""
    return _case(mode, "report", 40, B, A)


def _require_back(way: Way, ticks: Ticks, *, told: str) -> None:
    """The source's xl goes on with its domain, no copy is left anywhere else, and both journals say that it never ran there."""
    expect(way.status != 0 and told in way.said, f"{way.guest}: status {way.status}, no {told!r}\n{way.said}")
    _require_one(way.guest, way.source, ticks)
    for host, role in ((way.source, "source"), (way.target, "destination")):
        end, _ = _journal(host, way.guest, role)
        # An xl there that had said "ready" reports that it does not start it, to whoever reads its output.
        expect(end["state"] == "not cleared" or (end["state"] == "reported" and end["status"] != 0), f"the journal of {host.name}: {end}")


def window_passes(mode: str) -> str:
    """No link for longer than ``resume_window``, in the page phase and between "ready" and GO; and GO lost for longer than ``final_window``."""
    put_guest(mode, "g1", A)
    for guest in ("g2", "g4"):
        put_guest(mode, guest, B)
    windows = f"-o resume_window={WINDOW_SECONDS} -o final_window={WINDOW_SECONDS}"
    with contextlib.ExitStack() as stack:
        for host in (A, B):
            stack.enter_context(configured(host, f"resume_window = {WINDOW_SECONDS}\n"))
        ticks = {guest: stack.enter_context(Ticks(guest)) for guest in ("g1", "g2", "g4")}
        for guest, host in (("g1", A), ("g2", B), ("g4", B)):
            ticks[guest].wait(host)
        cut = stack.enter_context(cut_for(3, WINDOW_CUT_SECONDS))
        # xl there restores one domain after the other: this one is at its GO before the second comes.
        late = _go("g4", B, A, f"lab-at go xensecure {windows}")
        cut.wait_asked(1)
        page, ready = _go("g1", A, B, "lab-at page xensecure"), _go("g2", B, A, f"lab-at go+{HELD_SECONDS:.0f} xensecure")
        cut.wait_cut()
        ways = {going.guest: going.end() for going in (page, ready, late)}
        expect(not cut.is_up, "the migrations ended after the hosts had met again")
        _require_back(ways["g1"], ticks["g1"], told="the domain stays on this host")
        _require_back(ways["g2"], ticks["g2"], told="xl resumes it here")
        _require_lost(ways["g4"], cut)
        cut.wait_up()
        _require_known(ways["g1"])
        _require_known(ways["g2"])
        back = _require_resumed(ways["g4"], ticks["g4"])
    for guest in ("g2", "g4"):
        B.sh(f"xl destroy {guest}")
    took = ", ".join(f"{seconds_of(way.said):.0f} s" for way in ways.values())
    return f"page phase and before GO: both go on at the source, nothing left there; GO lost for good: {back}; xl ended after {took}"


def _require_lost(way: Way, cut: Cut) -> None:
    """Its ``final_window`` has passed: suspended here, and its copy there is destroyed while the hosts have not met."""
    expect(way.status != 0 and "asks xen-a" in way.said, f"{way.guest}: status {way.status}\n{way.said}")
    wait_for(lambda: list(where(way.guest)) == [way.source.name], f"no copy of {way.guest} there", 60)
    expect(not cut.is_up, "the copy there was destroyed only when the hosts had met again")
    copies = where(way.guest)[way.source.name]
    expect(list(copies) == [f"{way.guest}--migratedaway"] and "s" in copies[f"{way.guest}--migratedaway"], f"copies: {copies}")


def _status(host: Host, guest: str) -> dict[str, Any]:
    verdict = status_of(host, guest)
    for line in (verdict["words"], f"held by {verdict['host']} ({verdict['sure']})", *verdict["evidence"]):
        say(f"    {host.hostname}: {line}")
    return verdict


def _require_known(way: Way) -> None:
    """Both hosts say where it is, and in their history how that came."""
    for host in (way.source, way.target):
        verdict = _status(host, way.guest)
        expect(verdict["host"] == way.source.hostname and verdict["well"], f"status on {host.name}: {verdict}")
        history = host.sh(f"xensecurectl history {way.guest}").out.splitlines()
        expect(way.source.hostname in history[-1] and way.target.hostname in history[-1], f"history on {host.name}: {history}")
        expect("link lost" in history[-1] or "failed" in history[-1], f"history on {host.name}: {history}")


def _require_resumed(way: Way, ticks: Ticks) -> str:
    """The hosts have met again: the other one's word is enough to resume it."""
    before = _status(way.source, way.guest)
    expect(before["may_resume"], f"status on {way.source.name}: {before}")
    way.source.sh(f"xensecurectl resume {way.guest}")
    _require_one(way.guest, way.source, ticks)
    after = status_of(way.source, way.guest)
    expect(after["host"] == way.source.hostname and after["well"], f"status on {way.source.name} after the resumption: {after}")
    return "'xensecurectl status' asks the other host, 'resume' brings it back, not a tick lost"
