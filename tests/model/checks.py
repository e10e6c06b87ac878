"""The searches that spin makes of the model, and what each must find."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).resolve().parent / "session.pml"
MEMORY = 3000  # MiB that one search may take; the largest takes a third
DEPTH = 100_000  # steps; the longest run has some hundred


@dataclass(frozen=True)
class Check:
    """One search.

    ``losses`` to ``fails``: the bounds of session.pml; ``defines``: its switches; ``formula``: the name in world.pml of what must come at last, ""
    for the requirements; ``breaks``: the requirements of which one must be found broken, "" for none.
    """

    name: str
    losses: int = 0
    kills: int = 0
    terms: int = 0
    fails: int = 0
    defines: tuple[str, ...] = ()
    formula: str = ""
    breaks: str = ""

    @property
    def bounds(self) -> str:
        """Of the faults, as the table has them."""
        return f"{self.losses} {self.kills} {self.terms} {self.fails}"


@dataclass(frozen=True)
class Result:
    """What spin says of a check."""

    states: int
    seconds: float
    found: str
    output: str

    @property
    def is_whole(self) -> bool:
        """Whether the search went through all states there are."""
        return "Search not completed" not in self.output and "max search depth too small" not in self.output and "errors:" in self.output


SAFETY = (
    Check("the requirements, links lost", losses=2, terms=1, fails=1),
    Check("the requirements, a process killed or the power cut", losses=1, kills=1, terms=1, fails=1),
    Check("the requirements, two of these", kills=2, fails=1),
)
LIVENESS = (
    Check("lost links alone: the migration succeeds", losses=2, defines=("LIVE",), formula="succeeds"),
    Check("all comes to an end", losses=1, kills=1, formula="ends"),
)

# Which of the two comes first is the search's affair: both are a domain that is in two places.
_TWICE = "two_running|stale_copy"

WRONG = (
    Check("GO delivered before it is in the journal (S7)", kills=1, defines=("W_GO_BEFORE_JOURNAL",), breaks=_TWICE),
    Check("GO delivered before the journal is on the disk (S7)", kills=1, defines=("W_NOTED_BEFORE_FSYNC",), breaks=_TWICE),
    Check("the source gives up after GO at resume_window (S8)", losses=1, defines=("W_END_AFTER_GO",), breaks="end_after_go"),
    Check("the same, as with NOT CLEARED (S8)", losses=1, defines=("W_NOT_CLEARED_AFTER_GO",), breaks=_TWICE),
    Check("GO in two halves over two lanes is not sent (S8)", losses=1, terms=1, defines=("W_GO_WHOLE_OVER_ONE_LANE",), breaks=_TWICE),
    Check("xl that has got ready gets the end (S8, S10)", losses=1, defines=("W_END_BETWEEN_READY_AND_GO",), breaks="end_after_go"),
    Check("ABORT after GO is the end (S8)", kills=1, defines=("W_ABORT_IS_THE_END",), breaks="end_after_go"),
    Check("EXIT without a report after GO is the end (S8)", kills=1, defines=("W_EXIT_IS_THE_END",), breaks="end_after_go"),
    Check("a status that is not 0 without GO behind it (S9)", losses=1, fails=1, defines=("W_STATUS_IS_ENOUGH",), breaks="end_after_go"),
    Check("the same, when final_window has passed (S9)", losses=1, fails=1, defines=("W_STATUS_WITHOUT_CLEAR",), breaks="end_after_go"),
    Check("old lanes are heard beside the new one (S4)", losses=1, defines=("W_OLD_LANES",), breaks="disorder"),
    Check("nobody reads xl's output on (S6)", losses=1, defines=("W_NOBODY_READS_ON",), breaks="undecided"),
    Check("the journal is read before the keeper is asked (S5, S11)", terms=1, defines=("W_JOURNAL_FIRST",), breaks=_TWICE),
    Check("resumed with nothing left to say (S4, S6)", kills=1, formula="ends", defines=("W_RESUMED_FOR_NOTHING",), breaks="acceptance cycle"),
    Check("the destination does not wait (S6)", losses=1, formula="succeeds", defines=("LIVE", "W_NO_WAIT_THERE"), breaks="acceptance cycle"),
)

_ALWAYS = ("-w", "-DNOREDUCE", "-DCOLLAPSE", f"-DMEMLIM={MEMORY}")  # every step is of something that all see: there is nothing to reduce
_LTL = ("-DNFAIR=3",)  # eight processes need more than the two words of weak fairness that spin takes
_ASSERTIONS = ("-DSAFETY", "-DNOCLAIM")
_FOUND = re.compile(r"^pan:1: (?:assertion violated\s+\W*(\w+)|(acceptance cycle|[^(\n]*))", re.MULTILINE)


def run(check: Check, optimize: str = "", seconds: float = 1200) -> Result:
    """Have spin make the search, compile it and run it.

    Arguments: ``optimize``: gcc's, unless set the one that is done first; ``seconds``: for each of the three.
    OSError where spin or gcc is not there, CalledProcessError where the model is none.
    """
    faults = [f"-D{name}={getattr(check, name.lower())}" for name in ("LOSSES", "KILLS", "TERMS", "FAILS")]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="xensecure-model.") as folder:

        def call(*words: str) -> str:
            done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=seconds)
            return done.stdout

        call("spin", "-a", *faults, *(f"-D{define}" for define in check.defines), str(MODEL))
        call("gcc", optimize or ("-O1" if check.breaks else "-O2"), *_ALWAYS, *(_LTL if check.formula else _ASSERTIONS), "-o", "pan", "pan.c")
        output = call("./pan", f"-m{DEPTH}", *(("-a", "-f", "-N", check.formula) if check.formula else ()))
    states = re.search(r"([\d.e+]+) states, stored", output)
    found = _FOUND.search(output)
    return Result(int(float(states[1])) if states else 0, time.monotonic() - start, (found[1] or found[2]).strip() if found else "", output)


def verdict(check: Check, result: Result) -> str:
    """For the table; it begins with FAILS where something is not as it should be."""
    if result.found not in check.breaks.split("|"):
        return f"FAILS: {result.found or 'nothing'} found"
    if not check.breaks and not result.is_whole:
        return "FAILS: not all states were seen"
    return f"{result.found} found, as it has to be" if check.breaks else "holds"
