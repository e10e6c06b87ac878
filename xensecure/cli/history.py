"""``xensecurectl history``: the migrations of this host, from its journal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from ..link.config import Config
from ..link.domains import own_name
from ..link.hooks import Role
from ..link.journal import Record, records
from ..link.live import live_sessions
from ..proto.memory import duration, size
from ..proto.messages import printable
from .common import out
from .verdict import moment

_HEAD = ("BEGUN", "DOMAIN", "FROM", "TO", "BYTES", "TIME", "OUTCOME")


def history(config: Config, chosen: argparse.Namespace) -> int:
    """The command."""
    running = {(session.session, session.role) for session in live_sessions(config.run)}
    found = [record for record in records(config.state) if not chosen.domain or record.domain == own_name(chosen.domain)]
    found = found[-chosen.number :] if chosen.number else found
    if chosen.json:
        for record in found:
            out(json.dumps(_described(record, running=(record.session, record.role) in running)))
        return 0
    if not found:
        out("the journal has no migration" + (f" of {printable(chosen.domain)}" if chosen.domain else ""))
        return 0
    for line in _table([_HEAD, *(_row(config, record, running=(record.session, record.role) in running) for record in found)]):
        out(line)
    return 0


def _local(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds") if seconds else None


def _described(record: Record, *, running: bool) -> dict[str, object]:
    """A record for programs: times with their offset from UTC, None where there is none."""
    described = asdict(record)
    described.update({name: _local(described[name]) for name in ("started", "ended", "last")})
    if record.peer_word is not None:
        described["peer_word"]["time"] = _local(record.peer_word.time)
    return {**described, "running": running, "well": record.went_well}


def _row(config: Config, record: Record, *, running: bool) -> tuple[str, ...]:
    ends = (config.name, record.peer) if record.role is Role.SOURCE else (record.peer, config.name)
    outcome = "running" if running else record.outcome or (record.state if record.ended else "no end: 'xensecurectl status' says more")
    domain = printable(record.domain) or "?"
    taken = duration(record.seconds) if record.ended else ""
    return (moment(record.started), domain, ends[0] or "?", ends[1] or "?", size(record.bytes), taken, printable(outcome))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
