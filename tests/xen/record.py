"""Records what xl sends when guests move, for benchmarks, and says what is in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.xen.analyse import analyse
from tests.xen.cases import pair_by_token, paired
from tests.xen.common import CACHE, LabError, run, say
from tests.xen.hosts import HOSTS
from tests.xen.moves import expect, migrate, put_guest
from tests.xen.userland import GUEST, at_work

STREAMS = CACHE.parent / "streams"
_OPTIONS = "-s 'lab-record xensecure'"


def record_all(mode: str) -> None:
    """One move of each kind of guest, recorded; files and what is in them stand in the cache's ``streams``."""
    here, there = HOSTS["a"], HOSTS["b"]
    if not paired():
        pair_by_token(mode)
    STREAMS.mkdir(parents=True, exist_ok=True)
    for guest in ("g1", GUEST):
        if guest == GUEST:
            at_work(mode, here)
        else:
            put_guest(mode, guest, here)
        say(f"{guest}: moving it, and recording")
        done = migrate(here, there, guest, _OPTIONS)
        expect(done.status == 0, f"status {done.status}\n{done.out}")
        target = STREAMS / f"{mode}-{guest}.up.zst"
        _fetch(here.ssh("cat /var/tmp/record.up"), target)
        answers = subprocess.run(here.ssh("cat /var/tmp/record.down"), capture_output=True, check=True).stdout
        target.with_name(f"{mode}-{guest}.down").write_bytes(answers)
        there.sh(f"xl destroy {guest}")
        text = analyse(target)
        target.with_name(f"{mode}-{guest}.md").write_text(text)
        say(f"{target}\n{text}")


def _fetch(command: list[str], target: Path) -> None:
    """A command's output, compressed."""
    new = target.with_suffix(".new")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        packing = subprocess.run(["zstd", "-q", "-f", "-3", "-o", new], stdin=source.stdout, check=False)
    if source.returncode or packing.returncode:
        raise LabError(f"{target.name} cannot be fetched")
    new.rename(target)
    run(["zstd", "-q", "-t", target])
