"""A part of the attack lab: real tools on a segment of its own, against xensecure and a control that has to fall. All of it: ``make attack``."""

from __future__ import annotations

import pytest

from tests.attack.ours import Xensecure, XensecureCa
from tests.attack.runs import ROWS, missing_tools, run
from tests.attack.segment import NoSegmentError, Segment
from tests.attack.transports import Plain, TlsMutual, Transport


@pytest.fixture(scope="module", autouse=True)
def _allowed() -> None:
    """Only where there are namespaces and tools."""
    missing = missing_tools()
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: scripts/setup.sh attack")
    try:
        with Segment():
            pass
    except NoSegmentError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("keys", "columns"),
    [
        (("listen-arp", "listen-nd", "xensploit", "flip"), (Plain, Xensecure)),
        (("sslsplit", "answer-rogue"), (TlsMutual, XensecureCa)),
    ],
    ids=["on the path", "rogue root"],
)
def test_control_falls_and_xensecure_holds(keys: tuple[str, ...], columns: tuple[type[Transport], ...]) -> None:
    """Each attack reads or changes the control's domain, and nothing of xensecure's; where it is active, the log says SECURITY."""
    cells = run([row for row in ROWS if row.key in keys], columns)
    assert len(cells) == len(keys) * len(columns)
    assert not list(filter(None, (cell.complaint() for cell in cells)))
