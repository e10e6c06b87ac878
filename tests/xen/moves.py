"""Guests, their ticks, and one move of one: what the tests with real Xen are made of."""

from __future__ import annotations

import itertools
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.xen.common import say
from tests.xen.hosts import HOSTS, Done, Host, together
from xensecure.proto import limits

XENSECURE = "-s xensecure"
MOVE_SECONDS = 240
# In which a destination has ended a session whose source does not come back (docs/protocol.md, S6), and its xl what it had begun.
DESTINATION_SECONDS = limits.RESUME_SECONDS + limits.SILENCE_SECONDS + limits.HANDSHAKE_SECONDS + 40


class WrongError(Exception):
    """Something is not as it must be."""


def expect(condition: object, what: str) -> None:
    """WrongError unless it holds."""
    if not condition:
        raise WrongError(what)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait until something holds; WrongError if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        expect(time.monotonic() < end, f"{what}: not within {seconds:.0f} s")
        time.sleep(0.3)


@dataclass(frozen=True)
class Tick:
    """One tick of a guest: when it was seen here, its number, the guest's boot, whether its memory was as it had written it, its CPUs."""

    seen: float
    number: int
    boot: str
    good: bool
    cpus: int


@dataclass
class Ticks:
    """A guest's ticks on both hosts, from now on, by one clock: this machine's."""

    guest: str
    by_host: dict[str, list[Tick]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._feeds = {name: host.popen(f"exec lab-ticks {self.guest}") for name, host in HOSTS.items()}
        started = []
        for name, feed in self._feeds.items():
            self.by_host[name] = []
            event = threading.Event()
            started.append(event)
            threading.Thread(target=self._read, args=(feed, self.by_host[name], event), daemon=True).start()
        for event in started:
            expect(event.wait(30), "no feed of ticks")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for feed in self._feeds.values():
            feed.kill()
            feed.wait()

    @staticmethod
    def _read(feed: subprocess.Popen[str], into: list[Tick], started: threading.Event) -> None:
        assert feed.stdout is not None
        for line in feed.stdout:
            words = line.split()
            if words == ["ready"]:
                started.set()
            elif len(words) == 4:
                into.append(Tick(time.monotonic(), int(words[0]), words[1], words[2] == "ok", int(words[3])))

    def on(self, host: Host) -> list[Tick]:
        """Those seen on a host so far."""
        return self.by_host[host.name]

    def wait(self, host: Host, count: int = 5, seconds: float = 40) -> None:
        """Wait for some more ticks on a host."""
        before = len(self.on(host))
        wait_for(lambda: len(self.on(host)) >= before + count, f"{count} ticks of {self.guest} on {host.name}", seconds)

    def check(self) -> list[Tick]:
        """All of them in order: one boot, no number twice or left out, the memory always good."""
        ticks = sorted((tick for host in self.by_host.values() for tick in host), key=lambda tick: (tick.number, tick.seen))
        expect(ticks, f"{self.guest} does not tick")
        numbers = [tick.number for tick in ticks]
        gaps = [(one, other) for one, other in itertools.pairwise(numbers) if other != one + 1]
        expect(not gaps, f"{self.guest}'s ticks are not one row: {gaps[:3]}")
        expect(len({tick.boot for tick in ticks}) == 1, f"{self.guest} has booted anew")
        expect(all(tick.good for tick in ticks), f"{self.guest}'s memory is not what it wrote")
        return ticks


@dataclass(frozen=True)
class Move:
    """A migration that worked: xl's whole time, and how long the guest was not seen to tick beyond its usual 100 ms."""

    seconds: float
    downtime: float
    said: str
    cpus: int


def migrate(source: Host, target: Host, guest: str, options: str = XENSECURE) -> Done:
    """``xl migrate`` to its end, whatever that is; the last line of its output is the time it took."""
    return source.sh(_timed(target, guest, options), check=False, seconds=MOVE_SECONDS)


def start_migration(source: Host, target: Host, guest: str, options: str = XENSECURE, xl: str = "") -> subprocess.Popen[str]:
    """The same, not waited for; ``xl``: what stands before the subcommand."""
    return source.popen(_timed(target, guest, options, xl))


def _timed(target: Host, guest: str, options: str, xl: str = "") -> str:
    return f"TIMEFORMAT='took %R s'; time xl {xl} migrate {options} {guest} {target.hostname}"


def seconds_of(said: str) -> float:
    """The time in a migration's output."""
    match = re.search(r"^took ([\d.]+) s$", said, re.MULTILINE)
    return float(match[1]) if match else float("nan")


def move(source: Host, target: Host, guest: str, options: str = XENSECURE) -> Move:
    """A migration that has to work, with every check."""
    with Ticks(guest) as ticks:
        ticks.wait(source)
        done = migrate(source, target, guest, options)
        expect(done.status == 0, f"xl migrate {options}: status {done.status}\n{done.out}")
        ticks.wait(target)
        ticks.check()
        before, after = ticks.on(source)[-1], ticks.on(target)[0]
    expect(after.number == before.number + 1, f"last tick there {before.number}, first here {after.number}")
    copies = where(guest)
    expect({name: list(domains) for name, domains in copies.items()} == {target.name: [guest]}, f"copies after the move: {copies}")
    found = Move(seconds_of(done.out), max(0.0, after.seen - before.seen - 0.1), done.out, after.cpus)
    way = f"{guest} from {source.name} to {target.name}"
    say(f"    {way}: {found.seconds:.1f} s, downtime {found.downtime:.2f} s, ticks {before.number} and {after.number}")
    return found


def summary(moves: list[Move]) -> str:
    """Median and range of some moves."""
    times, downs = ([move.seconds for move in moves], [move.downtime for move in moves])
    middle = f"{statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f}), downtime {statistics.median(downs):.2f} s"
    return f"{middle} ({min(downs):.2f} to {max(downs):.2f}), {len(moves)} moves"


def where(guest: str) -> dict[str, dict[str, str]]:
    """Every copy of a guest, under whatever name, by host; hosts without one are left out."""
    found = {}
    for name, host in HOSTS.items():
        copies = {domain: state for domain, state in host.domains().items() if domain.split("--")[0] == guest}
        if copies:
            found[name] = copies
    return found


def put_guest(mode: str, guest: str, host: Host) -> None:
    """See to it that a guest runs on a host, and nowhere else, and ticks; others go, for a host's memory is small."""
    copies = where(guest)
    if list(copies) == [host.name] and list(copies[host.name]) == [guest] and copies[host.name][guest].strip("-") in ("", "b", "r"):
        return
    for name, domains in copies.items():
        for domain in domains:
            HOSTS[name].sh(f"xl destroy {domain}", check=False)
    with Ticks(guest) as ticks:
        host.sh(f"xl create /root/guest/{mode}-{guest}.cfg")
        ticks.wait(host, seconds=90)


def clear() -> None:
    """After a failure: no guests, fresh daemons, the link as it was."""
    units = "xensecure-launcher.service 'xensecured@*.service'"
    together()
    for host in HOSTS.values():
        for domain in host.domains():
            host.sh(f"xl destroy '{domain}'", check=False)
        host.sh(f"pkill -9 -x xensecure; systemctl kill --kill-whom=all --signal=KILL {units}; sleep 1; systemctl reset-failed", check=False)


def daemons_logs() -> str:
    """What the daemons on both hosts have said last."""
    text = ""
    for name, host in HOSTS.items():
        done = host.sh("journalctl --no-pager --output=short-precise --lines=40 --unit=xensecure-launcher --unit='xensecured@*'", check=False)
        text += f"--- host {name}\n{done.out}"
    return text


_LAUNCHER = "$(systemctl show --property=MainPID --value xensecure-launcher.service)"


def session(host: Host) -> dict[str, int]:
    """The processes of the one session that a host receives, once its stream is under way."""
    script = (
        f"l={_LAUNCHER}; k=$(pgrep -o -P ${{l:-0}}); r=$(pgrep -o -x xensecured); x=$(pgrep -o -P ${{k:-0}}); "
        "pgrep -f libxl-save-helper >/dev/null && echo ${k:-0} ${r:-0} ${x:-0} ${l:-0}"
    )
    found: list[int] = []

    def under_way() -> bool:
        done = host.sh(script, check=False)
        found[:] = [int(word) for word in done.out.split()] if done.status == 0 else []
        return len(found) == 4 and all(found)

    wait_for(under_way, "a session's processes", 90)
    return dict(zip(("keeper", "receiver", "xl", "launcher"), found, strict=True))


def no_session(host: Host) -> bool:
    """Whether nothing of a session is left on a host."""
    done = host.sh(f"pgrep -P {_LAUNCHER}; pgrep -x xensecured; pgrep -f libxl-save-helper", check=False)
    return not done.out.strip()
