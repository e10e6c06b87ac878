"""Draws the key exchange's state machine (xensecure/proto/handshake.py, TABLE) as a Mermaid diagram between two marker lines of a document.

``python scripts/state_diagram.py [--check] [FILE]``: prints the diagram; with FILE, puts it between the markers there; with --check, only says
by its status whether it already stands there (1: another one; 2: no markers).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xensecure.proto.handshake import TABLE, Role, State

BEGIN, END = "<!-- state diagram: begin -->", "<!-- state diagram: end -->"


def draw() -> str:
    """The diagram, a fenced block."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for role in Role:
        lines.append(f"    state {role.value} {{")
        names = {state: f"{role.value}_{state.value}" for state in State}
        lines += [f'        state "{state.value}" as {names[state]}' for state in (*TABLE[role], State.CONFIRMED)]
        lines.append(f"        [*] --> {names[State.TLS]}")
        for state, ways in TABLE[role].items():
            lines += [f"        {names[state]} --> {names[following]}: {what.value}" for what, following in ways.items()]
        lines += [f"        {names[State.CONFIRMED]} --> [*]", "    }"]
    lines += ["```", "", f"Every other input, in any state, leads to {State.FAILED.value}, and nothing leads out of it.", ""]
    return "\n".join(lines)


def replace(document: str) -> str | None:
    """The document with the diagram between its markers; None if it has none."""
    head, begin, rest = document.partition(f"{BEGIN}\n")
    _, end, tail = rest.partition(END)
    return f"{head}{begin}{draw()}{end}{tail}" if begin and end else None


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Draw the state machine of the key exchange.")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if the document has another diagram")
    parser.add_argument("file", nargs="?", type=Path, help="a document with the two marker lines")
    options = parser.parse_args(arguments)
    if options.file is None:
        sys.stdout.write(draw())
        return 0
    before = options.file.read_text(encoding="utf-8")
    after = replace(before)
    if after is None:
        sys.stderr.write(f"{options.file}: no line '{BEGIN}' with '{END}' after it\n")
        return 2
    if options.check:
        return int(after != before)
    options.file.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
