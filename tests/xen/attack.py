"""Starts the man in the middle in his place on the segment, and takes him away again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.xen.common import ROOT, LabError
from tests.xen.hosts import ATTACKER, HOSTS, Host


class Man:
    """The attacker's process."""

    def __init__(self, process: subprocess.Popen[str], kind: str) -> None:
        self._process = process
        self._passes = kind not in ("own", "stolen")
        self._seen: dict[str, Any] | None = None

    def report(self) -> str:
        """What he saw; where he passes on, he goes away with that."""
        if self._passes:
            self._process.terminate()
        try:
            said, _ = self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            return "his connection has not ended"
        lines = said.strip().splitlines()
        with contextlib.suppress(IndexError, ValueError):
            self._seen = json.loads(lines[-1])
        return ", ".join(f"{key} {value}" for key, value in (self._seen or {}).items() if value != "") or said.strip()

    def was_between(self) -> bool:
        """Whether the victim's bytes went through him, none of them readable."""
        return bool(self._seen and self._seen["bytes"] and not self._seen.get("readable"))

    @property
    def changed(self) -> int:
        """In how many connections he has changed a bit."""
        return int((self._seen or {}).get("changed", 0))


@contextlib.contextmanager
def attacked(kind: str, victim: Host, target: Host) -> Iterator[Man]:
    """A man in the middle between victim and target."""
    with tempfile.TemporaryDirectory(prefix="xensecure-xen-") as folder:
        for name, host in HOSTS.items():
            for part in ("key", "crt"):
                Path(folder, f"{name}.{part}").write_text(host.sh(f"cat /var/lib/xensecure/identity.{part}").out)
        words = ["ip", "netns", "exec", ATTACKER, sys.executable, "-m", "tests.xen.attacker", kind, victim.address, target.address, folder]
        process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if line != "ready":
                raise LabError(f"the attacker does not start: {line} {process.stdout.read()}")
            yield Man(process, kind)
        finally:
            process.terminate()
            process.wait()
            victim.sh("ip neigh flush dev eth0", check=False)
