"""Debian's xl, its headers, verify-stream-v2 and xendomains, unpacked into a cache.

``python -m tests.xl.fetch`` prints the folder. Nothing is installed, and once
the cache is there apt is not asked again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

XEN_VERSION = "4.17"  # Debian 12's
PACKAGES = (
    f"xen-utils-{XEN_VERSION}",  # xl, verify-stream-v2 and the Python package xen.migration
    "libxen-dev",  # libxl.h, for the layout of libxl's structs
    "libyajl2",  # the one library of xl's that is neither stubbed nor everywhere
    "xen-utils-common",  # the init script xendomains and what it calls
)


class ToolstackMissingError(Exception):
    """The real xl can't be had on this machine; the text says why and what helps."""


def cache_root() -> Path:
    """Folder of all that the harness keeps between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "xensecure"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock of that name: two runs at once do the work once."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolstackMissingError(
            f"{command[0]} is not here: the real xl comes from Debian 12 packages"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolstackMissingError(
            f"{command[0]} failed ({last}): without package lists, run 'apt-get update' as root"
        )
    return done.stdout


def _candidate_version() -> str:
    for line in _run("apt-cache", "policy", PACKAGES[0]).splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "Candidate" and value != "(none)":
            return value
    raise ToolstackMissingError(
        f"apt knows no package {PACKAGES[0]}: run 'apt-get update' as root, on Debian 12"
    )


def _unpack(into: Path) -> None:
    downloads = into / "packages"
    downloads.mkdir()
    _run("apt-get", "download", *PACKAGES, cwd=downloads)
    for package in sorted(downloads.glob("*.deb")):
        _run("dpkg", "-x", str(package), str(into))
    shutil.rmtree(downloads)


def _contents() -> str:
    """A word for the list of packages: a copy made of another list is none."""
    return hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]


def _cached() -> Path | None:
    """Newest unpacked copy; a folder gets its final name only when it is whole."""
    found = [path for path in cache_root().glob(f"xl-{_contents()}-*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def fetch() -> Path:
    """Return the folder with the unpacked packages, and make it first if need be.

    Raises:
        ToolstackMissingError: apt can't give the packages.

    """
    found = _cached()
    if found:
        return found
    with locked("fetch"):
        found = _cached()
        if found:
            return found
        target = cache_root() / f"xl-{_contents()}-{_candidate_version()}"
        scratch = Path(tempfile.mkdtemp(prefix="unpack-", dir=cache_root()))
        try:
            _unpack(scratch)
            scratch.chmod(0o755)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target


def xl_binary(root: Path) -> Path:
    """The real xl, below the folder that fetch() gave."""
    return root / f"usr/lib/xen-{XEN_VERSION}/bin/xl"


def verify_stream(
    root: Path, stream: Path, kind: str = "libxl"
) -> subprocess.CompletedProcess[str]:
    """Run xen-utils' verify-stream-v2 on a file; kind is "libxl" or "xl"."""
    base = root / f"usr/lib/xen-{XEN_VERSION}"
    return subprocess.run(
        [sys.executable, str(base / "bin/verify-stream-v2"), "-v", "-i", str(stream), "-f", kind],
        env={**os.environ, "PYTHONPATH": str(base / "lib/python")},
        capture_output=True,
        text=True,
        check=False,
    )


def main() -> int:
    """Print the folder, or one line that says what is missing."""
    try:
        print(fetch())
    except ToolstackMissingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
