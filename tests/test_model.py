"""The model of the session (tests/model): spin's quickest searches of it, and its words against those of docs/protocol.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.model.checks import LIVENESS, MODEL, SAFETY, WRONG, Check, run, verdict

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(MODEL.parent.glob("*.pml"))
STEP = re.compile(r"\b[A-Z][0-9]+\b")

CAN_RUN = shutil.which("spin") and shutil.which("gcc")
needs_spin = pytest.mark.skipif(not CAN_RUN, reason="spin or gcc is not installed; scripts/setup.sh model does it")


def words() -> str:
    """The model."""
    return "\n".join(path.read_text("utf-8") for path in SOURCES)


@needs_spin
def test_requirements_hold() -> None:
    """With one lost link and nothing else, no order of events breaks a requirement."""
    check = Check("one lost link", losses=1)
    result = run(check, "-O0", seconds=60)
    assert verdict(check, result) == "holds", result.output
    assert result.states > 10_000


@needs_spin
def test_a_wrong_protocol_is_found() -> None:
    """A source that ends xl's input after GO is found out."""
    [check] = [check for check in WRONG if "W_END_AFTER_GO" in check.defines]
    result = run(check, "-O0", seconds=60)
    assert not verdict(check, result).startswith("FAILS"), result.output


def test_cited_steps_exist() -> None:
    """Every step that the model cites is one of the protocol's, and of section 7 it cites all."""
    protocol = (ROOT / "docs/protocol.md").read_text("utf-8")
    steps = set(re.findall(r"^- \*\*([A-Z][0-9]+)\*\*", protocol, re.MULTILINE))
    cited = set(STEP.findall(words())) | {step for check in (*SAFETY, *LIVENESS, *WRONG) for step in STEP.findall(check.name)}
    assert cited <= steps, cited - steps
    assert {step for step in steps if step.startswith("S")} <= cited


def test_every_switch_is_tried() -> None:
    """The model has the switches that checks.py tries, and no other."""
    assert set(re.findall(r"\bW_[A-Z_]+", words())) - {"W_"} == {define for check in WRONG for define in check.defines if define.startswith("W_")}
