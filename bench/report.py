"""The figures as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from bench.bars import Bar
from bench.results import OURS, Results, Series


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its columns in line for those who read it as text."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _series_table(series: Series) -> str:
    head = ["transport", "MiB/s", f"× {OURS}'s", "s", "CPU s/GiB", "source", "destination", "memory, source", "destination"]
    return table(head, (_series_row(series, name) for name in series.runs))


def _series_row(series: Series, name: str) -> list[str]:
    ours = OURS if OURS in series.runs else name
    return [
        name,
        f"{series.median(name, lambda run: run.rate):.0f}",
        f"{series.ratio(name, ours, lambda run: run.rate):.2f}",
        f"{series.median(name, lambda run: run.seconds):.2f}",
        f"{series.median(name, lambda run: run.cpu_per_gib):.2f}",
        f"{series.median(name, lambda run: run.source_cpu * 1024 / run.mib):.2f}",
        f"{series.median(name, lambda run: run.destination_cpu * 1024 / run.mib):.2f}",
        f"{series.median(name, lambda run: run.source_memory / 2**20):.0f} MiB",
        f"{series.median(name, lambda run: run.destination_memory / 2**20):.0f} MiB",
    ]


def _series_part(series: Series) -> str:
    runs = next(iter(series.runs.values()), [])
    size = f"{len(runs)} runs of {runs[0].mib:.0f} MiB" if runs else "no runs"
    kind = "" if series.real or series.workload == "random pages" else ", repeated"
    return f"### {series.workload}{kind}, {series.network}\n\n{size} each.\n\n{_series_table(series)}"


def _settings_part(series: Series) -> str:
    first = next(iter(series.runs))
    head = ["setting", "MiB/s", "× the first's", "s", "CPU s/GiB", "source", "destination", "memory, source", "destination"]
    rows = [_series_row(series, name) for name in series.runs]
    for row, name in zip(rows, series.runs, strict=True):
        row[2] = f"{series.ratio(name, first, lambda run: run.rate):.2f}"
    return f"### Settings: {series.workload}, {series.network}\n\n{len(series.runs[first])} runs.\n\n{table(head, rows)}"


def _starts_table(results: Results) -> str:
    rows = ([name, f"{median(took) * 1000:.0f} ms", f"{min(took) * 1000:.0f} ms"] for name, took in results.starts.items())
    return "### Start\n\nFrom exec to xl's banner, the connection made and authenticated.\n\n" + table(["", "median", "least"], rows)


def _growth_table(results: Results) -> str:
    head = ["stream", "MiB/s", "memory, source", "destination", "CPU s, source", "destination"]
    rows = (
        [
            f"{run.mib / 1024:.1f} GiB",
            f"{run.rate:.0f}",
            f"{run.source_memory / 2**20:.0f} MiB",
            f"{run.destination_memory / 2**20:.0f} MiB",
            f"{run.source_cpu:.2f}",
            f"{run.destination_cpu:.2f}",
        ]
        for run in results.growth
    )
    return f"### {OURS} with a longer stream\n\n{table(head, rows)}"


def _layers_table(results: Results) -> str:
    rows = ([name, f"{seconds * 1000:.0f}", f"{1.073741824 / seconds:.1f}"] for name, seconds in results.layers.items())
    return "### Layers by themselves\n\nOne core, 512 KiB at a time, the best of seven turns.\n\n" + table(["", "CPU ms/GiB", "GB/s"], rows)


def _bars_table(bars: Sequence[Bar]) -> str:
    return table(["bar", "demanded", "found", "met", "bare pump"], ([bar.what, bar.limit, bar.found, bar.verdict, bar.bare] for bar in bars))


def markdown(results: Results, bars: Sequence[Bar]) -> str:
    """The whole report."""
    about = (
        f"{results.machine} {results.date}{', a small round' if results.quick else ''}, {results.took / 60:.0f} minutes. "
        "Medians; transports by turns, and a ratio is the median of the turns' own. "
        "CPU seconds and memory are the transport's alone: the sending and the receiving program's are not in it."
    )
    parts = [about + "\n", *map(_series_part, results.series)]
    parts += [_settings_part(series) for series in results.settings if series.runs]
    parts += [_starts_table(results)] if results.starts else []
    parts += [_growth_table(results)] if results.growth else []
    parts += [_layers_table(results)] if results.layers else []
    parts += ["".join(f"- {' '.join(note.split())}\n" for note in results.notes)] if results.notes else []
    parts += [f"### Bars\n\n{_bars_table(bars)}"]
    return "\n".join(parts)

