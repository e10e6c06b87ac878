"""The guest with Debian's programs and a database at work: moved there and back, and recorded."""

from __future__ import annotations

import re

from tests.xen.hosts import HOSTS, Host
from tests.xen.moves import expect, move, put_guest, summary, wait_for

GUEST = "bank"
_ROUNDS_MORE = 3  # of the database, before and after a move


def rounds(host: Host) -> list[str]:
    """What the database's rounds on a host came to, in order: "N ok", or "N BAD: …"."""
    logs = f"/var/log/xen/console/guest-{GUEST}.log /var/log/xen/console/guest-{GUEST}--incoming.log"
    said = host.sh(f"cat {logs} 2>/dev/null", check=False).out
    return re.findall(r"^D (\d+ (?:ok|BAD.*))\r?$", said, re.MULTILINE)


def at_work(mode: str, host: Host) -> None:
    """See to it that the guest runs on a host and its database has done some rounds."""
    put_guest(mode, GUEST, host)
    wait_for(lambda: len(rounds(host)) >= _ROUNDS_MORE, "the database's first rounds", 180)
    expect(all(one.endswith(" ok") for one in rounds(host)), f"the database before anything moves: {rounds(host)}")


def database(mode: str) -> str:
    """A Debian userland with a database under load, there and back: no transfer is lost, and SQLite finds its file whole."""
    here, there = HOSTS["a"], HOSTS["b"]
    for host in (here, there):
        host.sh("xl list | awk 'NR > 2 { print $1 }' | xargs -r -n 1 xl destroy; rm -f /var/log/xen/console/guest-bank*", check=False)
    at_work(mode, here)
    moves = [move(here, there, GUEST)]
    before = len(rounds(there))
    wait_for(lambda: len(rounds(there)) >= before + _ROUNDS_MORE, "the database's next rounds", 90)
    moves.append(move(there, here, GUEST))
    before = len(rounds(here))
    wait_for(lambda: len(rounds(here)) >= before + _ROUNDS_MORE, "the database's next rounds", 90)
    seen = rounds(here) + rounds(there)
    expect(all(one.endswith(" ok") for one in seen), f"the database: {[one for one in seen if not one.endswith(' ok')]}")
    numbers = sorted(int(one.split()[0]) for one in seen)
    expect(numbers == list(range(1, len(numbers) + 1)), f"rounds {numbers[:1]} to {numbers[-1:]}, {len(numbers)} of them: not one row")
    here.sh(f"xl destroy {GUEST}")
    return f"{len(numbers)} rounds of the database, all right; {summary(moves)}"
