"""``xl create -n`` on a machine without a hypervisor: the real xl with the *real* libxenlight and libxlutil, which make libxl's JSON of an xl.cfg.

Under them lies a library of ours (dryrun.c) in the place of hypervisor and xenstored.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.xl.fetch import XEN_VERSION, ToolstackMissingError, cache_root, fetch, locked, xl_binary

SOURCE = Path(__file__).with_suffix(".c")
PACKAGES = (
    f"libxenmisc{XEN_VERSION}",  # libxenlight, libxlutil, libxenctrl, libxenguest
    *("libxencall1", "libxendevicemodel1", "libxenevtchn1", "libxenforeignmemory1", "libxengnttab1", "libxenhypfs1"),
    *("libxenstore4", "libxentoolcore1", "libxentoollog1", "libyajl2"),
)


def dry_xl() -> Path:
    """A command that is xl, and can parse configurations.

    Raises:
        ToolstackMissingError: a package or the compiler is not to be had.

    """
    root = fetch()
    key = hashlib.sha256(f"{root.name} {PACKAGES} {SOURCE.read_text()} {Path(__file__).read_text()}".encode()).hexdigest()[:16]
    target = cache_root() / f"dryrun-{key}"
    with locked("dryrun"):
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix="dryrun-", dir=cache_root()))
            try:
                _fill(root, scratch, target)
                scratch.chmod(0o755)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target / "xl"


def _fill(root: Path, into: Path, target: Path) -> None:
    _run("apt-get", "download", *PACKAGES, cwd=into)
    for package in into.glob("*.deb"):
        _run("dpkg", "-x", str(package), "unpacked", cwd=into)
        package.unlink()
    libraries = next(into.glob("unpacked/usr/lib/*/libxenlight.so.*")).parent
    _run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(libraries / "dryrun.so"), str(SOURCE), cwd=into)
    final = target / libraries.relative_to(into)
    settings = f"LD_LIBRARY_PATH={shlex.quote(str(final))} LD_PRELOAD={shlex.quote(str(final / 'dryrun.so'))}"
    program = into / "xl"
    program.write_text(f'#!/bin/sh\nexec env {settings} {shlex.quote(str(xl_binary(root)))} "$@"\n')
    program.chmod(0o755)


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolstackMissingError(f"{command[0]} is not here: libxl comes from Debian 12 packages, and gcc is needed") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolstackMissingError(f"{command[0]} failed ({last}): without package lists, run 'apt-get update' as root")
