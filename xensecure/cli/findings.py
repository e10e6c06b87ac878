"""What ``xensecurectl doctor`` has found out: facts, and findings with their remedies; how they are shown, and what exit status they make.

``KINDS`` is the whole truth about which findings there are; docs/operations.md is tested against it.
"""

from __future__ import annotations

import contextlib
import enum
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..link.say import say
from ..proto.errors import XensecureError
from .common import out

PROGRAM = "xensecurectl"
FORMAT = 1  # of --json; another number means that a field has changed its meaning or gone


class Severity(enum.IntEnum):
    """How bad a finding is; the worst one makes the exit status."""

    NOTE = 0  # good to know
    WARNING = 1  # a migration works, but slowly or not for every domain; or something will break in time
    ERROR = 2  # the next migration fails, or no domain can arrive

    @property
    def word(self) -> str:
        """As it is printed."""
        return self.name.lower()


EXIT_STATUS = {Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 4}

N, W, E = Severity.NOTE, Severity.WARNING, Severity.ERROR
KINDS: dict[str, Severity] = {
    "configuration": N,
    "identity": E,
    "certificate": E,
    "certificate-expires": W,
    "state": E,
    "hooks": E,
    "log": W,
    "key-age": W,
    "key-renewal": N,
    "cipher": E,
    "cipher-slow": W,
    "xl": E,
    "user": E,
    "launcher": E,
    "launcher-configuration": W,
    "port": E,
    "peer": E,
    "connect": E,
    "address": W,
    "mtu-blackhole": E,
    "interface": W,
    "path-mtu": W,
    "buffers": W,
    "group": N,
    "release": W,
    "xen": W,
    "cpu": E,
    "cpu-features": W,
    "virtualization": W,
    "domain-type": E,
    "there": E,
    "full": E,
    "clock": W,
    "cipher-there": N,
    "compress": W,
    "lanes": W,
    "domain": E,
    "memory": E,
    "refused": E,
}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. ``kind``: of KINDS; ``text``: one line; ``remedy``: what to do about it."""

    kind: str
    text: str
    remedy: str

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind]

    def line(self) -> str:
        """As people read it: an error as any other of ours, the others behind their severity."""
        words = f"{self.text}; {self.remedy}" if self.remedy else self.text
        return words if self.severity is Severity.ERROR else f"{self.severity.word}: {words}"


@dataclass(frozen=True)
class Fact:
    """Something that is so. ``data``: the same for programs."""

    kind: str
    text: str
    data: Any = None


@dataclass
class Examination:
    """All facts and findings so far, in the order of the checks."""

    host: str
    peer: str = ""
    domain: str = ""
    facts: list[Fact] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def fact(self, kind: str, text: str, data: Any = None) -> None:
        """Something that is so."""
        self.facts.append(Fact(kind, text, data))

    def find(self, kind: str, text: str, remedy: str) -> None:
        """Something that is not as it should be."""
        self.findings.append(Finding(kind, text, remedy))

    def has(self, *kinds: str) -> bool:
        """Whether there is a finding of one of these kinds."""
        return any(finding.kind in kinds for finding in self.findings)

    @contextlib.contextmanager
    def check(self, kind: str, remedy: str) -> Iterator[None]:
        """One check: what it raises is a finding. ``remedy``: for an error that brings none behind its semicolon."""
        try:
            yield
        except XensecureError as error:
            text, _, own = str(error).partition("; ")
            self.find(kind, text, own or remedy)

    @property
    def worst(self) -> Severity:
        """The worst finding's severity; NOTE where there is none."""
        return max((finding.severity for finding in self.findings), default=Severity.NOTE)

    @property
    def status(self) -> int:
        """The command's exit status."""
        return EXIT_STATUS[self.worst]

    def show(self) -> None:
        """Facts on standard output, findings on standard error."""
        for fact in self.facts:
            out(fact.text)
        for finding in self.findings:
            say(PROGRAM, finding.line())

    def show_json(self) -> None:
        """One object on standard output."""
        out(
            json.dumps(
                {
                    "format": FORMAT,
                    "time": int(time.time()),
                    "host": self.host,
                    "peer": self.peer or None,
                    "domain": self.domain or None,
                    "result": ("well", "warnings", "errors")[self.worst],
                    "facts": [asdict(fact) for fact in self.facts],
                    "findings": [{**asdict(finding), "severity": finding.severity.word} for finding in self.findings],
                }
            )
        )
