"""docs/evaluation.md against the lab: its tables have the lab's rows and columns, and what they say is what has to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.attack import cited
from tests.attack.runs import COLUMNS, ROWS
from tests.attack.scene import OURS
from tests.test_docs import rows, text

ROOT = Path(__file__).resolve().parent.parent


def generated(name: str) -> str:
    """What stands between the markers of that name."""
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", text("docs/evaluation.md"), re.DOTALL)
    assert found, name
    return found[1]


def test_table_is_the_labs() -> None:
    """Every attack has its row and every transport its column; controls fell and xensecure held where they have to."""
    part = generated("attacks")
    head = [cell.strip() for cell in part.splitlines()[0].strip("|").split("|")]
    assert head == ["attack", *(column.title for column in COLUMNS)]
    cells = {row[0]: row[1:] for row in rows(part)}
    assert list(cells) == [attack.title for attack in ROWS]
    for attack in ROWS:
        for column, cell in zip(COLUMNS, cells[attack.title], strict=True):
            fell = cell.startswith("**falls**")
            assert fell or column.key not in attack.falls, (attack.key, column.key)
            assert not fell or column.key not in OURS or column.key in attack.falls or attack.may_fall, (attack.key, column.key)
            assert fell or cell.startswith(("holds: ", "— (")), cell


def test_cited_tests_are_named() -> None:
    """Every group of tests has its row, with its outcome, and as many passed."""
    found = {row[0]: row[1:] for row in rows(generated("cited"))}
    assert {title: row[0] for title, row in found.items()} == {row.title: row.outcome for row in cited.ROWS}
    assert all(re.fullmatch(r"[1-9]\d* passed", row[1]) for row in found.values())


@pytest.mark.parametrize("test", sorted({test for row in cited.ROWS for test in row.tests}))
def test_cited_tests_exist(test: str) -> None:
    """The test that is named is there."""
    path, _, name = test.partition("::")
    source = (ROOT / "tests" / path).read_text("utf-8")
    assert not name or f"\ndef {name}(" in source


def test_captures_show_what_is_said() -> None:
    """The controls' recordings open with the secrets, the planted credential among what opens; of xensecure the four messages alone open."""
    part = generated("frames")
    found = re.findall(r"^Opened in the whole recording: (\d+) bytes, the planted credential (not )?among them\.$", part, re.MULTILINE)
    assert [bool(missing) for _, missing in found] == [False, False, True]
    assert int(found[0][0]) > 1 << 20
    assert int(found[1][0]) > 1 << 20
    assert int(found[2][0]) == 139  # docs/protocol.md, section 3: hellos of 29 and 40 bytes, two proofs of 35
