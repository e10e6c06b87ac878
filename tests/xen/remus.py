"""Remus through xensecure: checkpoints until the primary is gone, then the backup."""

from __future__ import annotations

import time

from tests.xen.cut import configured
from tests.xen.hosts import HOSTS
from tests.xen.moves import XENSECURE, Ticks, expect, put_guest, wait_for, where
from xensecure.proto.limits import HANDSHAKE_SECONDS, SILENCE_SECONDS

PRIMARY, BACKUP = HOSTS["a"], HOSTS["b"]
CHECKPOINT_SECONDS = 60
# Ticks of 100 ms that the last checkpoint may lie back: the checkpoints are to come every 0.5 s, and take as long again here.
BACK_MOST = 60
WINDOW_SECONDS = 10  # the backup's resume_window: who fences may fail over sooner
# From the power cut to the first tick: the loss is noticed, nobody comes, and the first fence fails.
_FAILOVER_SECONDS = SILENCE_SECONDS + WINDOW_SECONDS + SILENCE_SECONDS + HANDSHAKE_SECONDS + 10
_FENCE = "/etc/xensecure/hooks.d/fence"
# Fails the first time, as a power switch that does not answer; shows what xl's copy was each time.
_HOOK = """\
#!/bin/sh
echo "$(date +%s) $(xl list | awk '/g1/ { print $1, $5 }')" >>/run/fenced
[ "$(wc -l </run/fenced)" -gt 1 ] || { echo 'the power switch does not answer'; exit 1; }
"""


def replicated(mode: str) -> str:
    """Remus: a minute of checkpoints, then the primary loses its power; the backup goes on from the last, once the fence holds. Takes host a down."""
    put_guest(mode, "g1", PRIMARY)
    BACKUP.sh(f"mkdir -p {_FENCE}; cat >{_FENCE}/10-power; chmod 755 {_FENCE} {_FENCE}/10-power; rm -f /run/fenced", stdin=_HOOK)
    with configured(BACKUP, f"resume_window = {WINDOW_SECONDS}\n"), Ticks("g1") as ticks:
        ticks.wait(PRIMARY)
        PRIMARY.popen(f"xl remus -F -n -d -i 500 {XENSECURE} g1 {BACKUP.hostname} >/var/log/remus.log 2>&1")
        wait_for(lambda: "Checkpointed save" in PRIMARY.sh("cat /var/log/remus.log", check=False).out, "the first checkpoint", 60)
        time.sleep(CHECKPOINT_SECONDS)
        expect(list(where("g1")) == ["a", "b"] and list(BACKUP.domains()) == ["g1--incoming"], f"copies while checkpoints are made: {where('g1')}")
        checkpoints = PRIMARY.sh("grep -c 'Checkpointed save' /var/log/remus.log").out.strip()
        last = ticks.on(PRIMARY)[-1]
        begin = time.monotonic()
        PRIMARY.power_off()
        wait_for(lambda: ticks.on(BACKUP), "the backup's first tick", _FAILOVER_SECONDS + 60)
        first, took = ticks.on(BACKUP)[0], time.monotonic() - begin
        ticks.wait(BACKUP)
        expect(list(BACKUP.domains()) == ["g1"], f"copies after the failover: {BACKUP.domains()}")
        there = ticks.on(BACKUP)
        expect(all(tick.good and tick.boot == last.boot for tick in there), "the backup has booted anew, or its memory is wrong")
        expect([tick.number for tick in there] == list(range(first.number, first.number + len(there))), "the backup's ticks are not one row")
        back = last.number + 1 - first.number
        expect(0 <= back <= BACK_MOST, f"the last tick of the primary was {last.number}, the backup's first {first.number}")
    fenced = BACKUP.sh("cat /run/fenced").out.splitlines()
    expect(len(fenced) == 2 and all("--incoming" in line and "p" in line.split()[-1] for line in fenced), f"the fence saw {fenced}")
    outcome = BACKUP.sh("tail -n 1 /var/lib/xensecure/journal.jsonl").out
    expect("failed over" in outcome, f"the journal says {outcome}")
    return f"{checkpoints} checkpoints; {back} ticks back, {took:.0f} s after the primary's power failed, the fence having failed once"
