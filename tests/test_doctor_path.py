"""``xensecurectl doctor HOST`` across a line between two network namespaces: jumbo frames, small ones, and a path that loses packets."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack.segment import DESTINATION, DEVICE, SOURCE, Segment, address
from tests.pair import Pair
from tests.test_doctor_peer import NOTES, changed, examine


@pytest.fixture(scope="module")
def apart(segment: Segment) -> Iterator[Pair]:
    """Two hosts at the ends of it; jumbo frames all the way."""
    for host, device in ((SOURCE, DEVICE), (DESTINATION, DEVICE), ("switch", f"to-{SOURCE}"), ("switch", f"to-{DESTINATION}")):
        # One segment a packet, as on a real line: these cables carry what TCP has not cut yet.
        segment.run(host, "ip", "link", "set", device, "mtu", "9000", "gso_max_segs", "1")
    with segment.inside(DESTINATION):
        pair = Pair(met=False, address=address(DESTINATION))
    with pair:
        token = pair.destination.invite()
        with segment.inside(SOURCE):
            pair.source.ctl("join", token)
        yield pair


def from_source(segment: Segment, pair: Pair, status: int) -> dict[str, Any]:
    """Doctor hv2 in the source's namespace."""
    with segment.inside(SOURCE):
        return examine(pair.source, "hv2", status=status)


def test_jumbo_frames_all_the_way(segment: Segment, apart: Pair) -> None:
    """Interface, addresses and MTU of a path that is as it should be."""
    said = from_source(segment, apart, 0)
    assert said["kinds"].keys() == NOTES
    route = next(fact["data"] for fact in said["facts"] if fact["kind"] == "route")
    assert (route["interface"], route["interface_mtu"], route["path_mtu"]) == (DEVICE, 9000, 9000)
    assert (route["local_address"], route["address"]) == (address(SOURCE), address(DESTINATION))


def test_small_frames_there(segment: Segment, apart: Pair) -> None:
    """Jumbo frames here and not there."""
    segment.run(DESTINATION, "ip", "link", "set", DEVICE, "mtu", "1500")
    try:
        said = from_source(segment, apart, 1)
    finally:
        segment.run(DESTINATION, "ip", "link", "set", DEVICE, "mtu", "9000")
    assert f"carries packets of 1500 bytes, of {DEVICE}'s 9000" in said["kinds"]["path-mtu"]


@pytest.mark.parametrize("length", [1500, 4000])  # the key exchange does not get through; it does, and a guest's memory would not
def test_path_that_loses_large_packets(segment: Segment, apart: Pair, tmp_path: Path, length: int) -> None:
    """A switch on the way drops what is longer and says nothing: found before a guest's first page meets it."""
    rules = f"table inet small {{ chain in {{ type filter hook input priority 0; iifname {DEVICE} meta length > {length} drop; }}; }}\n"
    with segment.inside(DESTINATION):
        done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nft: {done.stderr}")
    try:
        config = changed(apart.source, tmp_path, "[host.hv2]\nconnect_timeout = 2\n")
        with segment.inside(SOURCE):
            said = examine(apart.source, "hv2", status=4, config=config)
    finally:
        segment.run(DESTINATION, "nft", "delete", "table", "inet", "small")
    assert "some of up to 9000 bytes are lost on the way without a word" in said["kinds"]["mtu-blackhole"]
    assert any(fact["kind"] == "there" for fact in said["facts"])
