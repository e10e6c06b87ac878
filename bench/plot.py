"""The rates as a picture: horizontal bars in SVG, a group for each workload."""

from __future__ import annotations

from html import escape

from bench.results import OURS, Results, Series

_WIDTH, _LABEL, _ROW, _HEAD = 760, 190, 20, 34  # px: the picture; room for names; a bar's row; a group's heading
_COLOURS = {"ours": "#1f6feb", "encrypted": "#8b949e", "plain": "#d0d7de"}
_STYLE = "text{font:12px sans-serif;fill:#1f2328}.head{font-weight:bold}"


def _bar(name: str, rate: float, most: float, top: int, colour: str) -> str:
    width = (_WIDTH - _LABEL - 80) * rate / most
    middle = top + _ROW * 0.7
    return (
        f'<text x="{_LABEL - 8}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{_LABEL}" y="{top + 2}" width="{width:.1f}" height="{_ROW - 5}" fill="{colour}"/>'
        f'<text x="{_LABEL + width + 6:.1f}" y="{middle:.0f}">{rate:.0f} MiB/s</text>\n'
    )


def _group(results: Results, series: Series, top: int) -> str:
    rates = {name: series.median(name, lambda run: run.rate) for name in series.runs}
    drawn = [f'<text class="head" x="8" y="{top + 20}">{escape(f"{series.workload}, {series.network}")}</text>\n']
    for number, (name, rate) in enumerate(sorted(rates.items(), key=lambda entry: -entry[1])):
        kind = "ours" if name.startswith(OURS) else "encrypted" if name in results.encrypted else "plain"
        drawn.append(_bar(name, rate, max(rates.values()), top + _HEAD + number * _ROW, _COLOURS[kind]))
    return "".join(drawn)


def svg(results: Results) -> str:
    """The picture."""
    top, drawn = 0, []
    for series in results.series:
        drawn.append(_group(results, series, top))
        top += _HEAD + len(series.runs) * _ROW
    height = top + 12
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">\n'
    return f'{head}<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>\n{"".join(drawn)}</svg>\n'
