"""Cuts of the link between the hosts at a point of xl's own protocol, and what becomes of the guests that are on their way then."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.xen.common import ROOT, LabError
from tests.xen.hosts import SPACE, Host, together
from tests.xen.image import CONFIGURATION
from tests.xen.moves import wait_for

_FILE = "/etc/xensecure/xensecure.toml"
_STARTED_SECONDS = 30
_ASKED_SECONDS = 300


@dataclass
class Cut:
    """One cut: what it has said so far."""

    process: subprocess.Popen[str]
    seconds: float
    said: list[str] = field(default_factory=list)

    def read(self) -> None:
        """For a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.strip())

    def wait_asked(self, count: int) -> None:
        """So many have come to their point."""
        wait_for(lambda: self.said.count("asked") >= count, f"{count} migrations at the point of the cut, said {self.said}", _ASKED_SECONDS)

    def wait_cut(self) -> None:
        """The link is cut."""
        wait_for(lambda: "cut" in self.said, f"the cut, said {self.said}", _ASKED_SECONDS)

    @property
    def is_up(self) -> bool:
        """Whether it is over."""
        return "up" in self.said

    def wait_up(self) -> None:
        """The hosts reach each other again."""
        wait_for(lambda: self.is_up, "the link", self.seconds + _STARTED_SECONDS)


@contextlib.contextmanager
def cut_for(count: int, seconds: float) -> Iterator[Cut]:
    """The link will be cut for so long when so many `lab-at` have asked for it."""
    words = ["ip", "netns", "exec", SPACE, sys.executable, "-m", "tests.xen.cutter", str(count), str(seconds)]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    cut = Cut(process, seconds)
    threading.Thread(target=cut.read, daemon=True).start()
    try:
        wait_for(lambda: "ready" in cut.said, f"the cutter, said {cut.said}", _STARTED_SECONDS)
        yield cut
    finally:
        process.terminate()
        process.wait()
        together()


@contextlib.contextmanager
def configured(host: Host, text: str, *, launcher: bool = False) -> Iterator[None]:
    """Another configuration on a host; ``launcher``: it has to know of it too, and reads it when it starts."""
    restart = "; systemctl restart xensecure-launcher.service" if launcher else ""
    before = host.sh(f"cat {_FILE}").out
    host.sh(f"cat >{_FILE}{restart}", stdin=CONFIGURATION + text)
    try:
        yield
    finally:
        host.sh(f"cat >{_FILE}{restart}", stdin=before)


def journal_of(host: Host, guest: str, role: str) -> list[dict[str, Any]]:
    """The entries of a guest's last session on a host."""
    entries = [json.loads(line) for line in host.sh("cat /var/lib/xensecure/journal.jsonl").out.splitlines() if line.strip("\0")]
    entries = [entry for entry in entries if entry["role"] == role]
    sessions = [entry["session"] for entry in entries if entry.get("domain") == guest]
    return [entry for entry in entries if sessions and entry["session"] == sessions[-1]]


def status_of(host: Host, guest: str) -> dict[str, Any]:
    """What ``xensecurectl status`` says of a guest; LabError if it says nothing of it."""
    said = host.sh(f"xensecurectl status {guest} --json", check=False).out
    try:
        verdict: dict[str, Any] = json.loads(said.strip().splitlines()[-1])["domains"][0]
    except (ValueError, IndexError):
        raise LabError(f"host {host.name}: xensecurectl status {guest}: {said}") from None
    return verdict


def again_after(said: str) -> float | None:
    """The seconds after which a source said that it was connected again; None if it had lost no link."""
    found = re.findall(r"connected again after ([\d.]+) s", said)
    return sum(map(float, found)) if found else None
