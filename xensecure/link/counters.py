"""What this host counts for good: a file beside the journal, folded from events. It outlives the journal's rotation, and nobody else resets it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..proto.errors import Cause, Reason
from . import store
from .roles import Outcome, Point, Role

_LOCK_SECONDS = 1.0  # a holder writes some hundred bytes; whoever cannot have the lock in that time does without the count
_RATE_MAX = 1e11  # bytes a second, 800 Gbit/s: what a receiver says beyond that is a lie, and would stay in the counter for good
_SIZE_MAX = 1 << 20  # bytes; ours are some KiB

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One metric: its name (without ``xensecure_`` and ``_total``), what it is, its labels, and the values of these that it has from the first."""

    name: str
    words: str
    labels: Labels
    known: tuple[Labels, ...]
    kind: str = "counter"
    unit: str = ""


ROLES = tuple(str(role) for role in Role)
OUTCOMES = tuple(outcome.label for outcome in Outcome if outcome)
REASONS = tuple(reason.name.lower() for reason in Reason)
_BY_ROLE = tuple((role,) for role in ROLES)


def _each(*values: tuple[str, ...]) -> tuple[Labels, ...]:
    found: list[Labels] = [()]
    for column in values:
        found = [(*labels, value) for labels in found for value in column]
    return tuple(found)


MIGRATIONS = Family("migrations", "Migrations that have ended, by outcome.", ("role", "outcome"), _each(ROLES, OUTCOMES))
BYTES = Family("stream_bytes", "Bytes of xl's stream in migrations that have ended.", ("role",), _BY_ROLE, unit="bytes")
SECONDS = Family("migration_seconds", "Seconds that migrations have taken which have ended.", ("role",), _BY_ROLE, unit="seconds")
LINKS_LOST = Family("links_lost", "Links lost in the middle of a migration.", ("role",), _BY_ROLE)
RESUMPTIONS = Family("resumptions", "Lost links that another one has taken the place of.", ("role",), _BY_ROLE)
LANES_LOST = Family("lanes_lost", "Connections lost while others of the migration lived.", ("role",), _BY_ROLE)
CAUSES = _each(ROLES, tuple(str(cause) for cause in Cause))
AUTHENTICATIONS = Family("authentication_failures", "Hosts that have not proved to be a peer.", ("role", "cause"), CAUSES)
REFUSALS = Family("refusals", "Migrations and connections refused after authentication.", ("role", "cause"), _each(ROLES, REASONS))
POLICY = Family("policy_refusals", "Domains that the admission policy has refused.", ("role",), _BY_ROLE)
ALARMS = Family("neighbour_alarms", "Changes of neighbour or route in the middle of a migration.", ("role",), _BY_ROLE)
HOOKS = Family("hook_failures", "Hooks that have failed.", ("role", "point"), _each(ROLES, tuple(Point)))
MISBEHAVED = Family("receiver_misbehaviours", "Processes here that did what no receiver does.", (), ((),))
TURNED_AWAY = Family("turned_away", "Connections turned away, as there were too many.", (), ((),))
LAST_RATE = Family("last_migration_bytes_per_second", "Rate of the migration that has ended last.", ("role",), (), "gauge")
LAST_END = Family("last_migration_timestamp_seconds", "When the last migration has ended.", ("role", "outcome"), (), "gauge", "seconds")

FAMILIES = (
    *(MIGRATIONS, BYTES, SECONDS, LINKS_LOST, RESUMPTIONS, LANES_LOST, AUTHENTICATIONS, REFUSALS, POLICY, ALARMS, HOOKS, MISBEHAVED, TURNED_AWAY),
    *(LAST_RATE, LAST_END),
)
_ONE = {
    "link-lost": LINKS_LOST,
    "link-resumed": RESUMPTIONS,
    "lane-lost": LANES_LOST,
    "authentication-failed": AUTHENTICATIONS,
    "refused": REFUSALS,
    "policy-refused": POLICY,
    "neighbour-alarm": ALARMS,
    "hook-failed": HOOKS,
    "receiver-misbehaved": MISBEHAVED,
    "turned-away": TURNED_AWAY,
}

Counts = dict[str, dict[Labels, float]]


def count(state: Path, event: str, entry: Mapping[str, str | int | float]) -> bool:
    """Count one event; whether there was something to count. StateError or OSError if that cannot be done now.

    ``event``: its name; ``entry``: its fields.
    """
    changes = list(_changes(event, entry))
    lock = store.lock_within(state / "counters.lock", _LOCK_SECONDS) if changes else None
    if lock is None:
        return False
    try:
        counts = read_counts(state)
        for family, labels, amount in changes:
            before = counts[family.name].get(labels, 0) if family.kind == "counter" else 0
            counts[family.name][labels] = before + amount
        _write(state / "counters.json", counts)
    finally:
        os.close(lock)
    return True


def _changes(event: str, entry: Mapping[str, str | int | float]) -> Iterator[tuple[Family, Labels, float]]:
    def labels(family: Family) -> Labels:
        return tuple(str(entry.get(label, "")) for label in family.labels)

    if event in _ONE:
        yield _ONE[event], labels(_ONE[event]), 1
    elif event == "session-ended":
        seconds = float(entry.get("seconds", 0))
        size = min(float(entry.get("bytes", 0)), seconds * _RATE_MAX)
        yield MIGRATIONS, labels(MIGRATIONS), 1
        yield BYTES, labels(BYTES), size
        yield SECONDS, labels(SECONDS), seconds
        yield LAST_RATE, labels(LAST_RATE), round(size / seconds) if seconds else 0
        yield LAST_END, labels(LAST_END), round(time.time())


def read_counts(state: Path) -> Counts:
    """All counts, those that are zero included; a file that is damaged counts for none."""
    counts: Counts = {family.name: dict.fromkeys(family.known, 0.0) for family in FAMILIES}
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):
        document = json.loads(store.read_secret(state / "counters.json"))
        for family in FAMILIES:
            for key, number in document.get(family.name, {}).items():
                labels = tuple(key.split(",")) if key else ()
                if len(labels) == len(family.labels) and isinstance(number, (int, float)) and number >= 0:
                    counts[family.name][labels] = number
    return counts


def _write(path: Path, counts: Counts) -> None:
    """All or nothing; after a power cut the counts may be older, or begin anew."""
    document = {name: {",".join(labels): number for labels, number in values.items() if number} for name, values in counts.items()}
    write_aside(path, json.dumps(document).encode(), 0o600)


def write_aside(path: Path, content: bytes, mode: int) -> None:
    """Put content into the file, all or nothing; not synced to disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()  # of a process with our number that was killed
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        store.write_all(descriptor, content)
    finally:
        os.close(descriptor)
    aside.replace(path)
