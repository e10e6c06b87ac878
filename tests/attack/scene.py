"""One attack on one transport: the migration while it goes on, and the verdict."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.places import DOMAIN, PLANT, Facts, Lab, LabError, facts_of, forget
from tests.attack.places import until as wait_until
from tests.attack.segment import ATTACKER, DESTINATION, SOURCE, Family, address
from tests.attack.tools import wait_poisoned
from tests.attack.transports import NotApplicableError, Transport
from tests.xl.hosts import XenHost

OURS = ("xensecure", "xensecure-ca")
_XL_SECONDS = 30.0  # for a migration of a few MiB, and the patience of whatever carries it
_LAST_WORDS_SECONDS = 3.0
_SETTLE_SECONDS = 8.0  # for xl at the destination to end after the source's has


@dataclass
class Verdict:
    """Whether the transport fell, and what shows it."""

    falls: bool
    words: str
    facts: Facts = field(default_factory=Facts)
    applies: bool = True

    def cell(self) -> str:
        """For the table."""
        if not self.applies:
            return f"— ({self.words})"
        return f"**falls**: {self.words}" if self.falls else f"holds: {self.words}"


def _session(leader: int) -> list[int]:
    """The living processes of a session of setsid(2)."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def judged(facts: Facts) -> Verdict:
    """By what was done to the domain."""
    harm = facts.harm()
    return Verdict(falls=bool(harm), words=", ".join(harm) or facts.end(), facts=facts)


class Scene:
    """A transport under attack: what the rows of the table work with."""

    def __init__(self, lab: Lab, transport: Transport) -> None:
        self.lab = lab
        self.transport = transport
        self.xen = XenHost(lab.subfolder(ATTACKER))
        self.loot = lab.subfolder("loot") / "stream"

    @property
    def target(self) -> tuple[str, int]:
        """Where the destination listens."""
        return address(DESTINATION, self.family), self.transport.port

    @property
    def family(self) -> Family:
        """What the hosts speak."""
        return self.transport.family

    def reset(self) -> None:
        """All hosts as new."""
        self.transport.reset()
        forget(self.xen)
        self.loot.unlink(missing_ok=True)

    def looted(self) -> bool:
        """Whether the attacker's copy of the stream has the credential."""
        return self.loot.exists() and PLANT in self.loot.read_bytes()

    def migrate(self, command: str = "", *, wait: float = _XL_SECONDS) -> Facts:
        """Xl migrate at the source, and what it came to."""
        source = self.transport.source
        source.create_domain(DOMAIN, self.lab.stream)
        with self.lab.segment.inside(SOURCE):
            running = source.migrate(command or self.transport.command(), DOMAIN, DESTINATION, "-e")
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = running.wait(wait).status
            with contextlib.suppress(LabError):
                wait_until(lambda: not _session(running.pid), "the transport's last words: xl does not wait for them", _LAST_WORDS_SECONDS)
        return self.look(status, running.stderr)

    def look(self, status: int | None, stderr: Callable[[], str]) -> Facts:
        """What has happened, once xl at the other ends has ended."""
        with contextlib.suppress(LabError):
            wait_until(lambda: not self.transport.destination.processes() and not self.xen.processes(), "xl's end", _SETTLE_SECONDS)
        facts = facts_of(self.transport.source, self.transport.destination, self.xen, self.lab.sent)
        facts.status = status
        facts.read = self.looted()
        facts.stderr = stderr()
        if "Traceback" in facts.stderr:
            raise LabError(f"a traceback: {facts.stderr}")
        lines = [line for line in facts.stderr.splitlines() if "SECURITY" in line]
        facts.guard = tuple(line for line in lines if "neighbour guard" in line)
        facts.security = (*self.transport.security(), *(line for line in lines if line not in facts.guard))
        return facts

    def close(self) -> None:
        """End what is left of the attacker's."""
        self.xen.close()


@dataclass(frozen=True)
class Attack:
    """A row of the table. ``way``: the tool that brings the traffic to the attacker, "" if he needs none."""

    key: str
    title: str
    run: Callable[[Scene], Verdict]
    way: str = "arpspoof"
    alarm: tuple[str, ...] = OURS  # which of xensecure's two have to say SECURITY
    guard: tuple[str, ...] = ()  # and whose neighbour guard has to see the way that leads to the attacker
    may_fall: bool = False  # xensecure promises nothing here: the verdict is what it is
    falls: tuple[str, ...] = ("plain",)  # controls that have to fall, or the attack was none


def attempt(attack: Attack, scene: Scene) -> Verdict:
    """One cell of the table."""
    for last in (False, False, True):
        scene.reset()
        try:
            if attack.way:
                wait_poisoned(scene.lab, scene.family)
            return attack.run(scene)
        except NotApplicableError as error:
            return Verdict(falls=False, words=str(error), applies=False)
        except LabError:  # a busy machine spoils what hangs on time
            if last:
                raise
    raise AssertionError
