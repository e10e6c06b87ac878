"""Many migrations at once for minutes: ``python -m tests.faults.load [--minutes 10] [--at-once 20]`` (make load).

One destination takes them all, through relays that cut every second one's links at random. Nothing may be lost, and no process may grow.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import tables
from tests.faults.books import Books, Result, Verdict
from tests.faults.hands import Hand, Recording, page_cuts
from tests.faults.proxy import Proxy
from tests.faults.sweep import typical
from tests.pair import Pair
from tests.xl.stream import StreamSpec, make_stream

_STREAM = StreamSpec(8, seed=5)
_CUTS = 3  # of every second migration
_SAMPLE = 1.0  # seconds
_SETTINGS = "[defaults]\nkeepalive = 1\nsilence = 3\nresume_window = {}\n"
_ADDRESSES = 20  # the relays call from so many
# What a daemon may be larger in the last quarter than in the second one: malloc's and Python's own breath.
_GROWTH_KIB = 2048


@dataclass
class Memory:
    """What processes held, sampled: kind of process, then (seconds, KiB of the largest one) in order."""

    samples: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def take(self, now: float, kind: str, pids: list[int]) -> None:
        """The largest of these processes."""
        sizes = [size for pid in pids if (size := _rss(pid))]
        if sizes:
            self.samples.setdefault(kind, []).append((now, max(sizes)))

    def quarter(self, kind: str, number: int) -> int:
        """The most in that quarter of the time, in KiB."""
        samples = self.samples[kind]
        first, last = samples[0][0], samples[-1][0]
        length = (last - first) / 4
        return max((size for at, size in samples if first + number * length <= at <= first + (number + 1) * length), default=0)


def _rss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


@dataclass
class Load:
    """Migrations, one after the other in each of several threads, until the time is over."""

    books: Books
    recording: Recording
    rng: random.Random
    until: float
    results: list[Result] = field(default_factory=list)
    cuts: int = 0
    connections: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, place: int) -> None:
        """One thread's migrations."""
        while time.monotonic() < self.until:
            with self._lock:
                cuts = page_cuts(self.recording, self.rng, _CUTS, share=0.3) if self.rng.random() < 0.5 else []
            hand = Hand(cuts)
            address = f"127.0.2.{1 + place % _ADDRESSES}"
            with Proxy(self.books.pair.destination.port, hand.plan, layout=self.recording.layout, on_cut=hand.on_cut, address=address) as proxy:
                result = self.books.start(proxy, wait=180).finish()
            if result.verdict is Verdict.SURVIVED:
                self.books.forget(result.domain)
            else:
                print(f"{result.domain}: {result.verdict}: {result.faults}\n{result.said}", flush=True)
            with self._lock:
                self.results.append(result)
                self.cuts += len(hand.made)
                self.connections += len(proxy.all)

    def count(self, verdict: Verdict) -> int:
        """Migrations that came out so."""
        return sum(result.verdict is verdict for result in self.results)


def watch(pair: Pair, memory: Memory, over: threading.Event) -> None:
    """Sample the destination's processes."""
    begun = time.monotonic()
    host = pair.destination
    while not over.wait(_SAMPLE):
        now = time.monotonic() - begun
        for name in ("xensecured", "xensecure-launcher"):
            memory.take(now, name, [host.processes[name].pid])
        memory.take(now, "receiver", host.children("xensecured"))
        memory.take(now, "keeper", host.children("xensecure-launcher"))


def run(seed: int, minutes: float, at_once: int) -> tuple[Load, Memory, list[str]]:
    """All of it; the migrations, the memory, and what is left behind."""
    with tempfile.TemporaryDirectory(prefix="xensecure-load-") as folder:
        stream = make_stream(Path(folder) / "stream", _STREAM)
        source, destination = _SETTINGS.format(120), _SETTINGS.format(5)
        with Pair(source_extra=source, destination_extra=destination, resume_window=None) as pair:
            books = Books(pair, stream)
            recording = typical(books)
            memory, over = Memory(), threading.Event()
            watcher = threading.Thread(target=watch, args=(pair, memory, over))
            watcher.start()
            load = Load(books, recording, random.Random(seed), time.monotonic() + minutes * 60)
            try:
                with ThreadPoolExecutor(at_once) as pool:
                    list(pool.map(load.work, range(at_once)))
            finally:
                over.set()
                watcher.join()
            return load, memory, books.left_behind()


def markdown(load: Load, memory: Memory, at_once: int, minutes: float) -> str:
    """The table of the page."""
    counts = {verdict: load.count(verdict) for verdict in Verdict}
    lines = [
        "| | |",
        "|---|--:|",
        f"| migrations at once | {at_once} |",
        f"| minutes | {minutes:g} |",
        f"| migrations | {len(load.results)} |",
        f"| cuts | {load.cuts} |",
        f"| connections | {load.connections} |",
        *(f"| {verdict} | {count} |" for verdict, count in counts.items()),
        "",
        "| resident memory, the largest process of its kind, KiB | 1st quarter | 2nd | 3rd | 4th |",
        "|---|--:|--:|--:|--:|",
        *(f"| `{kind}` | {' | '.join(str(memory.quarter(kind, number)) for number in range(4))} |" for kind in sorted(memory.samples)),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Load as the command line says; 1 if a migration was lost or a process grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--at-once", type=int, default=20, metavar="N")
    parser.add_argument("--quick", action="store_true", help="6 at once for a minute and a half")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/reliability.md")
    given = parser.parse_args(arguments)
    minutes, at_once = (1.5, 6) if given.quick else (given.minutes, given.at_once)
    print(f"seed {given.seed}", flush=True)
    load, memory, left = run(given.seed, minutes, at_once)
    table = markdown(load, memory, at_once, minutes)
    print(table)
    grown = [kind for kind in memory.samples if memory.quarter(kind, 3) > memory.quarter(kind, 1) + _GROWTH_KIB]
    lost = len(load.results) - load.count(Verdict.SURVIVED)
    for words in (*left, *(f"{kind} has grown" for kind in grown)):
        print(words)
    tables.BUILD.mkdir(exist_ok=True)
    (tables.BUILD / "load.json").write_text(json.dumps({"seed": given.seed, "lost": lost, "memory": memory.samples, "left": left}, indent=1) + "\n")
    if given.write_docs:
        tables.write("load", f"{table}\nSeed {given.seed}.\n")
    return 1 if lost or left or grown else 0


if __name__ == "__main__":
    sys.exit(main())
