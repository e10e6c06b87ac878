"""Memory at the destination while a guest arrives: what Xen says of it, and what the admission policy makes of that."""

from __future__ import annotations

import re

from tests.xen.cut import configured
from tests.xen.hosts import HOSTS, Host
from tests.xen.moves import MOVE_SECONDS, Ticks, expect, put_guest, start_migration, wait_for

SOURCE, TARGET = HOSTS["a"], HOSTS["b"]
_LESS = 80  # MiB that the second guest leaves of what is free before the first one comes: less than that one needs
_REFUSED = re.compile(r"it needs ([0-9]+) MiB there, and ([0-9]+) MiB could be had besides ([0-9]+) MiB for domains that are arriving")


def _free(host: Host) -> int:
    """MiB, as xl says."""
    return int(host.sh("xl info | sed -n 's/^free_memory *: //p'").out)


def _populated(host: Host) -> int:
    """MiB that the guest on its way has got."""
    found = re.search(r"^g1--incoming +[0-9]+ +([0-9]+) ", host.sh("xl list").out, re.MULTILINE)
    return int(found[1]) if found else 0


def promised(mode: str) -> str:
    """A guest that arrives slowly gets its memory page by page; another that would need what is left for it is refused. Then its limit is lifted."""
    put_guest(mode, "g1", SOURCE)
    before = _free(TARGET)
    with configured(SOURCE, 'bwlimit = "1M"\n'), Ticks("g1") as ticks:
        ticks.wait(SOURCE)
        started = start_migration(SOURCE, TARGET, "g1")
        wait_for(lambda: _populated(TARGET) > 4, "the first pages there", 90)
        SOURCE.sh(f"sed 's/^memory = .*/memory = {before - _LESS}/; s/\"g1\"/\"big\"/' /root/guest/{mode}-g1.cfg >/run/big.cfg")
        said = SOURCE.sh(f"xensecurectl policy check --to {TARGET.hostname} /run/big.cfg", check=False).out
        got, free = _populated(TARGET), _free(TARGET)
        found = _REFUSED.search(said)
        expect(found, f"policy check of {before - _LESS} MiB, {before} MiB having been free: {said}")
        assert found is not None
        expect(free >= int(found[1]), f"{got} MiB have come and {free} of {before} are free: the second guest would not fit by itself")
        with configured(SOURCE, ""):
            SOURCE.sh("pkill -HUP -x xensecure")
            said, _ = started.communicate(timeout=MOVE_SECONDS)
        expect(started.returncode == 0, f"status {started.returncode}\n{said}")
        ticks.wait(TARGET)
        ticks.check()
    return f"{before} MiB free before, {free} when {got} had come; for a second guest of {found[1]} MiB {found[2]}, besides {found[3]}"
