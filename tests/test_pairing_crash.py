"""Steps P3 to P8 and R1 to R5 with kill -9 of each process at each of its steps (docs/protocol.md, section 5)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pair import wait_for
from tests.pairing_forks import KILLED, Fate, ForkedHost, ForkedPair
from xensecure.source.pairing import rotate

# More than any of the processes takes in one command; a run that dies at none of its steps is the last.
STEPS_MAX = 120


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkedPair]:
    """Two hosts that are forks."""
    with ForkedPair() as made:
        yield made


def _again(forks: ForkedPair, token: str) -> None:
    """Run the same join again: it works, or its token is used up and the hosts have met."""
    status = forks.first.ctl("join", token)
    said = forks.first.log("xensecurectl")
    assert status == 0 or (status == 13 and "has been used" in said), said


def _end_well(forks: ForkedPair, at: int) -> None:
    """Both ways, then a rotation from either side, then one key and the same."""
    assert forks.both_ways(second_first=bool(at % 2)), forks.second.log("launcher")
    for host, other in ((forks.first, forks.second), (forks.second, forks.first)):
        rotate(host.config, other.name)
    wait_for(forks.agree, "the destination to drop the old key, which it does after its answer", 2.0)


def _remedy_said(host: ForkedHost) -> None:
    """A command that failed and was not killed itself has said in one line what to do."""
    said = host.log("xensecurectl").strip()
    assert len(said.splitlines()) == 1, said
    assert any(word in said for word in ("again", "running", "pair the hosts", "run 'xensecurectl rotate")), said


@pytest.mark.parametrize("state", ["fresh", "met"])
def test_joining_process_killed(forks: ForkedPair, state: str) -> None:
    """However far `join` came, the same command works again with the same token, and hosts that had met still reach each other."""
    for at in range(1, STEPS_MAX):
        forks.set_back(state)
        token = forks.second.token()
        status = forks.first.ctl("join", token, fate=Fate(at))
        if status == 0:
            assert at > 8
            return
        assert status == KILLED, forks.first.log("xensecurectl")
        if state == "met":
            assert forks.both_ways(second_first=bool(at % 2)), at
        _again(forks, token)
        _end_well(forks, at)
    pytest.fail("the command has no end")


def test_rotating_process_killed(forks: ForkedPair) -> None:
    """However far `rotate` came, the hosts reach each other both ways, and can rotate."""
    for at in range(1, STEPS_MAX):
        forks.set_back("met")
        status = forks.first.ctl("rotate", "hv2", fate=Fate(at))
        if status == 0:
            assert at > 12
            return
        assert status == KILLED, forks.first.log("xensecurectl")
        _end_well(forks, at)
    pytest.fail("the command has no end")


@pytest.mark.parametrize("daemon", ["launcher", "receiver"])
@pytest.mark.parametrize("state", ["fresh", "met"])
def test_daemon_killed_in_join(forks: ForkedPair, state: str, daemon: str) -> None:
    """However far launcher, keeper or receiver came, the join ends with a remedy that works, and hosts that had met still reach each other."""
    try:
        for at in range(1, STEPS_MAX):
            forks.set_back(state)
            token = forks.second.token()
            fate = Fate(at)
            forks.second.restart(daemon, fate)
            status = forks.first.ctl("join", token)
            if fate.steps < at:
                assert status == 0
                assert at > 6
                return
            forks.second.restart(daemon)
            if status:
                _remedy_said(forks.first)
            if state == "met":
                assert forks.both_ways(second_first=bool(at % 2)), at
            _again(forks, token)
            _end_well(forks, at)
        pytest.fail("the daemon has no end")
    finally:
        forks.second.restart(daemon)


@pytest.mark.parametrize("daemon", ["launcher", "receiver"])
def test_daemon_killed_in_rotate(forks: ForkedPair, daemon: str) -> None:
    """However far launcher, keeper or receiver came, the hosts reach each other both ways, and can rotate."""
    try:
        for at in range(1, STEPS_MAX):
            forks.set_back("met")
            fate = Fate(at)
            forks.second.restart(daemon, fate)
            status = forks.first.ctl("rotate", "hv2")
            if fate.steps < at:
                assert status == 0
                assert at > 6
                return
            forks.second.restart(daemon)
            if status:
                _remedy_said(forks.first)
            _end_well(forks, at)
        pytest.fail("the daemon has no end")
    finally:
        forks.second.restart(daemon)
