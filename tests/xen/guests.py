"""The lab's guests: what they boot from, and the configurations that stand in dom0's /root/guest as MODE-NAME.cfg."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.xen.common import CACHE, HERE, LabError, digest, run
from tests.xen.packages import USERLAND, root_tree

# Debian's programs in a guest that lives in memory: its own logs, lists and caches are of no use there.
_LEFT_OUT = ("var/lib/apt", "var/cache", "var/lib/dpkg", "usr/share/perl", "usr/share/i18n", "usr/lib/x86_64-linux-gnu/gconv", "boot", "dev")

# RDTSCP of a PVH guest is emulated wrongly by QEMU's own SVM unless the TSC is native.
_CONFIGURATION = """\
name = "{name}"
type = "{mode}"
kernel = "/root/guest/vmlinux"
ramdisk = "/root/guest/{ramdisk}.gz"
extra = "console=hvc0 quiet lab.ws={working_set} panic=0"
memory = {memory}
vcpus = {vcpus}
on_crash = "preserve"
"""
_PVH_MORE = 32  # MiB: a PVH guest sees its memory less some holes, and has its own page tables


@dataclass(frozen=True)
class Guest:
    """One guest: memory and the part of it that tick writes to (MiB), CPUs, what it boots from."""

    name: str
    memory: int = 128
    working_set: int = 32
    vcpus: int = 1
    ramdisk: str = "tick"

    def configuration(self, mode: str) -> str:
        """Its configuration for xl; ``mode`` is pv or pvh."""
        memory = self.memory + (_PVH_MORE if mode == "pvh" else 0)
        text = _CONFIGURATION.format(
            name=self.name, mode=mode, ramdisk=self.ramdisk, working_set=self.working_set, memory=memory, vcpus=self.vcpus
        )
        return text + ('tsc_mode = "native"\n' if mode == "pvh" else "")


GUESTS = (
    *(Guest(f"g{number}") for number in range(1, 5)),
    Guest("smp", vcpus=2),
    Guest("bank", memory=352, working_set=8, ramdisk="userland"),
)


def cpio(tree: Path, target: Path) -> None:
    """An initrd of a tree."""
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    done = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], input=names.encode(), cwd=tree, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"cpio: {done.stderr.decode()}")
    target.write_bytes(gzip.compress(done.stdout, 6))


def busybox_tree(tree: Path, folders: str) -> None:
    """A tree with these folders, and busybox as its shell."""
    for folder in folders.split():
        (tree / folder).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")


def _compile_tick(target: Path) -> None:
    run(["gcc", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", target, HERE / "guest/tick.c"])


def _tick_initrd(target: Path) -> None:
    """A static program as PID 1, and what xl shutdown calls."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        busybox_tree(tree, "bin sbin proc dev sys")
        _compile_tick(tree / "init")
        for command in ("poweroff", "halt", "reboot"):
            script = tree / "sbin" / command
            script.write_text(f"#!/bin/busybox sh\nexec /bin/busybox {command} -f\n")
            script.chmod(0o755)
        cpio(tree, target)


def _userland_initrd(target: Path) -> None:
    """Debian's programs with a database at work; kept, for it is some tens of MiB to pack."""
    debian = root_tree("userland", USERLAND)
    kept = CACHE / f"userland-{digest(sorted((HERE / 'guest').iterdir()), debian.name)}.gz"
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="xensecure-xen-") as name:
            tree = Path(name) / "tree"
            run(["cp", "-a", debian, tree])
            for part in _LEFT_OUT:
                shutil.rmtree(tree / part, ignore_errors=True)
            for folder in ("dev", "var/cache"):
                (tree / folder).mkdir()
            _compile_tick(tree / "usr/local/bin/tick")
            shutil.copy(HERE / "guest/userland-init", tree / "init")
            cpio(tree, kept.with_suffix(".new"))
        for old in CACHE.glob("userland-*.gz"):
            old.unlink()
        kept.with_suffix(".new").rename(kept)
    shutil.copy(kept, target)


def put_guests(folder: Path, vmlinux: Path) -> None:
    """Kernel, initrds and configurations of all guests."""
    folder.mkdir()
    shutil.copy(vmlinux, folder)
    _tick_initrd(folder / "tick.gz")
    _userland_initrd(folder / "userland.gz")
    for guest in GUESTS:
        for mode in ("pv", "pvh"):
            (folder / f"{mode}-{guest.name}.cfg").write_text(guest.configuration(mode))
