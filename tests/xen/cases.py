"""The tests with real Xen. Each takes the mode and returns what it has seen, in a few words; WrongError when that is not right."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.xen.attack import attacked
from tests.xen.compare import beside_others
from tests.xen.cut import again_after, configured
from tests.xen.hosts import HOSTS, Host
from tests.xen.lost import go_10, go_40, page_10, report_40, window_passes
from tests.xen.memory import promised
from tests.xen.moves import (
    DESTINATION_SECONDS,
    MOVE_SECONDS,
    XENSECURE,
    Ticks,
    expect,
    migrate,
    move,
    no_session,
    put_guest,
    seconds_of,
    session,
    start_migration,
    summary,
    wait_for,
    where,
)
from tests.xen.remus import replicated
from tests.xen.userland import database

A, B = HOSTS["a"], HOSTS["b"]
ROUNDS = 3


def prepare() -> None:
    """What listens on both hosts beside xensecure's own sockets; and the launcher, whose first start takes an emulated CPU seconds."""
    script = "systemctl start xensecure-launcher.service; systemctl --quiet is-active lab-socat || lab-socat --listen"
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: host.sh(script), HOSTS.values()))
    for host in HOSTS.values():
        wait_for(lambda host=host: "ready for receivers" in host.sh("journalctl -u xensecure-launcher").out, "the launcher", 60)  # type: ignore[misc]


def paired() -> bool:
    """Whether the hosts know each other."""
    return B.hostname in A.sh("xensecurectl peers").out


def _paired() -> None:
    for host, other in ((A, B), (B, A)):
        peers = host.sh("xensecurectl peers").out
        expect(other.hostname in peers and "key generation 1" in peers, f"peers of {host.name}: {peers}")


def pair_by_enroll(_mode: str) -> str:
    """``enroll --ssh`` pairs both, ``forget`` undoes it on each."""
    A.sh(f"xensecurectl enroll --ssh root@{B.hostname}")
    _paired()
    A.sh(f"xensecurectl forget {B.hostname}")
    B.sh(f"xensecurectl forget {A.hostname}")
    return "paired, and forgotten"


def pair_by_token(_mode: str) -> str:
    """``invite`` there, ``join -`` here."""
    lines = B.sh("xensecurectl invite 2>/dev/null").out.split()
    A.sh("xensecurectl join -", stdin=f"{lines[-1]}\n")
    _paired()
    return "paired"


def there_and_back(mode: str) -> str:
    """Three times there and back while the guest writes to its memory and counts."""
    put_guest(mode, "g1", A)
    moves = []
    for _ in range(ROUNDS):
        moves += [move(A, B, "g1"), move(B, A, "g1")]
    return summary(moves)


def two_cpus(mode: str) -> str:
    """A guest with two CPUs, both at work, there and back."""
    put_guest(mode, "smp", A)
    moves = [move(A, B, "smp"), move(B, A, "smp")]
    expect({one.cpus for one in moves} == {2}, f"CPUs at work: {[one.cpus for one in moves]}")
    A.sh("xl destroy smp")
    return summary(moves)


def options_arrive(mode: str) -> str:
    """``xl -t -v migrate -e -p --debug``: the command line of xl there, its details here, no monitor, paused."""
    put_guest(mode, "g1", A)
    with Ticks("g1") as ticks:
        ticks.wait(A)
        started = start_migration(A, B, "g1", f"-e -p --debug {XENSECURE}", "-t -v")
        xl = session(B)["xl"]
        words = B.sh(f"tr '\\0' ' ' </proc/{xl}/cmdline").out.split()[1:]
        said, _ = started.communicate(timeout=MOVE_SECONDS)
        expect(started.returncode == 0, f"status {started.returncode}\n{said}")
        expect(words == ["-t", "-v", "migrate-receive", "-e", "-d", "-p"], f"xl there had {words}")
        # What the domain builder of the receiving xl says at this level comes back here; -t only changes how a terminal shows it.
        expect("domainbuilder: detail" in said, f"xl there does not say more with -v: {said}")
        before = len(ticks.on(B))
        state = B.domains().get("g1", "missing")
        expect("p" in state, f"g1 there is {state}, not paused")
        monitors = B.sh("pgrep -f '/xl .*migrate-receive'", check=False).out.split()
        expect(not monitors, f"monitors there in spite of -e: {monitors}")
        expect(len(ticks.on(B)) == before == 0, "a paused guest ticks")
        B.sh("xl unpause g1")
        ticks.wait(B)
        ticks.check()
    return f"xl {' '.join(words)}; paused there until unpaused, no monitor"


def _goes_on(guest: str, ticks: Ticks, host: Host) -> None:
    """It ticks on, in one row, and is on that host only: at the latest when a destination waits for nobody any more."""
    wait_for(lambda: list(where(guest)) == [host.name], f"{guest} on {host.name} alone, no --incoming", DESTINATION_SECONDS)
    expect(list(where(guest)[host.name]) == [guest], f"copies: {where(guest)}")
    ticks.wait(host)
    ticks.check()


def _kill(mode: str, victim: str) -> str:
    put_guest(mode, "g1", A)
    with Ticks("g1") as ticks:
        ticks.wait(A)
        started = start_migration(A, B, "g1")
        pids = session(B)
        time.sleep(1.5)
        if victim == "transport":
            A.sh("pkill -9 -x xensecure")
        else:
            B.sh(f"kill -9 {pids[victim]}")
        said, _ = started.communicate(timeout=MOVE_SECONDS)
        expected = B if started.returncode == 0 else A
        _goes_on("g1", ticks, expected)
        wait_for(lambda: no_session(B), "nothing of the session left", DESTINATION_SECONDS)
    if victim != "launcher":
        expect(expected is A, f"it moved although the {victim} was killed: {said}")
    words = [line for line in said.splitlines() if line.startswith("xensecure:")]
    outcome = "moved all the same" if expected is B else "runs at the source"
    return f"{outcome} after {seconds_of(said):.1f} s; {words[-1][:150] if words else 'no words'}"


def _killer(victim: str) -> Callable[[str], str]:
    def case(mode: str) -> str:
        return _kill(mode, victim)

    case.__doc__ = f"kill -9 of the {victim} in mid stream."
    return case


def restart_with_monitor(mode: str) -> str:
    """The units are restarted while the monitor of a guest that arrived lives: both go on."""
    put_guest(mode, "g1", A)
    move(A, B, "g1")
    before = B.sh("pgrep -f '/xl .*migrate-receive'", check=False).out.split()
    expect(len(before) == 1, f"monitors: {before}")
    with Ticks("g1") as ticks:
        ticks.wait(B)
        B.sh("systemctl restart xensecured.socket xensecure-launcher.socket xensecure-launcher.service")
        after = B.sh("pgrep -f '/xl .*migrate-receive'", check=False).out.split()
        expect(after == before, f"the monitor was {before}, is {after}")
        ticks.wait(B, 10)
        ticks.check()
    move(B, A, "g1")
    return f"monitor {before[0]} lives, and the guest moved on"


def opposite_directions(mode: str) -> str:
    """Two guests at once, one each way."""
    put_guest(mode, "g1", A)
    put_guest(mode, "g2", B)
    with Ticks("g1") as first, Ticks("g2") as second:
        first.wait(A)
        second.wait(B)
        runs = [start_migration(A, B, "g1"), start_migration(B, A, "g2")]
        said = [run.communicate(timeout=MOVE_SECONDS)[0] for run in runs]
        expect([run.returncode for run in runs] == [0, 0], "\n".join(said))
        _goes_on("g1", first, B)
        _goes_on("g2", second, A)
    A.sh("xl destroy g2")
    return f"{seconds_of(said[0]):.1f} s and {seconds_of(said[1]):.1f} s"


def _man(mode: str, kind: str) -> str:
    """A man in the middle, put there by forged ARP: only bytes that are passed on as they are bring a guest anywhere."""
    put_guest(mode, "g1", A)
    arrives = kind in ("pass", "flip")
    with contextlib.ExitStack() as stack:
        if kind == "flip-all":  # he does not let go, so the window decides
            for host in (A, B):
                stack.enter_context(configured(host, "resume_window = 5\n"))
        ticks = stack.enter_context(Ticks("g1"))
        ticks.wait(A)
        begin = B.sh("date +%s").out.strip()
        with attacked(kind, A, B) as man:
            done = migrate(A, B, "g1")
            seen = man.report()
        words = [line for line in done.out.replace("\r", "\n").splitlines() if line.startswith("xensecure:") and "sent before" not in line]
        expect(man.was_between(), f"he was not in between: {seen}\n{done.out}")
        expect((done.status == 0) == arrives, f"status {done.status}\n{done.out}")
        _goes_on("g1", ticks, B if arrives else A)
        wait_for(lambda: no_session(B), "nothing of the session left", DESTINATION_SECONDS)
    noticed = _noticed_on(B, begin)
    expect((noticed >= man.changed) if man.changed else noticed == 0, f"he changed {man.changed} connections, {noticed} were noticed")
    if kind.startswith("flip"):
        expect(man.changed, f"he changed nothing: {seen}")
        expect(again_after(done.out) is not None or not arrives, f"the source does not say that it is connected again\n{done.out}")
    again = again_after(done.out)
    said = f"noticed {noticed} times there; " if noticed else ""
    said += f"connected again after {again:.1f} s; " if again else ""
    return f"{'moved' if arrives else 'refused'} after {seconds_of(done.out):.1f} s; he: {seen}; {said}{words[-1][:150] if words else 'no words'}"


def _noticed_on(host: Host, begin: str) -> int:
    """How many times receivers have said that the data was changed on the way."""
    said = host.sh(f"journalctl --no-pager --since=@{begin} --unit='xensecured@*'").out
    return sum("SECURITY" in line and "the data was changed on the way" in line and "link lost" in line for line in said.splitlines())


def _middle(kind: str, words: str) -> Callable[[str], str]:
    def case(mode: str) -> str:
        return _man(mode, kind)

    case.__doc__ = words
    return case


CASES: dict[str, Callable[[str], str]] = {
    "enroll": pair_by_enroll,
    "token": pair_by_token,
    "moves": there_and_back,
    "smp": two_cpus,
    "bank": database,
    "options": options_arrive,
    "restart": restart_with_monitor,
    "opposite": opposite_directions,
    "memory": promised,
    "cut": page_10,
    "cut-go": go_10,
    "cut-go-40": go_40,
    "cut-report-40": report_40,
    "window": window_passes,
    "kill-receiver": _killer("receiver"),
    "kill-keeper": _killer("keeper"),
    "kill-launcher": _killer("launcher"),
    "kill-xl": _killer("xl"),
    "kill-transport": _killer("transport"),
    "man-passes": _middle("pass", "A man in the middle by ARP who passes everything on: he can, and reads nothing."),
    "man-flips": _middle("flip", "The same changes one bit of the stream: it goes on over a new connection."),
    "man-flips-all": _middle("flip-all", "He changes a bit in every connection: no window lasts for ever."),
    "man-own-key": _middle("own", "He answers with a TLS key of his own."),
    "man-stolen-keys": _middle("stolen", "He has both hosts' TLS keys, but not the link key."),
    "compare": beside_others,
    "remus": replicated,
}
# What depends on the kind of guest, or on the hypervisor; the rest is the same for both, and is done with the first.
WITH_EVERY_GUEST = ("token", "moves", "smp", "kill-xl")
