"""Rotations and connections that run at the same time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.pair import wait_for
from tests.pairing_forks import ForkedPair, status_of

ROUNDS = 20


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkedPair]:
    """Two hosts that have met."""
    with ForkedPair() as made:
        yield made


def test_rotations_from_both_sides(forks: ForkedPair) -> None:
    """Rotations that both hosts start at the same time end, well both of them, and with the same key on both hosts."""
    jitter = random.Random(8003)
    for _ in range(ROUNDS):
        running = []
        for host, other in ((forks.first, "hv2"), (forks.second, "hv1")):
            running.append(host.start_ctl("rotate", other))
            time.sleep(jitter.random() * 0.04)
        statuses = [status_of(pid) for pid in running]
        said = [host.log("xensecurectl") for host in forks.hosts]
        assert statuses == [0, 0], said
        wait_for(forks.agree, "one key on both", 2.0)
    assert forks.both_ways()


def test_rotations_from_one_side(forks: ForkedPair) -> None:
    """A rotation that is started while another one runs waits for it."""
    before = forks.peer_of(forks.first).keys[-1].generation
    running = [forks.first.start_ctl("rotate", "hv2") for _ in range(3)]
    assert [status_of(pid) for pid in running] == [0, 0, 0]
    wait_for(forks.agree, "one key on both", 2.0)
    assert forks.peer_of(forks.first).keys[-1].generation == before + 3


def test_connections_meanwhile(forks: ForkedPair) -> None:
    """Connections in the other direction, made while the key is renewed, do not stop the two from sharing one."""
    jitter = random.Random(8004)
    for _ in range(ROUNDS):
        pid = forks.first.start_ctl("rotate", "hv2")
        time.sleep(jitter.random() * 0.06)
        forks.connects(forks.second, forks.first)
        status_of(pid)
        assert forks.both_ways(second_first=jitter.random() < 0.5)


def test_joins_across(forks: ForkedPair) -> None:
    """Two hosts that join each other at the same time share keys afterwards, and can rotate."""
    for _ in range(4):
        forks.set_back("fresh")
        tokens = forks.second.token(), forks.first.token()
        running = [host.start_ctl("join", token) for host, token in zip(forks.hosts, tokens, strict=True)]
        statuses = [status_of(pid) for pid in running]
        assert 0 in statuses
        for host, token, status in zip(forks.hosts, tokens, statuses, strict=True):
            # One of them may have lost the answer to a join that stands.
            again = host.ctl("join", token) if status else 0
            assert again == 0 or "there is nothing left to do" in host.log("xensecurectl"), host.log("xensecurectl")
        assert forks.both_ways()
        assert forks.first.ctl("rotate", "hv2") == 0
        wait_for(forks.agree, "one key on both", 2.0)
