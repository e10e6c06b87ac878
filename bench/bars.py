"""What must hold: each bar, what was found, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from bench.measure import Carried
from bench.networks import GIGABIT, LOOPBACK
from bench.results import AUTO, BARE, COMPRESSED, OURS, PLAIN, SSH, UNCOMPRESSED, Results, Series

FASTER_THAN_SSH = 3.0  # times ssh's rate with its default cipher, random pages
FASTER_THAN_ENCRYPTED = 2.0  # times the rate of the fastest other transport that encrypts
AS_FAST_AS_PLAIN = 1.0  # times socat's rate with plain TCP
CPU_OF_SSH = 0.5  # times the CPU seconds of ssh with its fastest cipher
RECORDED_FASTER = 1.4  # times socat's rate with plain TCP, a recorded stream on loopback
LINK_TIME = 0.70  # times plain TCP's time, a recorded stream at 1 Gbit/s ...
LINK_LEAST = 1.03  # ... or times what is left without its zeros, where that is more: without compression nothing else can be left out
LINK_TIME_COMPRESSED = 0.40
AUTO_AS_FAST = 0.97  # times the rate without compression: compress = "auto" is never slower
START = 1.2  # times ssh's time to the banner
MEMORY_MIB = 160  # a side
MEMORY_GROWTH_MIB = 16  # by the longest stream, beside the most that shorter ones took: how far a queue fills is a matter of pace


@dataclass(frozen=True)
class Bar:
    """One demand; ``met`` is None where it could not be judged. ``bare``: what a bare pump has of it, and so what the machine allows at most."""

    what: str
    limit: str
    found: str
    met: bool | None
    bare: str = ""

    @property
    def verdict(self) -> str:
        """In a word."""
        return "not judged" if self.met is None else "yes" if self.met else "NO"


def _at_least(what: str, limit: float, found: float | None, bare: float | None = None) -> Bar:
    return Bar(what, f"≥ {limit}", _shown(found), None if found is None else found >= limit, _shown(bare, ""))


def _at_most(what: str, limit: float, found: float | None, bare: float | None = None) -> Bar:
    return Bar(what, f"≤ {limit}", _shown(found), None if found is None else found <= limit, _shown(bare, ""))


def _shown(found: float | None, nothing: str = "—") -> str:
    return nothing if found is None else f"{found:.2f}"


def _ratio(series: Series | None, one: str, other: str, read: Callable[[Carried], float]) -> float | None:
    if series is None or one not in series.runs or other not in series.runs:
        return None
    return series.ratio(one, other, read)


def _rate(run: Carried) -> float:
    return run.rate


def _seconds(run: Carried) -> float:
    return run.seconds


def _cpu(run: Carried) -> float:
    return run.cpu_per_gib


def fastest_encrypted(results: Results, series: Series) -> str:
    """The fastest transport that encrypts and is not ours; "" if there is none."""
    names = [name for name in series.runs if name in results.encrypted and not name.startswith(OURS)]
    return max(names, key=lambda name: series.median(name, _rate), default="")


def judge(results: Results) -> list[Bar]:
    """All bars."""
    loopback = [series for series in results.series if series.network == LOOPBACK]
    return [*_random(results, loopback[0] if loopback else None), *_recorded(results), *_auto(results), *_start(results), *_memory(results)]


def _random(results: Results, series: Series | None) -> Iterator[Bar]:
    fastest = fastest_encrypted(results, series) if series else ""
    for what, limit, other in (
        ("ssh's", FASTER_THAN_SSH, SSH),
        (f"the fastest encrypted one's ({fastest})", FASTER_THAN_ENCRYPTED, fastest),
        ("plain TCP's", AS_FAST_AS_PLAIN, PLAIN),
    ):
        yield _at_least(f"random pages: rate, times {what}", limit, *(_ratio(series, one, other, _rate) for one in (OURS, BARE)))
    cpu = (_ratio(series, one, results.fastest_ssh, _cpu) for one in (OURS, BARE))
    yield _at_most(f"random pages: CPU of both ends, times that of {results.fastest_ssh or SSH}", CPU_OF_SSH, *cpu)


def _recorded(results: Results) -> Iterator[Bar]:
    for series in results.series[1:]:
        judged = series if series.real else None
        name = f"{series.workload}, {series.network}"
        if series.network == LOOPBACK:
            yield _at_least(f"{name}: rate, times plain TCP's", RECORDED_FASTER, *(_ratio(judged, one, PLAIN, _rate) for one in (OURS, BARE)))
        elif series.network == GIGABIT:
            ours = UNCOMPRESSED if UNCOMPRESSED in series.runs else OURS
            limit = max(LINK_TIME, round(series.least * LINK_LEAST, 2))
            left = f" ({series.least:.0%} of it is no zeros)" if limit > LINK_TIME else ""
            yield _at_most(f"{name}: time, times plain TCP's, without compression{left}", limit, _ratio(judged, ours, PLAIN, _seconds))
            yield _at_most(f"{name}: time, times plain TCP's, with compression", LINK_TIME_COMPRESSED, _ratio(judged, COMPRESSED, PLAIN, _seconds))


def _auto(results: Results) -> Iterator[Bar]:
    for series in results.settings:
        if AUTO in series.runs:
            what = f"{series.workload}, {series.network}: rate with compress auto, times that with off"
            yield _at_least(what, AUTO_AS_FAST, _ratio(series, AUTO, UNCOMPRESSED, _rate))


def _start(results: Results) -> Iterator[Bar]:
    starts = results.starts
    both = OURS in starts and SSH in starts
    found = median(ours / theirs for ours, theirs in zip(starts[OURS], starts[SSH], strict=True)) if both else None
    yield _at_most("exec to xl's banner, times ssh's", START, found)


def _memory(results: Results) -> Iterator[Bar]:
    runs = [*results.growth[:1], *(run for series in results.series for run in series.runs.get(OURS, []))]
    longest = results.growth[-1:]
    most = max((run.memory for run in [*runs, *longest]), default=0) / 2**20
    yield Bar("memory held, the larger side", f"≤ {MEMORY_MIB} MiB", f"{most:.0f} MiB", most <= MEMORY_MIB if runs else None)
    if longest:
        more = (longest[0].memory - max(run.memory for run in runs)) / 2**20
        what = f"memory held for {longest[0].mib / 1024:.0f} GiB of stream, more than for shorter ones"
        yield Bar(what, f"≤ {MEMORY_GROWTH_MIB} MiB", f"{more:.0f} MiB", more <= MEMORY_GROWTH_MIB)
