"""Debian's packages, by the machine's own apt sources: hypervisor and kernel, unpacked and not installed; root trees; and xensecure's own."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from tests.xen.common import CACHE, LabError, run, say

SUITE = "bookworm"
HYPERVISOR = "xen-hypervisor-4.17-amd64"
MODES = ("pv", "pvh")
# The last build that can live-migrate PV guests: later ones have shadow paging, and so log-dirty mode for PV, compiled out.
PV_VERSION = "4.17.5"
# dom0: what a Xen host has, what xensecure's package depends on, and what the lab itself uses there.
DOM0 = (
    *("systemd-sysv", "kmod", "xen-utils-4.17", "xenstore-utils", "iproute2", "openssh-server", "openssh-client", "procps", "iputils-ping"),
    *("python3", "python3-cryptography", "python3-cffi-backend", "python3-openssl", "python3-pyroute2", "libipsec-mb1", "libzstd1"),
    *("busybox", "socat", "strace"),
    "libnl-route-3-200",  # for tools of one's own (--tools), whose configure takes it in where it finds it
)
# The guest that does what guests do.
USERLAND = ("sqlite3", "procps")
_NOT_READ = ("doc", "man", "locale")
_NOT_RUN = ("zoneinfo", "i18n", "bash-completion")  # a guest that lives in memory need not carry these
# What xensecure's package is made of.
_PACKED = ("csrc", "docs", "hooks", "man", "packaging", "scripts", "xensecure", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md")


def hypervisor(mode: str) -> Path:
    """Debian's hypervisor, unpacked: for ``pv`` the one that migrates PV guests, for ``pvh`` the current one."""
    versions = [line.split("|")[1].strip() for line in run(["apt-cache", "madison", HYPERVISOR]).splitlines() if "|" in line]
    if mode == "pv":
        versions = [version for version in versions if version.startswith(PV_VERSION)]
    kept = sorted(CACHE.glob(f"hypervisor-{PV_VERSION if mode == 'pv' else ''}*/xen"))
    if not versions and not kept:
        raise LabError(f"apt knows no {HYPERVISOR}{f' {PV_VERSION}' if mode == 'pv' else ''}: apt-get update, or name a hypervisor with --xen")
    if not versions:
        return kept[-1]
    xen = CACHE / f"hypervisor-{versions[0]}" / "xen"
    if not xen.exists():
        tree = _unpack(f"{HYPERVISOR}={versions[0]}")
        xen.parent.mkdir(parents=True, exist_ok=True)
        images = [path for path in (tree / "boot").glob("xen-*.gz") if "dbg" not in path.name]
        prepare_hypervisor(images[0], xen)
        shutil.rmtree(tree)
    return xen


def prepare_hypervisor(source: Path, target: Path) -> None:
    """A hypervisor as QEMU's multiboot loader takes it: not compressed."""
    data = source.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:4] != b"\x7fELF":
        raise LabError(f"{source}: no ELF file inside; give xen.gz or xen, not xen.efi")
    target.with_suffix(".new").write_bytes(data)
    target.with_suffix(".new").rename(target)


def kernel() -> Path:
    """A folder with ``vmlinux`` and the modules below ``lib/modules``, of Debian's current kernel."""
    found = re.findall(r"Depends: (linux-image-[0-9][^ \n]*-amd64)$", run(["apt-cache", "depends", "linux-image-amd64"]), re.MULTILINE)
    if not found:
        raise LabError("apt knows no linux-image-amd64: apt-get update")
    folder = CACHE / f"kernel-{found[0].removeprefix('linux-image-')}"
    if not (folder / "vmlinux").exists():
        shutil.rmtree(folder, ignore_errors=True)
        tree = _unpack(found[0])
        image = next((tree / "boot").glob("vmlinuz-*"))
        run(["depmod", "-b", tree, image.name.removeprefix("vmlinuz-")])
        (tree / "vmlinux").write_bytes(_payload(image.read_bytes()))
        tree.rename(folder)
    return folder


def _unpack(package: str) -> Path:
    """Download a package with apt and unpack it into a fresh folder of the cache."""
    tree = CACHE / f"unpack-{package.split('=')[0]}"
    shutil.rmtree(tree, ignore_errors=True)
    debs = tree / "debs"
    debs.mkdir(parents=True)
    debs.chmod(0o777)  # apt downloads as a user of its own
    say(f"downloading {package}")
    run(["apt-get", "download", "-qq", package], cwd=debs)
    run(["dpkg-deb", "-x", next(debs.glob("*.deb")), tree])
    shutil.rmtree(debs)
    return tree


def _payload(image: bytes) -> bytes:
    """The ELF file inside a bzImage (boot protocol 2.08: payload_offset and payload_length); Xen's own loader does not know all compressions."""
    setup = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup + offset : setup + offset + length - 4]
    if payload[:6] == b"\xfd7zXZ\0":
        elf = lzma.decompress(payload)
    elif payload[:2] == b"\x1f\x8b":
        elf = zlib.decompress(payload, 31)
    else:
        raise LabError(f"the kernel is compressed in a way that is not known here ({payload[:4].hex()})")
    if elf[:4] != b"\x7fELF":
        raise LabError("no ELF file in the kernel's image")
    return elf


def _sources() -> list[Path]:
    """The machine's own apt sources for the suite; others, of third parties, are left out."""
    lists = Path("/etc/apt/sources.list.d")
    files = [Path("/etc/apt/sources.list"), *sorted(lists.glob("*.sources")), *sorted(lists.glob("*.list"))]
    word = re.compile(rf"^(?!\s*#).*\s{SUITE}(?:-updates|-security)?(?:\s|$)", re.MULTILINE)
    found = [path for path in files if path.exists() and word.search(path.read_text())]
    if not found:
        raise LabError(f"no apt sources for Debian's {SUITE} on this machine; add them, the lab takes what apt is set to")
    return found


def root_tree(name: str, packages: Sequence[str]) -> Path:
    """A root tree as Debian's packages make it; nobody writes to it afterwards."""
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    tree = CACHE / f"root-{name}-{key}"
    if not tree.exists():
        say(f"mmdebstrap makes the root tree of {name} (about half a minute)")
        fresh = tree.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        left_out = _NOT_READ if name == "dom0" else (*_NOT_READ, *_NOT_RUN)
        excluded = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in left_out]
        include = f"--include={','.join(packages)}"
        run(["mmdebstrap", "--quiet", "--variant=minbase", "--architectures=amd64", include, *excluded, SUITE, fresh, *_sources()])
        for old in CACHE.glob(f"root-{name}-*"):
            if old != fresh:
                shutil.rmtree(old)
        fresh.rename(tree)
    return tree


def own_package(tree: Path) -> Path:
    """The .deb that a source tree makes, built as ``make deb`` does; kept until something that goes into it changes."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *_PACKED], cwd=tree).splitlines()
    total = hashlib.sha256()
    for path in (tree / name for name in listed if (tree / name).is_file()):
        total.update(str(path.relative_to(tree)).encode() + b"\0" + path.read_bytes())
    folder = CACHE / f"deb-{total.hexdigest()[:16]}"
    if not folder.exists():
        say("building xensecure's .deb in a clean Debian (about a minute, two the first time)")
        fresh = CACHE / "deb-new"
        shutil.rmtree(fresh, ignore_errors=True)
        run([tree / "scripts/deb.sh", "--out", fresh], cwd=tree)
        for old in CACHE.glob("deb-*"):
            if old != fresh:
                shutil.rmtree(old)
        fresh.rename(folder)
    return next(folder.glob("xensecure_*.deb"))
