"""What a benchmark has found out, as it stands in build/bench.json: everything that is shown is made from this."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.measure import Carried

OURS, SSH, PLAIN, BARE = "xensecure", "ssh", "socat, plain TCP", "bare pump"
UNCOMPRESSED, AUTO, COMPRESSED = (f"{OURS}, compress {value}" for value in ("off", "auto", "zstd"))


@dataclass
class Series:
    """One workload over one network: of each transport the runs, all by turns.

    ``real``: a whole recorded stream. ``least``: the share of its bytes that is left without its runs of zeros, 1 where nobody has counted.
    """

    network: str
    workload: str
    real: bool
    least: float = 1.0
    runs: dict[str, list[Carried]] = field(default_factory=dict)

    def median(self, name: str, read: Callable[[Carried], float]) -> float:
        """A transport's median."""
        return median(read(run) for run in self.runs[name])

    def ratio(self, one: str, other: str, read: Callable[[Carried], float]) -> float:
        """The median of the ratios of runs that stood beside each other: what else the machine does changes over minutes, and meets both."""
        return median(read(a) / read(b) for a, b in zip(self.runs[one], self.runs[other], strict=True))


@dataclass
class Results:
    """Everything.

    The machine, seconds to the banner, series, those of xensecure beside itself with other settings, xensecure with a small and a large stream,
    CPU seconds a GiB by layer, remarks, and the seconds that it all took.
    """

    machine: str
    date: str
    quick: bool = False
    starts: dict[str, list[float]] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    settings: list[Series] = field(default_factory=list)
    growth: list[Carried] = field(default_factory=list)
    layers: dict[str, float] = field(default_factory=dict)
    encrypted: list[str] = field(default_factory=list)
    fastest_ssh: str = ""
    notes: list[str] = field(default_factory=list)
    took: float = 0.0

    def save(self, path: Path) -> None:
        """Into a file."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """From that file."""
        found = cls(**json.loads(path.read_text()))
        found.growth = [Carried(**run) for run in found.growth]  # type: ignore[arg-type]
        found.series = [_series(entry) for entry in found.series]  # type: ignore[arg-type]
        found.settings = [_series(entry) for entry in found.settings]  # type: ignore[arg-type]
        return found


def _series(entry: dict[str, object]) -> Series:
    runs = entry.pop("runs")
    assert isinstance(runs, dict)  # noqa: S101 - save() has written it
    return Series(**entry, runs={name: [Carried(**run) for run in done] for name, done in runs.items()})  # type: ignore[arg-type]
