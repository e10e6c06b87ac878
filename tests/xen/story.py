"""``make xen-demo``: from nothing to a live guest that has moved between two real Xen hosts, with what happens said line by line."""

from __future__ import annotations

import sys
import time

from tests.xen.attack import attacked
from tests.xen.cases import paired
from tests.xen.common import say
from tests.xen.hosts import HOSTS, Host
from tests.xen.moves import Ticks, expect, put_guest, start_migration

A, B = HOSTS["a"], HOSTS["b"]
GUEST = "g1"


def _typed(host: Host, command: str) -> None:
    say(f"  {host.hostname}# {command}")


def _said(text: str) -> None:
    for line in text.replace("\r", "\n").splitlines():
        if line.strip() and "xc: info" not in line:
            sys.stdout.write(f"             {line}\n")
    sys.stdout.flush()


def _migrate(here: Host, there: Host) -> int:
    """Run xl and pass on its words as they come; its exit status."""
    _typed(here, f"xl migrate -s xensecure {GUEST} {there.hostname}")
    with start_migration(here, there, GUEST) as running:
        assert running.stdout is not None
        for line in running.stdout:
            _said(line)
    return running.returncode


def _shown(host: Host, command: str, stdin: str | None = None) -> str:
    _typed(host, command)
    done = host.sh(command, stdin=stdin)
    _said(done.out)
    return done.out


def _pair() -> None:
    say("1. The hosts meet: a token that works once, carried over by hand, makes a link key that only these two share")
    token = _shown(B, "xensecurectl invite 2>/dev/null").split()[-1]
    _shown(A, "xensecurectl join -", stdin=f"{token}\n")
    _shown(A, "xensecurectl peers")


def _moved(mode: str) -> str:
    say("2. A guest runs on xen-a; ten times a second it changes its memory, counts, and every second checks all of it")
    put_guest(mode, GUEST, A)
    _shown(A, "xl list")
    say("3. It moves to xen-b while it runs")
    with Ticks(GUEST) as ticks:
        ticks.wait(A)
        expect(_migrate(A, B) == 0, "the migration failed")
        ticks.wait(B)
        ticks.check()
        before, after = ticks.on(A)[-1], ticks.on(B)[0]
    _shown(B, "xl list")
    _shown(B, "tail -n 1 /var/lib/xensecure/journal.jsonl")
    down = after.seen - before.seen - 0.1
    return f"its last count on xen-a was {before.number}, the first on xen-b {after.number}: {down:.1f} s later than usual; same boot, memory right"


def _attacked(mode: str) -> str:
    say("4. A man in the middle, by forged ARP, passes everything on and changes one bit")
    put_guest(mode, GUEST, B)
    with Ticks(GUEST) as ticks:
        ticks.wait(B)
        with attacked("flip", B, A) as man:
            status = _migrate(B, A)
            seen = man.report()
        expect(man.changed and man.was_between(), f"he was not in between: {seen}")
        expect(status == 0, "the migration failed")
        ticks.wait(A)
        ticks.check()
    _shown(A, "journalctl --no-pager --output=cat --unit='xensecured@*' | grep SECURITY")
    return f"noticed, and all behind it sent anew over another connection; he saw: {seen}; the guest came to xen-a without a missing count"


def tell(mode: str) -> None:
    """The whole story, on hosts that have booted."""
    begin = time.monotonic()
    expect(not paired(), "the hosts know each other already: boot them anew")
    _pair()
    moved = _moved(mode)
    noticed = _attacked(mode)
    say(f"Moved: {moved}")
    say(f"Attacked: {noticed}")
    say(f"All that took {time.monotonic() - begin:.0f} s after the hosts were up")
