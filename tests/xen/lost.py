"""Lost links on real Xen: the same cut hits one guest that moves with xensecure and, the other way, one that moves with ssh."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Way:
    """How a guest went: from where to where, xl's status and words."""

    guest: str
    source: Host
    target: Host
    status: int
    said: str

    @property
    def words(self) -> list[str]:
        """What xensecure itself said."""
        return [line for line in self.said.replace("\r", "\n").splitlines() if line.startswith("xensecure:")]


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


def _require_arrived(way: Way, ticks: Ticks) -> str:
    """All that the issue of a lost link is to be; in a few words."""
    expect(way.status == 0, f"xensecure: status {way.status}\n{way.said}")
    _require_one(way.guest, way.target, ticks)
    before, after = ticks.on(way.source)[-1], ticks.on(way.target)[0]
    expect(after.number == before.number + 1, f"last tick there {before.number}, first here {after.number}")
    again = again_after(way.said)
    for host, role in ((way.source, "source"), (way.target, "destination")):
        events = journal_of(host, way.guest, role)
        end, names = events[-1], [entry["event"] for entry in events]
        expect((end["event"], end.get("state"), end.get("status")) == ("end", "reported", 0), f"the journal of {host.name}: {events}")
        expect(("resumed" in names) == (again is not None), f"resumed {again}, the journal of {host.name}: {names}")
    lost = "waited" if again is None else f"link lost, connected again after {again:.1f} s"
    return f"{lost}, moved in {seconds_of(way.said):.1f} s, not running for {after.seen - before.seen - 0.1:.1f} s"


# ---- the control: ssh


def _is_suspended(way: Way) -> bool:
    return "s" in where(way.guest).get(way.source.name, {}).get(AWAY, "")


def _ssh_survived_or_failed(way: Way, ticks: Ticks) -> str:
    """After a cut that ssh may live through, what came of it is said, not judged."""
    copies = where(way.guest)
    if way.status == 0:
        _require_one(way.guest, way.target, ticks)
        return f"survived: {seconds_of(way.said):.1f} s"
    if "resuming at sender" in way.said:
        ticks.wait(way.source)
        return f"the migration failed, the guest goes on at the source; copies {copies}"
    expect(_is_suspended(way), f"ssh: {copies}\n{way.said}")
    return f"domain state undefined; copies {copies}"


def _ssh_at_go(way: Way, ticks: Ticks) -> str:
    """GO lost: it runs nowhere."""
    expect(way.status != 0 and "Domain state is now undefined" in way.said, f"ssh: status {way.status}\n{way.said}")
    expect(_is_suspended(way), f"the source after ssh's end: {where(way.guest)}")
    expect(not ticks.on(way.target), "it ticks at the destination")
    there = where(way.guest).get(way.target.name, {})
    expect(list(there) in ([], [INCOMING]), f"the destination after ssh's end: {there}")
    left = f"a paused {INCOMING} stays at the destination" if there else "the destination has destroyed its copy"
    return f"the guest runs nowhere: suspended as {AWAY}, {left}"


def _ssh_at_report(way: Way, ticks: Ticks) -> str:
    """Report lost: it runs, and xl at the source does not know."""
    expect(way.status != 0 and "Domain state is now undefined" in way.said, f"ssh: status {way.status}\n{way.said}")
    expect(_is_suspended(way), f"the source after ssh's end: {where(way.guest)}")
    ticks.wait(way.target)
    ticks.check()
    names = {name: list(copies) for name, copies in where(way.guest).items()}
    return f"two names on two hosts, xl calls the state undefined: {names}"


def _tidy(guest: str) -> None:
    for name, copies in where(guest).items():
        for copy in copies:
            HOSTS[name].sh(f"xl destroy {copy}", check=False)


# ---- the cases


def _same_cut(mode: str, point: str, seconds: float, here: Host, there: Host) -> tuple[Way, Way, Ticks, Ticks, contextlib.ExitStack]:
    """Both guests under way, cut at the same moment, and met again; the ticks are still followed until the stack is closed."""
    put_guest(mode, OURS, here)
    put_guest(mode, THEIRS, there)
    with contextlib.ExitStack() as stack:
        at_report = point == "report"
        if at_report:
            stack.enter_context(configured(there, '[receive]\nxl = "/usr/bin/lab-receive"\n', launcher=True))
        ours, theirs = stack.enter_context(Ticks(OURS)), stack.enter_context(Ticks(THEIRS))
        ours.wait(here)
        theirs.wait(there)
        cut: Cut = stack.enter_context(cut_for(2, seconds))
        first = _go(OURS, here, there, "xensecure" if at_report else f"lab-at {point} xensecure")
        second = _go(THEIRS, there, here, "lab-ssh lab-at report --" if at_report else f"lab-at {point} lab-ssh")
        one, other = first.end(), second.end()
        cut.wait_up()
        return one, other, ours, theirs, stack.pop_all()
    raise AssertionError


def _case(mode: str, point: str, seconds: float, here: Host, there: Host) -> str:
    one, other, ours, theirs, stack = _same_cut(mode, point, seconds, here, there)
    with stack:
        words = _require_arrived(one, ours)
        silence = limits.SILENCE_SECONDS
        expect(seconds < silence or again_after(one.said) is not None, f"the source does not say that it is connected again\n{one.said}")
        say(f"    xensecure: {words}")
        control = {"go": _ssh_at_go, "report": _ssh_at_report}.get(point, _ssh_survived_or_failed)
        beside = (control if seconds > silence else _ssh_survived_or_failed)(other, theirs)
        say(f"    ssh: {beside}")
        if point == "go" and seconds > silence:
            beside += f"; {_brought_back(other, theirs)}"
    _tidy(THEIRS)
    return f"xensecure: {words}; ssh: {beside}"


def _brought_back(way: Way, ticks: Ticks) -> str:
    """``xensecurectl resume`` of what ssh has left suspended: not without a reason, for no session is known."""
    host = way.source
    refused = host.sh(f"xensecurectl resume {way.guest}", check=False)
    expect(refused.status != 0 and "--force" in refused.out and _is_suspended(way), f"resumed without a reason: {refused.out}")
    way.target.sh(f"xl destroy {INCOMING}", check=False)
    host.sh(f"xensecurectl resume {way.guest} --force 'it runs nowhere: looked at both hosts'")
    _require_one(way.guest, host, ticks)
    return "'xensecurectl resume' brings it back, not a tick lost"


def page_10(mode: str) -> str:
    """No link between the hosts for 10 s while memory is sent: xensecure and ssh side by side."""
    return _case(mode, "page", 10, A, B)


def go_10(mode: str) -> str:
    """No link for 10 s as xl says GO."""
    return _case(mode, "go", 10, B, A)


def go_40(mode: str) -> str:
    """No link for 40 s as xl says GO: with ssh the guest runs nowhere, and ``xensecurectl resume`` brings it back."""
    return _case(mode, "go", 40, A, B)


def report_40(mode: str) -> str:
    """No link for 40 s as xl there reports: with ssh nobody knows where the guest runs."""
    return _case(mode, "report", 40, B, A)


def _require_back(way: Way, ticks: Ticks, *, told: str) -> None:
    """The source's xl goes on with its domain, no copy is left anywhere else, and both journals say that it never ran there."""
    expect(way.status != 0 and told in way.said, f"{way.guest}: status {way.status}, no {told!r}\n{way.said}")
    _require_one(way.guest, way.source, ticks)
    for host, role in ((way.source, "source"), (way.target, "destination")):
        end = journal_of(host, way.guest, role)[-1]
        expect((end["event"], end.get("state")) == ("end", "not cleared"), f"the journal of {host.name}: {end}")


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


def _require_known(way: Way) -> None:
    """Both hosts say where it is, and in their history how that came."""
    for host in (way.source, way.target):
        verdict, shown = status_of(host, way.guest)
        expect(verdict.get("host") == way.source.hostname, f"status on {host.name}: {shown}")
        history = host.sh(f"xensecurectl history {way.guest}").out
        expect(way.target.hostname in history.splitlines()[-1], f"history on {host.name}: {history}")
        for line in shown.splitlines():
            say(f"    {host.hostname}: {line}")


def _require_resumed(way: Way, ticks: Ticks) -> str:
    """The hosts have met again: the other one's word is enough to resume it."""
    before, shown = status_of(way.source, way.guest)
    expect(before.get("may_resume") is True, f"status on {way.source.name}: {shown}")
    for line in shown.splitlines():
        say(f"    {way.source.hostname}: {line}")
    way.source.sh(f"xensecurectl resume {way.guest}")
    _require_one(way.guest, way.source, ticks)
    after, shown = status_of(way.source, way.guest)
    if after.get("host") != way.source.hostname:
        raise WrongError(f"status on {way.source.name} after the resumption: {shown}")
    return "'xensecurectl status' asks the other host, 'resume' brings it back, not a tick lost"
