"""What this host counts and what runs on it, as OpenMetrics text (openmetrics.io, version 1.0), and as a file for node_exporter's textfile collector.

node_exporter reads an older form of the same: of OpenMetrics' types it knows those that are used here, counter and gauge, and no others.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from .. import __version__
from .config import Config
from .counters import FAMILIES, ROLES, Family, Labels, read_counts, write_aside
from .journal import CLEARED, RECENT_SECONDS, UNKNOWN, Record, records
from .live import LiveSession, live_sessions

_READ_SECONDS = 7 * 86400.0  # of the journal: a session of the last day has begun by then, and older lines cost nothing
_STATES = ("running", "reconnecting")
SESSIONS = Family("sessions", "Migrations that run now.", ("role", "state"), tuple((role, state) for role in ROLES for state in _STATES), "gauge")
RATE = Family("stream_bytes_per_second", "Rate of all migrations that run now.", ("role",), tuple((role,) for role in ROLES), "gauge")
UNRESOLVED = Family(
    "unresolved_sessions", "Migrations of the last day whose outcome this host does not know.", ("role",), tuple((role,) for role in ROLES), "gauge"
)
BUILD = Family("build_info", "Always 1; the version is a label.", ("version",), (), "gauge")
GAUGES = (SESSIONS, RATE, UNRESOLVED, BUILD)


def metric_names() -> list[str]:
    """Every metric's name, as a query has it."""
    return [f"xensecure_{family.name}{'_total' if family.kind == 'counter' else ''}" for family in (*FAMILIES, *GAUGES)]


def render(config: Config) -> str:
    """All of it; StateError if what it is made of cannot be read."""
    counts = read_counts(config.state)
    live = live_sessions(config.run)
    parts = [_family(family, counts[family.name]) for family in FAMILIES]
    parts += [_family(family, values) for family, values in _gauges(live, records(config.state, time.time() - _READ_SECONDS)).items()]
    return "".join(parts) + "# EOF\n"


def _gauges(live: list[LiveSession], found: list[Record]) -> Mapping[Family, Mapping[Labels, float]]:
    sessions: Counter[Labels] = Counter(dict.fromkeys(SESSIONS.known, 0))
    rates: Counter[Labels] = Counter(dict.fromkeys(RATE.known, 0))
    unresolved: Counter[Labels] = Counter(dict.fromkeys(UNRESOLVED.known, 0))
    running = {(session.session, session.role) for session in live}
    for session in live:
        sessions[(str(session.role), session.state)] += 1
        rates[(str(session.role),)] += round(session.rate)
    for record in found:
        unresolved[(str(record.role),)] += (record.session, record.role) not in running and _is_unresolved(record)
    return {SESSIONS: sessions, RATE: rates, UNRESOLVED: unresolved, BUILD: {(__version__,): 1}}


def _is_unresolved(record: Record) -> bool:
    unknown = record.started and record.peer_word is None and (not record.ended or record.state in (CLEARED, UNKNOWN))
    return bool(unknown) and record.last >= time.time() - RECENT_SECONDS


def _family(family: Family, values: Mapping[Labels, float]) -> str:
    name = f"xensecure_{family.name}"
    lines = [f"# TYPE {name} {family.kind}"]
    if family.unit:
        lines.append(f"# UNIT {name} {family.unit}")
    lines.append(f"# HELP {name} {family.words}")
    sample = f"{name}_total" if family.kind == "counter" else name
    for labels, number in values.items():
        described = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(family.labels, labels, strict=True))
        lines.append(f"{sample}{f'{{{described}}}' if described else ''} {_number(number)}")
    return "\n".join(lines) + "\n"


def _number(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.3f}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def renew(config: Config, age: float) -> None:
    """Write the file of [log] metrics anew, where one is configured and is older than so many seconds; OSError or StateError if it cannot be."""
    if config.metrics == "off":
        return
    path = Path(config.metrics)
    if age:
        with contextlib.suppress(FileNotFoundError):
            if 0 <= time.time() - path.stat().st_mtime < age:
                return
    try:
        write_aside(path, render(config).encode(), 0o644)
    except OSError as error:
        error.filename = str(path)  # not the name that it has while it is written
        raise
