"""``python -m bench``: xensecure beside ssh. Prints a table and writes build/bench.json and build/bench.md."""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.measure import Carried, FailedError, carry, time_to_banner
from bench.transports import MissingError, Ssh, Transport, Xensecure
from xensecure import __version__

HERE = Path(__file__).parent
OUT = HERE.parent / "build"
FASTER = 1.4  # times ssh's throughput, at least
SLOWER_START = 1.5  # times ssh's time to the banner, at most
MEMORY = 200 << 20  # bytes a side, at most

Row = tuple[str, str, str, str, str]


def _compile(folder: Path) -> Path:
    programs = folder / "programs"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", str(HERE / "programs.c"), "-o", str(programs)], check=True)
    return programs


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip()
    return f"xensecure {__version__}, Python {platform.python_version()}, {ssh}; {os.cpu_count()} × {model}, Linux {platform.release()}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


@dataclass
class Measured:
    """What was measured of a transport: seconds to the banner, and the runs."""

    starts: list[float] = field(default_factory=list)
    runs: list[Carried] = field(default_factory=list)


def measure(transports: list[Transport], programs: Path, chosen: argparse.Namespace) -> dict[str, Measured]:
    """All runs, the transports by turns, so that what else the machine does meets both."""
    measured = {transport.name: Measured() for transport in transports}
    for number in range(chosen.starts + 1):
        for transport in transports:
            took = time_to_banner(transport)
            if number:  # the first of each fills the caches
                measured[transport.name].starts.append(took)
    for number in range(chosen.runs):
        for transport in transports:
            run = carry(transport, programs, chosen.mib)
            measured[transport.name].runs.append(run)
            _say(f"run {number + 1} of {chosen.runs}: {transport.name} {run.rate:.0f} MiB/s")
    return measured


def _compared(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of runs that stood beside each other: what else the machine does changes over minutes, and meets both."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def _row(name: str, ours: Sequence[float], theirs: Sequence[float], unit: str, bar: tuple[str, bool] | None = None) -> Row:
    digits = 2 if unit == "s" else 0
    verdict = f"{bar[0]}: {'yes' if bar[1] else 'NO'}" if bar else ""
    return name, f"{median(ours):.{digits}f} {unit}", f"{median(theirs):.{digits}f} {unit}", f"{_compared(ours, theirs):.2f}", verdict


def _rows(ours: Measured, theirs: Measured) -> tuple[list[Row], bool]:
    """The table, and whether every bar is met."""

    def both(read: Callable[[Carried], float]) -> tuple[list[float], list[float]]:
        return [read(run) for run in ours.runs], [read(run) for run in theirs.runs]

    rates = both(lambda run: run.rate)
    starts = [took * 1000 for took in ours.starts], [took * 1000 for took in theirs.starts]
    most = max(memory for run in ours.runs for memory in (run.source_memory, run.destination_memory))
    fast, prompt, small = _compared(*rates) >= FASTER, _compared(*starts) <= SLOWER_START, most <= MEMORY
    rows = [
        _row("throughput", *rates, "MiB/s", (f"≥ {FASTER}", fast)),
        _row("start to xl's banner", *starts, "ms", (f"≤ {SLOWER_START}", prompt)),
        _row("CPU, source", *both(lambda run: run.source_cpu), "s"),
        _row("CPU, destination", *both(lambda run: run.destination_cpu), "s"),
        _row("peak memory, source", *both(lambda run: run.source_memory / 2**20), "MiB"),
        _row("peak memory, destination", *both(lambda run: run.destination_memory / 2**20), "MiB", ("≤ 200 MiB a side", small)),
    ]
    return rows, fast and prompt and small


def _markdown(rows: list[Row], head: str) -> str:
    lines = [head, "", "| | xensecure | ssh | ratio | bar |", "|---|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> str:
    whole = [("", "xensecure", "ssh", "ratio", "bar"), *rows]
    widths = [max(len(row[column]) for row in whole) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in whole)


def main() -> int:
    """Measure and report; 1 if a bar is missed, 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="MiB of random pages a run (default 2048)")
    parser.add_argument("--runs", type=int, default=7, help="runs of each transport (default 7)")
    parser.add_argument("--starts", type=int, default=15, help="starts of each transport (default 15)")
    chosen = parser.parse_args()
    compileall.compile_dir(HERE.parent / "xensecure", quiet=2)  # as an installed package is
    with tempfile.TemporaryDirectory(prefix="xensecure-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            programs = _compile(folder)
            transports: list[Transport] = []
            for make in (lambda: Xensecure(programs), lambda: Ssh(folder / "ssh", programs)):
                transport: Transport = make()
                stack.callback(transport.close)
                transports.append(transport)
            result = measure(transports, programs, chosen)
        except (FailedError, MissingError, subprocess.CalledProcessError) as error:
            _say(f"bench: {error}")
            return 2
    rows, good = _rows(result["xensecure"], result["ssh"])
    head = (
        f"Medians of {chosen.runs} runs of {chosen.mib} MiB and {chosen.starts} starts, by turns, on loopback; "
        f"the ratio is the median of the turns' own. {_machine()}."
    )
    OUT.mkdir(exist_ok=True)
    figures = {name: asdict(measured) for name, measured in result.items()}
    (OUT / "bench.json").write_text(json.dumps({"about": head, "figures": figures, "rows": rows}, indent=1) + "\n")
    (OUT / "bench.md").write_text(_markdown(rows, head))
    print(f"\n{head}\n\n{_table(rows)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
