"""``make model``: what spin finds in the model of the session, and that it finds what a wrong protocol does."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from .checks import LIVENESS, SAFETY, WRONG, Check, run, verdict

_WIDTH = max(len(check.name) for check in (*SAFETY, *LIVENESS, *WRONG))


def _wanted(words: list[str]) -> list[Check]:
    checks = (*SAFETY, *LIVENESS, *WRONG)
    return [check for check in checks if not words or any(word in " ".join((check.name, *check.defines)) for word in words)]


def main() -> int:
    """Print the table; 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="searches at once; the largest takes some 700 MiB")
    parser.add_argument("words", nargs="*", help="only the searches that have one of these in their names or switches")
    options = parser.parse_args()
    checks = _wanted(options.words)
    print(f"{'':{_WIDTH}}  faults*        states       time  result")
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for check, result in zip(checks, pool.map(run, checks), strict=True):
            word = verdict(check, result)
            failed += word.startswith("FAILS")
            print(f"{check.name:{_WIDTH}}  {check.bounds}  {result.states:12,}  {result.seconds:7.1f} s  {word}", flush=True)
    print("* at most so many lost links, killed processes or power cuts, SIGTERMs, domains that cannot be started")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
