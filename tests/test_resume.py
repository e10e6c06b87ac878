"""A lost link (docs/protocol.md, section 7) with the real xl at both ends: what was cut goes on, and xl notices nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Pair, transports, wait_for
from tests.wires import Wires
from tests.xl.hosts import Fault, Point, Running, running_copies
from tests.xl.stream import StreamSpec, make_stream

WINDOW = 4 << 20
AGAIN = "connected again after "


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts; the destination holds little, so that a held xl holds the source."""
    with Pair(destination_extra=f"window = {WINDOW}\n") as made:
        yield made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB in two passes."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(24, seed=7, passes=2))


@pytest.fixture
def pair(lasting: Pair, stream: Path) -> Iterator[Pair]:
    """The two hosts without a past, and the domain web1 on the source; afterwards no process of a session and no door may be left."""
    lasting.reset()
    lasting.source.xen.create_domain("web1", stream)
    yield lasting
    wait_for(lasting.quiet, "the session's processes to end", 8)
    for name in ("xensecured", "xensecure-launcher"):
        assert "internal error" not in lasting.destination.log(name)
        assert "Traceback" not in lasting.destination.log(name)


HOLDS = {"restore": (Point.RESTORE, True), "ready": (Point.READY, True), "rename": (Point.RENAME, False)}


@pytest.mark.parametrize("where", sorted(HOLDS))
def test_cut_is_survived(pair: Pair, where: str) -> None:
    """The link is cut while one of the hosts stands still: another takes its place, and the domain arrives."""
    point, at_destination = HOLDS[where]
    host = pair.destination.xen if at_destination else pair.source.xen
    if point is Point.RESTORE:
        host.set_fault(Fault.RESTORE_AT, 9_000_000)
    host.set_hold(point)
    wires = Wires(pair.destination.port)
    running: Running = pair.migrate("web1", "-e", transport=f"-v -p {wires.port}")
    host.wait_held(point)
    wires.all[0].cut()
    wait_for(lambda: len(wires.all) == 2, "the second connection", 10)
    host.release(point)
    outcome = running.wait()
    print(outcome.stderr)
    assert outcome.status == 0
    assert AGAIN in outcome.stderr
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == 1
    end = pair.destination.last_end()
    assert end["outcome"] == "arrived" and end["resumptions"] == 1
