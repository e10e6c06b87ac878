"""What all of the lab stands on: its places, its names, and how it runs programs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xensecure" / "xen"
RUN = CACHE / "run"  # pid files, overlays, consoles and logs of the hosts that run

# What has to be there, and the Debian package it comes in.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "cpio": "cpio",
    "mkfs.ext4": "e2fsprogs",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "depmod": "kmod",
    "gcc": "gcc",
    "git": "git",
    "zstd": "zstd",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}


class LabError(Exception):
    """The lab cannot do what it should; the text says why."""


def check_machine() -> None:
    """LabError unless this is root on a Linux machine with all programs."""
    if os.geteuid() != 0:
        raise LabError("network namespaces, taps and a root tree need root")
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        raise LabError(f"missing: {' '.join(missing)}; apt-get install -y --no-install-recommends {' '.join(missing)}")
    if not Path("/dev/net/tun").exists():
        raise LabError("/dev/net/tun is missing: this kernel or container has no tap devices")


def run(words: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program to its end; returns its stdout, LabError with its words if it fails."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise LabError(f"{' '.join(map(str, words))[:300]}: status {done.returncode}\n{said}")
    return done.stdout


def digest(files: Sequence[Path], *words: str) -> str:
    """A name for what goes into something that is kept."""
    total = hashlib.sha256(repr(words).encode())
    for path in files:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


_BEGIN = time.monotonic()


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    sys.stdout.write(f"[{time.monotonic() - _BEGIN:6.1f} s] {text}\n")
    sys.stdout.flush()
