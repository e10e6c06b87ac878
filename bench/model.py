"""What a migration costs, computed from measured costs a byte: docs/performance.md has the formulae, by the names used here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.report import table
from bench.results import Results

GIB = 2**30  # bytes
TIB = 2**40  # bytes
# xg_sr_save.c, simple_precopy_policy: after so many passes the guest is stopped, or when fewer pages than that are left.
PASSES_MAX = 5
PAGES_LEFT = 50
PAGE = 4096  # bytes
FRAME = 512 << 10  # bytes of content a DATA frame, engine's chunk
FRAME_MORE = 32  # bytes: header and tag
# Bytes of Ethernet, IPv4 and TCP (with time stamps) for each packet, preamble and gap included, and the bytes it carries: an MTU of 1500.
PACKET_MORE, PACKET = 38 + 20 + 32, 1448


@dataclass(frozen=True)
class Costs:
    """CPU seconds a GiB of stream: either end's pump in all, and what of it is the one pipe's, which more connections do not share."""

    source: float
    destination: float
    pipe: float


@dataclass(frozen=True)
class Move:
    """A domain (bytes), what it writes meanwhile (bytes/s), the link (bit/s), connections, and the share of zero pages."""

    size: float
    dirty: float
    link: float
    lanes: int = 1
    zero: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Seconds in all and with the guest stopped, bytes of stream, its rate (bytes/s), CPU seconds of both ends, and what bounds the rate."""

    seconds: float
    stopped: float
    stream: float
    rate: float
    cpu: float
    bound: str


def costs_of(results: Results) -> Costs:
    """From the two streams of different length, so that starting up is not in it; ValueError where they were not measured."""
    if len(results.growth) != 2 or not results.layers:
        raise ValueError("neither growth nor layers were measured")
    small, large = results.growth
    gib = (large.mib - small.mib) / 1024
    source, destination = (large.source_cpu - small.source_cpu) / gib, (large.destination_cpu - small.destination_cpu) / gib
    return Costs(source, destination, min(results.layers["read pipe"], source / 2))


def rate_of(costs: Costs, move: Move) -> tuple[float, str]:
    """R, bytes of stream a second, and what bounds it."""
    slower = max(costs.source, costs.destination)
    wire = (1 - move.zero) * (1 + FRAME_MORE / FRAME) * (1 + PACKET_MORE / PACKET)
    bounds = {"link": move.link / 8 / max(wire, 1e-9), "pipe": GIB / costs.pipe}
    bounds["CPU"] = GIB / slower if move.lanes == 1 else GIB * move.lanes / (slower - costs.pipe)
    bound = min(bounds, key=lambda name: bounds[name])
    return bounds[bound], bound


def cost_of(costs: Costs, move: Move) -> Cost:
    """Passes as libxc makes them: each sends what was written during the last one; the last with the guest stopped."""
    rate, bound = rate_of(costs, move)
    left, seconds, stream, passes = move.size, 0.0, 0.0, 0
    while True:
        took = left / rate
        seconds += took
        stream += left
        passes += 1
        if passes > PASSES_MAX or left < PAGES_LEFT * PAGE:
            return Cost(seconds, took, stream, rate, stream / GIB * (costs.source + costs.destination), bound)
        left = min(move.size, took * move.dirty)


_SIZES = (4 * GIB, 64 * GIB, TIB)
_LINKS = (1e9, 10e9, 25e9, 100e9)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / TIB:.0f} TiB" if size >= TIB else f"{size / GIB:.0f} GiB"


def _rows(costs: Costs, moves: Iterable[Move]) -> Iterable[list[str]]:
    for move in moves:
        cost = cost_of(costs, move)
        yield [
            _size(move.size),
            f"{move.dirty / 2**20:.0f} MiB/s",
            f"{move.link / 1e9:.0f} Gbit/s",
            str(move.lanes),
            f"{cost.rate / 2**20:.0f} MiB/s",
            cost.bound,
            _time(cost.seconds),
            _time(cost.stopped),
            f"{cost.stream / GIB:.0f} GiB",
            _time(cost.cpu),
        ]


_HEAD = ["domain", "writes", "link", "connections", "R", "bound by", "time", "of it stopped", "stream", "CPU, both ends"]


def markdown(results: Results) -> str:
    """The computed tables."""
    costs = costs_of(results)
    parts = [
        f"Computed from c_source = {costs.source:.3f}, c_destination = {costs.destination:.3f} and c_pipe = {costs.pipe:.3f} CPU s/GiB, "
        f"as measured with random pages on {results.date}.\n",
        "Size and link; the guest writes 64 MiB/s, one connection:\n",
        table(_HEAD, _rows(costs, (Move(size, 64 * 2**20, link) for size in _SIZES for link in _LINKS))),
        "What the guest writes meanwhile; 64 GiB, 10 Gbit/s:\n",
        table(_HEAD, _rows(costs, (Move(64 * GIB, mib * 2**20, 10e9) for mib in (0, 64, 256, 512, 1024, 2048)))),
        "Connections; 1 TiB, 100 Gbit/s, the guest writes 256 MiB/s:\n",
        table(_HEAD, _rows(costs, (Move(TIB, 256 * 2**20, 100e9, lanes) for lanes in (1, 2, 4, 8, 16)))),
        "Zero pages that are left out; 64 GiB, 1 Gbit/s, the guest writes 16 MiB/s; none, a third, two thirds of its pages zero:\n",
        table(_HEAD, _rows(costs, (Move(64 * GIB, 16 * 2**20, 1e9, zero=zero) for zero in (0, 1 / 3, 2 / 3)))),
    ]
    return "\n".join(parts)
