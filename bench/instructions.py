"""``python -m bench.instructions``: how many instructions the engine takes for 64 MiB, under callgrind, beside what it took before.

Instructions do not depend on what else a machine does, so that a change of 3 % is seen where time would need an hour of quiet. What is
counted is inside xs_pump_run: the engine's own code and libc's (copies, comparisons). libcrypto's stands beside it for information:
valgrind knows no VAES, and another version of the library has another count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.build import HERE, build_with_engine
from bench.transports import MissingError, find

RECORDED = HERE / "instructions.json"
MORE = 0.03  # the share by which a count may grow
INFORMATION = "libcrypto"  # not judged
_COST = re.compile(r"(?:[+-]?\d+|\*) (\d+)")
_OBJECT = re.compile(r"ob=\((\d+)\)(?: (.+))?")


def by_object(lines: Iterable[str]) -> Counter[str]:
    """Instructions by the program or library that they stand in, from callgrind's output (its manual, "Callgrind Format Specification")."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    current, called = "", False
    for line in lines:
        if match := _OBJECT.match(line):
            current = names.setdefault(match[1], match[2] or "")
        elif line.startswith("cob=") and (match := _OBJECT.match(line[1:])):
            names.setdefault(match[1], match[2] or "")
        elif line.startswith("calls="):
            called = True  # the next line's cost is that of the function called, which has lines of its own
        elif match := _COST.match(line):
            if not called:
                found[Path(current).name] += int(match[1])
            called = False
    return found


def count() -> dict[str, int]:
    """Instructions of the engine, of libc and of libcrypto."""
    with tempfile.TemporaryDirectory(prefix="xensecure-bench-") as name:
        folder = Path(name)
        find("valgrind", "valgrind")
        program, out = build_with_engine("instructions", folder), folder / "callgrind.out"
        words = ["valgrind", "-q", "--tool=callgrind", "--toggle-collect=xs_pump_run", f"--callgrind-out-file={out}", str(program)]
        done = subprocess.run(words, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"bench: {done.stderr.strip()}")
        with out.open() as lines:
            found = by_object(lines)
    parts = {"engine": "instructions", "libc": "libc.so", "libcrypto": "libcrypto.so"}
    return {part: sum(cost for where, cost in found.items() if where.startswith(start)) for part, start in parts.items()}


def main() -> int:
    """Compare, or record; 1 if the engine takes more than it may."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"make today's count the one to compare with ({RECORDED.name})")
    record = parser.parse_args().record
    try:
        found = count()
    except MissingError as error:
        raise SystemExit(f"bench: {error}") from None
    if record:
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    recorded: dict[str, int] = json.loads(RECORDED.read_text())
    good = True
    for part, now in found.items():
        more = now / recorded[part] - 1
        good = good and (part == INFORMATION or more <= MORE)
        print(f"{part:10} {now:>13,} instructions for 64 MiB, {more:+.2%} beside {RECORDED.name}")
    print(f"up to {MORE:+.0%} is allowed, {INFORMATION} aside: {'yes' if good else 'NO'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
