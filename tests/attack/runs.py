"""Runs the rows of the table against its columns, and says what does not come out as it has to."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.attack.capture import ROWS as CAPTURE_ROWS
from tests.attack.ours import Xensecure, XensecureCa
from tests.attack.places import Lab, LabError
from tests.attack.rows_load import ROWS as LOAD_ROWS
from tests.attack.rows_path import ROWS as PATH_ROWS
from tests.attack.rows_place import ROWS as PLACE_ROWS
from tests.attack.rows_tls import ROWS as TLS_ROWS
from tests.attack.scene import OURS, Attack, Scene, Verdict, attempt
from tests.attack.segment import Family, Segment
from tests.attack.tools import POISONERS
from tests.attack.transports import Pinned, Plain, Ssh, SshNew, TlsMutual, TlsServer, Transport

COLUMNS: tuple[type[Transport], ...] = (Plain, SshNew, Ssh, TlsServer, TlsMutual, Pinned, Xensecure, XensecureCa)
ROWS: tuple[Attack, ...] = (*PATH_ROWS, *TLS_ROWS, *PLACE_ROWS, *CAPTURE_ROWS, *LOAD_ROWS)
NEEDED = ("arpspoof", "ettercap", "atk6-parasite6", "atk6-fake_advertise6", "nft", "tcpdump", "socat", "ssh", "sshd", "openssl", "sslsplit")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"


@dataclass
class Cell:
    """One attack on one transport; ``failure``: why there is no verdict."""

    attack: Attack
    column: type[Transport]
    verdict: Verdict | None
    seconds: float
    failure: str = ""

    def complaint(self) -> str:
        """What is not as it has to be; "" if all is."""
        where = f"{self.attack.key} against {self.column.key}"
        if self.verdict is None:
            return f"{where}: no verdict: {self.failure}"
        if self.column.key in self.attack.falls and not self.verdict.falls:
            return f"{where}: the control did not fall: {self.verdict.words}; {self.verdict.facts.stderr}"
        if self.column.key not in OURS or not self.verdict.applies:
            return ""
        if self.verdict.falls and self.column.key not in self.attack.falls and not self.attack.may_fall:
            return f"{where}: fell: {self.verdict.words}; {self.verdict.facts.stderr}"
        if self.column.key in self.attack.alarm and not self.verdict.falls and not self.verdict.facts.security:
            return f"{where}: no SECURITY line; {self.verdict.facts.stderr}"
        if self.column.key in self.attack.guard and not self.verdict.facts.guard:
            return f"{where}: the neighbour guard has seen nothing; {self.verdict.facts.stderr}"
        return ""


def missing_tools(needed: Sequence[str] = NEEDED) -> list[str]:
    """The programs that are not here."""
    return [name for name in needed if shutil.which(name, path=_PATH) is None]


@contextlib.contextmanager
def laboratory() -> Iterator[Lab]:
    """The segment and the hosts' folders; NoSegmentError where that is not allowed."""
    with Segment() as segment, tempfile.TemporaryDirectory(prefix="xensecure-attack-") as folder:
        yield Lab(segment, Path(folder))


@contextlib.contextmanager
def started(lab: Lab, columns: Sequence[type[Transport]], family: Family) -> Iterator[list[Transport]]:
    """Transports, their receivers running."""
    with contextlib.ExitStack() as stack:
        transports = []
        for column in columns:
            transport = column(lab, family)
            stack.callback(transport.close)
            transport.start()
            transports.append(transport)
        yield transports


def run(rows: Sequence[Attack], columns: Sequence[type[Transport]], say: Callable[[Cell], None] = lambda _: None) -> list[Cell]:
    """Every row against every column; the way to the attacker is made once for all rows that take the same."""
    cells = []
    with laboratory() as lab:
        for family in Family:
            ways = [way for way in dict.fromkeys(row.way for row in rows) if (POISONERS[way][0] if way else Family.IPV4) is family]
            if not ways:
                continue
            with started(lab, columns, family) as transports:
                for way in ways:
                    with POISONERS[way][1](lab) if way else contextlib.nullcontext():
                        for row in rows:
                            if row.way == way:
                                cells += [_cell(lab, row, transport, say) for transport in transports]
    return cells


def _cell(lab: Lab, row: Attack, transport: Transport, say: Callable[[Cell], None]) -> Cell:
    began = time.monotonic()
    scene = Scene(lab, transport)
    verdict, failure = None, ""
    try:
        verdict = attempt(row, scene)
    except (LabError, AssertionError, OSError, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        scene.close()
    cell = Cell(row, type(transport), verdict, time.monotonic() - began, failure)
    say(cell)
    return cell
