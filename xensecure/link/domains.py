"""What this host's ``xl list`` says of a domain, under its own name and the two that xl gives it on its way."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..proto.errors import SystemFailure
from ..proto.messages import printable
from .config import Config
from .xl import run_xl

INCOMING, AWAY = "--incoming", "--migratedaway"
# xl_list.c, list_domains(): "%-40s %5d %5lu %5d     %c%c%c%c%c%c  %8.1f"; the letters of a shutdown's reason are "-rscwS", or "?".
_HEAD = re.compile(r"Name +ID +Mem +VCPUs\s+State\s+Time\(s\)")
_LINE = re.compile(r"(.+?) +([0-9]+) +([0-9]+) +([0-9]+) {5}([r-][b-][p-][s-][-rscwS?][d-]) +([0-9]+\.[0-9])")

_NAMELESS = "(null)"  # what printf(3) of glibc makes of the name of a domain that has none


class Seen(enum.StrEnum):
    """A domain's state in ``xl list``."""

    ABSENT = "not there"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    ENDED = "ended"  # shut down, crashed or dying

    @classmethod
    def from_letters(cls, letters: str) -> Seen:
        """The state behind ``rbpsRd``: running, blocked, paused, shut down, why so, dying."""
        if letters[5] == "d" or (letters[3] == "s" and letters[4] != "s"):
            return cls.ENDED
        if letters[3] == "s":
            return cls.SUSPENDED
        return cls.PAUSED if letters[2] == "p" else cls.RUNNING


@dataclass(frozen=True)
class Listed:
    """A line of ``xl list``. ``memory`` in bytes; ``name`` is "" for a domain that has none: it is being built, or torn down."""

    name: str
    id: int
    memory: int
    vcpus: int
    seen: Seen


@dataclass(frozen=True)
class Sightings:
    """One domain under its three names."""

    own: Seen = Seen.ABSENT
    incoming: Seen = Seen.ABSENT
    away: Seen = Seen.ABSENT


def parse_table(text: str) -> list[Listed]:
    """All lines; SystemFailure for a table of another form: what is not understood is not gone by."""
    lines = text.splitlines()
    if not lines or not _HEAD.fullmatch(lines[0]):
        raise SystemFailure(f"'xl list' has another head than xl's: {printable(lines[0] if lines else '')!r}")
    found: list[Listed] = []
    for line in lines[1:]:
        columns = _LINE.fullmatch(line)
        if columns is None:
            raise SystemFailure(f"'xl list' has a line that is none of xl's: {printable(line)!r}")
        name = "" if columns[1] == _NAMELESS else columns[1]
        if name and any(each.name == name for each in found):
            raise SystemFailure(f"'xl list' has {printable(name)!r} twice")
        found.append(Listed(name, int(columns[2]), int(columns[3]) << 20, int(columns[4]), Seen.from_letters(columns[5])))
    return found


def parse_list(text: str) -> dict[str, Seen]:
    """The states of all domains that have a name; SystemFailure as for ``parse_table``."""
    return {each.name: each.seen for each in parse_table(text) if each.name}


def list_table(config: Config) -> list[Listed]:
    """This host's domains, itself (id 0) included; SystemFailure if xl does not say."""
    return parse_table(run_xl(config, "list"))


def list_domains(config: Config) -> dict[str, Seen]:
    """The states of this host's domains by name; SystemFailure if xl does not say."""
    return parse_list(run_xl(config, "list"))


def sight(domains: Mapping[str, Seen], name: str) -> Sightings:
    """One domain in the list."""
    absent = Seen.ABSENT
    return Sightings(domains.get(name, absent), domains.get(f"{name}{INCOMING}", absent), domains.get(f"{name}{AWAY}", absent))


def own_name(name: str) -> str:
    """The domain's own name, whichever of the three was given."""
    for suffix in (INCOMING, AWAY):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name
