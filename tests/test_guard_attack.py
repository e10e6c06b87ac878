"""The neighbour guard against the real spoofing tools, while the real xl moves a domain by xensecure: what it says, and what "refuse" stops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.ours import Xensecure
from tests.attack.places import Lab
from tests.attack.runs import laboratory, missing_tools
from tests.attack.segment import ATTACKER, DESTINATION, DEVICE, SOURCE, Family, NoSegmentError, address
from tests.attack.tools import POISONERS, forwarding, recording
from tests.pair import wait_for
from tests.xl.hosts import Point, Running, running_copies

_MIB = 1 << 20
_NEEDED = ("arpspoof", "ettercap", "atk6-parasite6", "atk6-fake_advertise6", "tcpdump")
_SOON = 8.0  # seconds for an alarm, of tools that say their forgery every second or two
# Short, so that the destination gives up in the time of a test: its window, silence and 10 s more.
_TIMES = "[defaults]\nkeepalive = 1\nsilence = 2\n"
_WINDOW = 1


class Guarded(Xensecure):
    """xensecure with little patience."""

    patience, window = _TIMES, _WINDOW


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The segment, hosts and tools of the attack lab."""
    missing = missing_tools(_NEEDED)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: scripts/setup.sh attack")
    try:
        with laboratory() as made:
            yield made
    except NoSegmentError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def paired(lab: Lab) -> Iterator[dict[Family, Guarded]]:
    """Two hosts a family, paired."""
    with contextlib.ExitStack() as stack:
        found = {}
        for family in Family:
            found[family] = Guarded(lab, family)
            stack.callback(found[family].close)
            found[family].start()
        yield found


class Move:
    """A domain on its way: ``-o`` options for xensecure; where it is held."""

    def __init__(self, lab: Lab, hosts: Guarded, name: str, *options: str, window: int = 0) -> None:
        self.lab, self.hosts, self.name = lab, hosts, name
        for xen in (hosts.source, hosts.destination):
            xen.clear_faults()
            for mark in xen.path.glob("held.*"):
                mark.unlink()
        hosts.source.create_domain(name, lab.stream)
        self.words = " ".join((hosts.command(), *(f"-o {option}" for option in (*options, f"resume_window={window}"))))
        self.running: Running | None = None

    def start(self) -> None:
        """Start xl at the source."""
        with self.lab.segment.inside(SOURCE):
            self.running = self.hosts.source.migrate(self.words, self.name, DESTINATION, "-e")

    def said(self) -> str:
        """What xl and xensecure at the source have said."""
        assert self.running is not None
        return self.running.stderr()

    def wait_said(self, *words: str, seconds: float = _SOON) -> None:
        """Until all of this has been said."""
        wait_for(lambda: all(word in self.said() for word in words), f"{words} in {self.said()}", seconds)

    def end(self) -> int:
        """Xl's exit status."""
        assert self.running is not None
        return self.running.wait(30).status

    def copies(self) -> list[str]:
        """The hosts on which the domain runs."""
        return [xen.path.parent.name for xen in running_copies(self.name, self.hosts.source, self.hosts.destination)]


def both_values(lab: Lab, family: Family) -> tuple[str, str]:
    """What an alarm has to name: true and forged hardware address."""
    true, forged = lab.segment.hardware(DESTINATION), lab.segment.hardware(ATTACKER)
    return f"SECURITY: neighbour guard: the hardware address of {address(DESTINATION, family)} on {DEVICE} was {true}", f"and is {forged} now"


_THC = "parasite6 and fake_advertise6"
ARPSPOOF, ETTERCAP, THC = (pytest.param(name, id=name.split()[0]) for name in ("arpspoof", "ettercap", _THC))


@pytest.mark.parametrize("tool", [ETTERCAP, THC])
def test_reported_with_both_values(lab: Lab, paired: dict[Family, Guarded], tool: str) -> None:
    """Poisoned in the middle of a migration: the line names both hardware addresses, and the domain arrives by way of the attacker."""
    family, poison = POISONERS[tool]
    move = Move(lab, paired[family], f"report-{tool.split()[0]}", "neighbour=report", "verbose=1", window=60)
    source = move.hosts.source
    source.set_hold(Point.SUSPEND)
    move.start()
    source.wait_held(Point.SUSPEND)
    move.wait_said(f"neighbour guard: {address(DESTINATION, family)} is {lab.segment.hardware(DESTINATION)} on {DEVICE}")
    with forwarding(lab.segment), poison(lab):
        move.wait_said(*both_values(lab, family))
        source.release(Point.SUSPEND)
        assert move.end() == 0, move.said()
    assert move.copies() == [DESTINATION]
    assert move.said().count("SECURITY") <= 3, move.said()  # the changed address, the shared one, and once more if the true host has answered


@pytest.mark.parametrize("tool", [ARPSPOOF, THC])
def test_refused_before_the_domain_is_moved(lab: Lab, paired: dict[Family, Guarded], tmp_path: Path, tool: str) -> None:
    """The same with "refuse": no more of the domain passes by the attacker, the migration ends, and the source's domain runs.

    The next one does not begin: now the attacker was there first, and is found by the address of his own that has the same hardware address.
    """
    family, poison = POISONERS[tool]
    move = Move(lab, paired[family], f"refuse-{tool.split()[0]}", "neighbour=refuse", f"interface={DEVICE}", window=60)
    source = move.hosts.source
    source.set_hold(Point.SUSPEND)
    move.start()
    source.wait_held(Point.SUSPEND)
    tmp_path.chmod(0o755)
    capture = tmp_path / "capture.pcap"
    with forwarding(lab.segment), recording(lab, capture, move.hosts.port), poison(lab):
        move.wait_said(*both_values(lab, family))
        source.release(Point.SUSPEND)
        assert move.end() != 0
        if family is Family.IPV4:
            refused_from_the_start(lab, paired[family], f"before-{tool}")
    said = move.said()
    ours = [line for line in said.splitlines() if line.startswith("xensecure: SECURITY: neighbour guard: ")]
    assert ours[-1].endswith("; the domain stays on this host"), said
    assert "Traceback" not in said
    assert move.copies() == [SOURCE], said
    assert capture.stat().st_size < _MIB // 4, "the rest of the domain has left"


def refused_from_the_start(lab: Lab, hosts: Guarded, name: str) -> None:
    """Of one that begins under the attack."""
    move = Move(lab, hosts, name, "neighbour=refuse")
    move.start()
    assert move.end() != 0
    both = f"{address(DESTINATION)} and {address(ATTACKER)} on {DEVICE} both have the hardware address {lab.segment.hardware(ATTACKER)}"
    assert f"SECURITY: neighbour guard: {both}; nothing is sent over this connection" in move.said()
    assert move.copies() == [SOURCE]


@pytest.mark.parametrize("family", list(Family))
def test_no_attack_no_alarm(lab: Lab, paired: dict[Family, Guarded], family: Family) -> None:
    """Without an attack the strictest settings let the domain arrive, and say nothing."""
    move = Move(lab, paired[family], f"calm-{family}", "neighbour=refuse", f"interface={DEVICE}", "lanes=4")
    move.start()
    assert move.end() == 0, move.said()
    assert move.copies() == [DESTINATION]
    assert "neighbour guard" not in move.said()


@pytest.mark.parametrize("mode", ["refuse", "report", "off"])
def test_named_interface(lab: Lab, paired: dict[Family, Guarded], mode: str) -> None:
    """With another interface named no connection is made, or one is and it is said, or nothing is."""
    move = Move(lab, paired[Family.IPV4], f"interface-{mode}", f"neighbour={mode}", "interface=mig0")
    said_there = move.hosts.log()
    move.start()
    status = move.end()
    words = f"SECURITY: neighbour guard: the route to {address(DESTINATION)} goes over {DEVICE}, and not over mig0"
    if mode == "off":
        assert "neighbour guard" not in move.said()
    else:
        move.wait_said(words)  # xl waits for no last words of ours
    assert (status == 0) is (mode != "refuse")
    assert move.copies() == [SOURCE if mode == "refuse" else DESTINATION]
    if mode == "refuse":
        assert f"cannot connect to port {move.hosts.port} ({address(DESTINATION)}: the route to" in move.said()
        assert move.hosts.log() == said_there


@pytest.mark.parametrize("lasts", [True, False], ids=["lasting", "passing"])
def test_after_go(lab: Lab, paired: dict[Family, Guarded], lasts: bool) -> None:
    """After GO nothing is given up: no link until the way is as it was, or the destination has said what became of the domain."""
    move = Move(lab, paired[Family.IPV6], f"late-{lasts}", "neighbour=refuse", window=60)
    destination = move.hosts.destination
    destination.set_hold(Point.UNPAUSE)
    move.start()
    destination.wait_held(Point.UNPAUSE)
    with forwarding(lab.segment):
        with POISONERS[_THC][1](lab):
            move.wait_said(*both_values(lab, Family.IPV6))
            move.wait_said("link lost: SECURITY: neighbour guard: ", "; xl waits while a new connection is tried for 3600 s")
            destination.release(Point.UNPAUSE)
            if lasts:
                assert move.end() == 0, move.said()
                assert "connected again" not in move.said()
        if not lasts:
            assert move.end() == 0, move.said()
            assert f"neighbour guard: the way to {address(DESTINATION, Family.IPV6)} is as it was" in move.said()
            assert "connected again after" in move.said()
    assert move.copies() == [DESTINATION]


def test_between_the_last_words(lab: Lab, paired: dict[Family, Guarded]) -> None:
    """Poisoned while the source is about to say GO: the domain is not given up, and xl resumes it here."""
    move = Move(lab, paired[Family.IPV6], "last", "neighbour=refuse", window=60)
    source = move.hosts.source
    source.set_hold(Point.RENAME)
    move.start()
    source.wait_held(Point.RENAME)
    with forwarding(lab.segment), POISONERS[_THC][1](lab):
        move.wait_said(*both_values(lab, Family.IPV6))
        source.release(Point.RENAME)
        assert move.end() != 0
    assert move.copies() == [SOURCE], move.said()


def test_remus_waits(lab: Lab, paired: dict[Family, Guarded]) -> None:
    """An end would be a failover under Remus: checkpoints wait for the way to be as it was, and go on."""
    move = Move(lab, paired[Family.IPV6], "remus", "neighbour=refuse", window=60)
    source, backup = move.hosts.source, move.hosts.destination
    with lab.segment.inside(SOURCE):
        move.running = source.remus(move.words, move.name, DESTINATION, "-i", "20", "-e")
    wait_for(lambda: len(source.calls("checkpoint")) > 2, "checkpoints")
    with forwarding(lab.segment), POISONERS[_THC][1](lab):
        move.wait_said("link lost: SECURITY: neighbour guard: ", "; xl waits while a new connection is tried for 60 s")
    move.wait_said("connected again after", seconds=15)
    before = len(source.calls("checkpoint"))
    wait_for(lambda: len(source.calls("checkpoint")) > before + 2, "checkpoints to go on")
    assert f"{move.name}--incoming" not in backup.running()
    assert move.name not in backup.running()
    move.running.kill()
