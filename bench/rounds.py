"""All measurements, one after the other; within each, the transports by turns, so that what else the machine does meets all."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.layers import BACKENDS, measure_layers
from bench.measure import Carried, FailedError, carry, time_to_banner
from bench.networks import GIGABIT, LOOPBACK, NoLinkError, gigabit, loopback
from bench.peers import PEERS, Socat
from bench.results import AUTO, OURS, UNCOMPRESSED, Results, Series
from bench.transports import MissingError, Place, Ssh, Transport, Xensecure
from bench.workloads import SMALL, Workload, find_streams, quarter, random_pages, recorded, unpack
from xensecure.link import engine
from xensecure.link.config import HOST_KEYS, SCHEMA

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")
LANES = (1, 2, 4)
_PROBE_MIB = 256  # a stream that tells ssh's ciphers apart


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Runs of each transport, and of xensecure with and without compression; starts of each; MiB of each stream; of the two streams that tell
    what grows.
    """

    runs: int
    pairs: int
    starts: int
    mib: int
    link_mib: int
    growth: tuple[int, int]
    streams: tuple[Path, ...]


def say(text: str) -> None:
    """One line to whoever waits."""
    sys.stderr.write(text + "\n")


class Rounds:
    """The measurements of one plan; ``results`` grows with each."""

    def __init__(self, plan: Plan, results: Results, programs: Path) -> None:
        self.plan = plan
        self.results = results
        self.programs = programs

    def note(self, text: str) -> None:
        """A remark that belongs beside the figures."""
        say(text)
        self.results.notes.append(text)

    def on_loopback(self, folder: Path, workloads: Sequence[Workload]) -> None:
        """Every transport, every workload, the starts, and what grows with the stream."""
        with loopback() as network, contextlib.ExitStack() as stack:
            place = Place(network, folder, self.programs)
            ours = self._opened(stack, partial(Xensecure, place))
            ssh = self._opened(stack, partial(Ssh, place))
            transports = [ours, *self._other_backends(stack, place), ssh, self._fastest_ssh(stack, place)]
            transports += [self._opened(stack, partial(peer, place)) for peer in PEERS]
            there = [transport for transport in transports if transport is not None]
            self.results.encrypted = [transport.name for transport in there if transport.encrypted]
            self.starts([transport for transport in (ours, ssh) if transport is not None])
            for workload in workloads:
                self.series(LOOPBACK, workload, there)
            if ours is not None:
                self.settings(stack, place, workloads)
                self.growth(ours)

    def settings(self, stack: contextlib.ExitStack, place: Place, workloads: Sequence[Workload]) -> None:
        """Other settings of xensecure, and nothing else, so that two runs of a turn stand close beside each other."""
        pair = [name for value, name in (("off", UNCOMPRESSED), ("auto", AUTO)) if compress(value) is not None]
        several = [f"{OURS}, lanes {lanes}" for lanes in LANES]
        made = {
            name: self._opened(stack, partial(Xensecure, place, name, options=("-o", name.removeprefix(f"{OURS}, ").replace(" ", "="))))
            for name in [*pair, *several]
        }
        for workload in workloads[:2] if len(pair) == 2 else ():
            self._settings_series(workload, [made[name] for name in pair], self.plan.pairs)
        self._settings_series(workloads[0], [made[name] for name in several], self.plan.runs)

    def _settings_series(self, workload: Workload, transports: Sequence[Transport | None], runs: int) -> None:
        there = [transport for transport in transports if transport is not None]
        self.results.settings.append(self._series(LOOPBACK, workload, there, runs))

    def on_link(self, folder: Path, workloads: Sequence[Workload]) -> None:
        """xensecure, ssh and plain TCP on a link of 1 Gbit/s: there it is bytes that count, not the cipher."""
        try:
            with gigabit() as network, contextlib.ExitStack() as stack:
                place = Place(network, folder, self.programs)
                makers: list[Callable[[], Transport]] = [partial(Xensecure, place), partial(Ssh, place), partial(Socat, place)]
                ways = {value: extra for value in ("auto", "zstd") if (extra := compress(value)) is not None}
                makers += [partial(Xensecure, place, f"{OURS}, compress {value}", **extra) for value, extra in ways.items()]
                there = [made for make in makers if (made := self._opened(stack, make)) is not None]
                for workload in workloads:
                    self.series(GIGABIT, workload, there)
        except NoLinkError as error:
            self.note(f"left out, {GIGABIT}: {error}")

    def starts(self, transports: Sequence[Transport]) -> None:
        """Seconds from exec to xl's banner."""
        for number in range(self.plan.starts + 1):
            for transport in transports:
                took = time_to_banner(transport)
                if number:  # the first of each fills the caches
                    self.results.starts.setdefault(transport.name, []).append(took)

    def series(self, network: str, workload: Workload, transports: Sequence[Transport]) -> None:
        """A workload, by all."""
        self.results.series.append(self._series(network, workload, transports, self.plan.runs))

    def _series(self, network: str, workload: Workload, transports: Sequence[Transport], runs: int) -> Series:
        """A transport that fails twice in a turn is left out from then on. Memory is looked at in a turn of its own."""
        series = Series(network, workload.name, workload.real, workload.least)
        watched = {transport: self._carried(series, quarter(workload), transport, watched=True) for transport in transports}
        left = {transport: run for transport, run in watched.items() if run is not None}
        for number in range(runs):
            for transport, looked_at in tuple(left.items()):
                run = self._carried(series, workload, transport)
                if run is None:
                    del left[transport]
                    series.runs.pop(transport.name, None)
                    continue
                run = replace(run, source_memory=looked_at.source_memory, destination_memory=looked_at.destination_memory)
                series.runs.setdefault(transport.name, []).append(run)
                say(f"{network}, {workload.name}, run {number + 1} of {runs}: {transport.name} {run.rate:.0f} MiB/s")
        return series

    def _carried(self, series: Series, workload: Workload, transport: Transport, *, watched: bool = False) -> Carried | None:
        """One run; a second one, and a remark, after a failure (stunnel has been seen to lose the last 10 KiB); None after two."""
        for what in ("failed once", "left out"):
            try:
                return carry(transport, workload, self.programs, watched=watched)
            except FailedError as error:
                self.note(f"{what}, {workload.name} on {series.network}: {error}")
        return None

    def growth(self, ours: Transport) -> None:
        """A small and a large stream: what memory and CPU seconds grow by."""
        for mib in self.plan.growth:
            run, looked_at = (carry(ours, random_pages(mib), self.programs, watched=watched) for watched in (False, True))
            run = replace(run, source_memory=looked_at.source_memory, destination_memory=looked_at.destination_memory)
            self.results.growth.append(run)
            say(f"{mib} MiB: at most {run.memory / 2**20:.0f} MiB held a side")

    def layers(self, folder: Path) -> None:
        """The engine's parts by themselves."""
        self.results.layers = measure_layers(folder)

    def _opened(self, stack: contextlib.ExitStack, make: Callable[[], Transport]) -> Transport | None:
        """A transport that has shown that it works, closed with the stack; None, and a remark, where it is not to be had."""
        try:
            transport = make()
            stack.callback(transport.close)
            time_to_banner(transport)
        except (MissingError, FailedError, subprocess.CalledProcessError) as error:
            self.note(f"left out: {error}")
            return None
        return transport

    def _other_backends(self, stack: contextlib.ExitStack, place: Place) -> Iterator[Transport]:
        """With each cipher backend that is not xensecure's own choice here."""
        for backend in backends():
            extra = f'[engine]\ncipher = "{backend}"\n'
            made = self._opened(stack, partial(Xensecure, place, f"{OURS}, {backend}", extra=extra))
            if made is not None:
                yield made

    def _fastest_ssh(self, stack: contextlib.ExitStack, place: Place) -> Transport | None:
        """With the fastest of ssh's ciphers; the sshds of the others stay idle."""
        rates: dict[Transport, float] = {}
        for cipher in CIPHERS:
            transport = self._opened(stack, partial(Ssh, place, cipher=cipher))
            if transport is not None:
                rates[transport] = max(carry(transport, random_pages(_PROBE_MIB), self.programs, watched=False).rate for _ in range(2))
        if not rates:
            return None
        fastest = max(rates, key=lambda transport: rates[transport])
        self.results.fastest_ssh = fastest.name
        return fastest


def backends() -> list[str]:
    """The cipher backends that may be asked for and that ``auto`` does not stand for."""
    find_backend = getattr(engine, "find_backend", None)
    if find_backend is None or "cipher" not in SCHEMA.get("engine", {}):
        return []
    chosen = find_backend("auto")
    return [name for name in BACKENDS if name != chosen]


def compress(value: str) -> dict[str, Any] | None:
    """What sets compression, as arguments of Xensecure; None where xensecure has no such key, or not that value of it."""
    places = {**{name: keys for name, keys in SCHEMA.items() if name != "defaults"}, "": HOST_KEYS}
    for section, keys in places.items():
        if "compress" in keys:
            with contextlib.suppress(ValueError):
                keys["compress"].convert(value)
                return {"extra": f'[{section}]\ncompress = "{value}"\n'} if section else {"options": ("-o", f"compress={value}")}
    return None


def workloads(plan: Plan, rounds: Rounds, folder: Path) -> tuple[list[Workload], list[Workload]]:
    """What is carried over loopback, and over the link."""
    streams = []
    for path in find_streams(plan.streams):
        try:
            streams.append(unpack(path, folder))
        except (OSError, subprocess.CalledProcessError) as error:
            rounds.note(f"left out, {path.name}: {error}")
        if path == SMALL:
            rounds.note(
                f"No stream is recorded here (make xen-record makes some): {path.name} is repeated. It shows what elision does to real pages, "
                "but a compressor finds it again and again, and no bar is judged by it."
            )
    made = [recorded(path, plan.mib) for path in streams]
    return [random_pages(plan.mib), *made], [recorded(path, plan.link_mib) for path in streams]
