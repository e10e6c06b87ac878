"""Remus and lost links: an end of the stream means failover, so none is made of a cut, and none is given before the source is fenced off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Pair, wait_for
from tests.wires import Wires
from tests.xl.stream import StreamSpec, make_stream

AGAIN = "connected again after "


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two hosts with short patience, and the domain web1 on the source."""
    extra = "[defaults]\nkeepalive = 1\nsilence = 2\n"
    with Pair(source_extra=extra, destination_extra=extra, resume_window=2) as made:
        made.source.xen.create_domain("web1", make_stream(tmp_path / "web1.stream", StreamSpec(4, seed=3)))
        yield made
        made.source.xen.close()
        made.expect_nothing_left()


def test_failover_waits_for_the_fence(pair: Pair, tmp_path: Path) -> None:
    """Cuts and a changed byte are no end: the checkpoints go on. When the source is gone for good, xl sees an end only once the fence holds."""
    tried = tmp_path / "tried"
    tmp_path.chmod(0o755)
    pair.destination.add_hook("fence", "10-power", f'#!/bin/sh\necho "$XENSECURE_DOMAIN $XENSECURE_REASON" >>{tried}\n[ $(wc -l <{tried}) -gt 1 ]\n')
    with Wires(pair.destination.port) as wires:
        running = pair.source.xen.remus(pair.transport(f"-p {wires.port}"), "web1", "hv2", "-i", "20", "-e")
        for count, harm in ((1, Wires.cut_last), (2, Wires.spoil_last), (3, Wires.cut_last)):
            before = len(pair.source.xen.calls("checkpoint"))
            wait_for(lambda before=before: len(pair.source.xen.calls("checkpoint")) > before + 2, "checkpoints")
            harm(wires)
            wait_for(lambda count=count: running.stderr().count(AGAIN) == count, "the session to go on")
        assert pair.destination.xen.running() == []
        wires.refusing = True
        running.kill()
        wires.all[-1].cut()
        wait_for(tried.exists, "the first try of the fence", 30)
        wait_for(lambda: "no failover before the source is fenced off" in pair.destination.log("xensecure-launcher"), "the launcher's word")
        assert pair.destination.xen.running() == []
        wait_for(pair.destination.xen.running, "the failover", 30)
    assert len(tried.read_text().splitlines()) == 2
    assert tried.read_text().startswith("web1 ")
    end = pair.destination.last_end()
    assert end["state"] == "failed over"
    assert end["resumptions"] == 3
