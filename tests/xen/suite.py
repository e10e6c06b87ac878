"""Runs the tests with real Xen one after the other: a line when one begins and ends, a table at the end, logs of what failed."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence

from tests.xen.cases import CASES, WITH_EVERY_GUEST, paired, prepare
from tests.xen.common import RUN, LabError, say
from tests.xen.moves import clear, daemons_logs

__all__ = ["NAMES", "WITH_EVERY_GUEST", "run_all"]

NAMES = list(CASES)
_NEEDED = "token"  # all others but enroll stand on it
_ON_REQUEST = ("compare",)  # a measurement, not a test


def run_all(mode: str, names: Sequence[str], without: Sequence[str] = ()) -> int:
    """Run all tests, or those named, but ``without`` some; returns the command's exit status."""
    unknown = {*names, *without} - set(NAMES)
    if unknown:
        raise LabError(f"no such test: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    prepare()
    needed = [] if paired() else [_NEEDED]
    chosen = [name for name in NAMES if name in (*names, *needed) or (not names and name not in (*_ON_REQUEST, *without))]
    rows: list[tuple[str, str, float, str]] = []
    for number, name in enumerate(chosen, 1):
        say(f"{number}/{len(chosen)} {name}: {(CASES[name].__doc__ or '').strip()}")
        begin = time.monotonic()
        words, result = _run(name, mode)
        rows.append((name, result, time.monotonic() - begin, words))
        say(f"    {result} in {rows[-1][2]:.0f} s: {words}")
        if name == _NEEDED and result != "ok":
            break
    failed = [row for row in rows if row[1] != "ok"]
    text = [f"{name:16} {result:6} {seconds:5.0f} s  {words}" for name, result, seconds, words in rows]
    (RUN / f"result-{mode}.txt").write_text("\n".join(text) + "\n")
    say(f"{len(rows) - len(failed)} of {len(rows)} tests passed, guests of type {mode}\n" + "\n".join(text))
    if failed:
        say(f"logs: {RUN}/failed-*.log")
    return 1 if failed else 0


def _run(name: str, mode: str) -> tuple[str, str]:
    """One test's words and result."""
    try:
        return CASES[name](mode), "ok"
    except Exception as error:  # noqa: BLE001 - whatever it is, the other tests are run
        _keep_logs(name, error)
        clear()
        return str(error).strip().splitlines()[0] if str(error) else type(error).__name__, "FAILED"


def _keep_logs(name: str, error: Exception) -> None:
    try:
        logs = daemons_logs()
    except LabError as failure:
        logs = str(failure)
    (RUN / f"failed-{name}.log").write_text("".join(traceback.format_exception(error)) + logs)
