"""``python -m bench``: xensecure beside ssh, TLS and plain TCP. Prints the bars, and writes bench.json, bench.md and bench.svg into build/."""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import bars, docs, model, plot, report
from bench.build import HERE, OUT, build_programs
from bench.measure import FailedError
from bench.results import Results
from bench.rounds import Plan, Rounds, say, workloads
from bench.workloads import memory_folder
from xensecure import __version__

FULL = Plan(runs=5, pairs=15, starts=15, mib=2048, link_mib=1024, growth=(1024, 16384), streams=())
QUICK = Plan(runs=3, pairs=5, starts=5, mib=512, link_mib=128, growth=(512, 2048), streams=())


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model_name = next((line.partition(": ")[2] for line in info if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in info if line.startswith("flags")), [])
    vector = ", ".join(name for name in ("aes", "vaes", "avx2", "avx512f") if name in flags) or "no AES instructions"
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.strip()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} × {model_name} ({vector}), {memory:.0f} GiB, Linux {platform.release()}; "
        f"xensecure {__version__}, Python {platform.python_version()}, {ssh}."
    )


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small round: minutes, and figures that say little")
    parser.add_argument("--runs", type=int, help=f"runs of each transport (default {FULL.runs}, quick {QUICK.runs})")
    parser.add_argument("--mib", type=int, help=f"MiB of a run over loopback (default {FULL.mib}, quick {QUICK.mib})")
    parser.add_argument("--starts", type=int, help=f"starts of each transport (default {FULL.starts}, quick {QUICK.starts})")
    parser.add_argument("--stream", type=Path, action="append", default=[], metavar="FILE", help="a recorded stream; may be repeated")
    parser.add_argument("--last", action="store_true", help="measure nothing: the figures that build/bench.json has")
    parser.add_argument("--write-docs", action="store_true", help="put the figures into docs/performance.md as well")
    return parser.parse_args(words)


def _plan(chosen: argparse.Namespace) -> Plan:
    base = QUICK if chosen.quick else FULL
    return Plan(
        runs=chosen.runs or base.runs,
        pairs=chosen.runs or base.pairs,
        starts=chosen.starts or base.starts,
        mib=chosen.mib or base.mib,
        link_mib=min(base.link_mib, chosen.mib or base.link_mib),
        growth=base.growth,
        streams=tuple(chosen.stream),
    )


def _measure(plan: Plan, *, quick: bool) -> Results:
    """Everything, in folders that are gone afterwards."""
    began = time.monotonic()
    compileall.compile_dir(HERE.parent / "xensecure", quiet=2)  # as an installed package is
    results = Results(_machine(), time.strftime("%Y-%m-%d"), quick=quick)
    with (
        tempfile.TemporaryDirectory(prefix="xensecure-bench-") as name,
        tempfile.TemporaryDirectory(prefix="xensecure-bench-", dir=memory_folder()) as memory,
    ):
        folder = Path(name)
        folder.chmod(0o755)  # the receivers' user has to reach what is in it
        rounds = Rounds(plan, results, build_programs(folder))
        on_loopback, on_link = workloads(plan, rounds, Path(memory))
        rounds.layers(folder)
        rounds.on_loopback(folder, on_loopback)
        rounds.on_link(folder, on_link)
    results.took = time.monotonic() - began
    return results


def _report(results: Results, *, write_docs: bool) -> int:
    judged = bars.judge(results)
    text = report.markdown(results, judged)
    (OUT / "bench.md").write_text(text)
    (OUT / "bench.svg").write_text(plot.svg(results))
    if write_docs:
        docs.write({"measured": text, "computed": model.markdown(results)}, plot.svg(results))
    print(text)
    return 1 if any(bar.met is False for bar in judged) else 0


def main(words: Sequence[str] | None = None) -> int:
    """Measure and report; 1 if a bar is missed, 2 if nothing could be measured."""
    chosen = _arguments(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    try:
        if chosen.last:
            results = Results.load(OUT / "bench.json")
        else:
            results = _measure(_plan(chosen), quick=chosen.quick)
            results.save(OUT / "bench.json")
    except (FailedError, OSError, subprocess.CalledProcessError) as error:
        say(f"bench: {error}")
        return 2
    return _report(results, write_docs=chosen.write_docs)


if __name__ == "__main__":
    sys.exit(main())
