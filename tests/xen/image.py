"""dom0's disk: Debian's root tree, xensecure, the guest and the lab's own programs, as an ext4 image. Made anew when any of these has changed."""

from __future__ import annotations

import configparser
import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.xen.common import CACHE, HERE, ROOT, LabError, run, say
from tests.xen.packages import kernel, root_tree

ADDRESSES = {"a": "10.77.0.11", "b": "10.77.0.12"}
HOSTNAMES = {"a": "xen-a", "b": "xen-b"}
KEYS = CACHE / "keys"
_DOM0_MODULES = [
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "crc32c_generic", "bridge", "tun", "loop"),
    *("xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs", "xen-blkback", "xen-netback"),
]
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
UseDNS no
PrintMotd no
"""
# g1 to g4 differ in their names only. RDTSCP of a PVH guest is emulated wrongly by QEMU's own SVM unless the TSC is native.
_GUEST = """\
name = "{name}"
type = "{mode}"
kernel = "/root/guest/vmlinux"
ramdisk = "/root/guest/initrd.gz"
extra = "console=hvc0 quiet lab.ws=32 panic=0"
memory = {memory}
vcpus = 1
on_crash = "preserve"
"""
_MEMORY = {"pv": 128, "pvh": 160}


@dataclass(frozen=True)
class Image:
    """What QEMU boots a host from."""

    disk: Path
    kernel: Path
    initrd: Path


def make_image(tree: Path = ROOT, deb: Path | None = None) -> Image:
    """The disk with xensecure as it is in a source tree now, or from a .deb."""
    debian, linux = root_tree(), kernel()
    _make_keys()
    initrd = _first_initrd(linux)
    with tempfile.TemporaryDirectory(prefix="xensecure-xen-") as name:
        work = Path(name)
        package = deb or _wheel(tree, work)
        programs = sorted(path for part in ("dom0", "guest") for path in (HERE / part).iterdir())
        key = _digest([package, *programs, Path(__file__)], debian.name, linux.name)
        disk = CACHE / f"dom0-{key}.img"
        if not disk.exists():
            say(f"making dom0's disk with {package.name}")
            root = work / "root"
            run(["cp", "-a", debian, root])
            _fill(root, linux)
            _install(package, root)
            new = disk.with_suffix(".new")
            with new.open("wb") as file:
                file.truncate(1500 << 20)
            run(["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum,^has_journal", "-d", root, new])
            for old in CACHE.glob("dom0-*.img"):
                old.unlink()
            new.rename(disk)
    return Image(disk, linux / "vmlinux", initrd)


def _digest(files: list[Path], *words: str) -> str:
    """A name for what goes in; a wheel's members count, not their times."""
    total = hashlib.sha256(repr(words).encode())
    for path in files:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                for info in sorted(wheel.infolist(), key=lambda info: info.filename):
                    total.update(info.filename.encode() + wheel.read(info))
        else:
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def _wheel(tree: Path, work: Path) -> Path:
    """A wheel built from a copy of the tree."""
    source = work / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(tree / name, source)
    for name in ("csrc", "xensecure"):
        shutil.copytree(tree / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    say("building a wheel")
    run([sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir", work / "wheel", source])
    return next((work / "wheel").glob("*.whl"))


def _install(package: Path, root: Path) -> None:
    """Put xensecure into a root tree, onto Debian's own libraries."""
    if package.suffix == ".deb":
        shutil.copy(package, root / "root/xensecure.deb")
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        run(["chroot", root, "dpkg", "-i", "/root/xensecure.deb"])
        policy.unlink()
        shutil.rmtree(root / "var/lib/xensecure", ignore_errors=True)  # each host makes its own
        return
    libraries = root / "usr/lib/python3/dist-packages"
    with zipfile.ZipFile(package) as wheel:
        wheel.extractall(libraries)
    entries = configparser.ConfigParser()
    entries.read_string(next(libraries.glob("xensecure-*.dist-info/entry_points.txt")).read_text())
    for command, place in entries["console_scripts"].items():
        module, function = place.split(":")
        script = root / "usr/bin" / command
        script.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    run(["chroot", root, "python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/xensecure"])
    run(["chroot", root, "useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "_xensecure"])


def _make_keys() -> None:
    """One key for the lab's ssh, one that both hosts have as their own: nothing outside the lab knows either."""
    KEYS.mkdir(mode=0o700, exist_ok=True)
    for name in ("lab", "host"):
        if not (KEYS / name).exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"xensecure-{name}", "-f", KEYS / name])
    names = ",".join([*ADDRESSES.values(), *HOSTNAMES.values()])
    (KEYS / "known_hosts").write_text(f"{names} {' '.join((KEYS / 'host.pub').read_text().split()[:2])}\n")


def _modules(linux: Path, names: list[str]) -> list[Path]:
    """The files of modules and what they need, in the order in which they can be loaded."""
    version = next((linux / "lib/modules").iterdir()).name
    found: dict[Path, None] = {}
    for name in names:
        for line in run(["modprobe", "-d", linux, "-S", version, "--show-depends", name]).splitlines():
            if line.startswith("insmod"):
                found[Path(line.split()[1])] = None
    return list(found)


def _cpio(tree: Path, target: Path) -> None:
    """An initrd of a tree."""
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    done = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"], input=names.encode(), cwd=tree, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"cpio: {done.stderr.decode()}")
    target.write_bytes(gzip.compress(done.stdout, 6))


def _busybox_tree(tree: Path, folders: str) -> None:
    for folder in folders.split():
        (tree / folder).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")


def _first_initrd(linux: Path) -> Path:
    """The initrd that finds dom0's disk."""
    target = CACHE / "initrd-dom0.gz"
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        _busybox_tree(tree, "bin lib proc sys dev mnt")
        modules = _modules(linux, ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"])
        for module in modules:
            shutil.copy(module, tree / "lib")
        (tree / "lib/order").write_text("\n".join(module.name for module in modules))
        shutil.copy(HERE / "dom0/stage1", tree / "init")
        (tree / "init").chmod(0o755)
        _cpio(tree, target)
    return target


def _guest_initrd(target: Path) -> None:
    """The guest: a static program as PID 1, and what xl shutdown calls."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        _busybox_tree(tree, "bin sbin proc dev")
        run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", tree / "init", HERE / "guest/tick.c"])
        for command in ("poweroff", "halt", "reboot"):
            script = tree / "sbin" / command
            script.write_text(f"#!/bin/busybox sh\nexec /bin/busybox {command} -f\n")
            script.chmod(0o755)
        _cpio(tree, target)


def _put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _fill(root: Path, linux: Path) -> None:
    """Modules, ssh, the lab's programs and the guests."""
    version = next((linux / "lib/modules").iterdir()).name
    for module in _modules(linux, _DOM0_MODULES):
        target = root / module.relative_to(linux)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, target)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(linux / "lib/modules" / version / name, root / "lib/modules" / version)
    run(["depmod", "-b", root, version])
    for program in sorted((HERE / "dom0").iterdir()):
        if program.name.startswith("lab-"):
            shutil.copy(program, root / ("usr/sbin" if program.name == "lab-init" else "usr/bin"))
            (root / ("usr/sbin" if program.name == "lab-init" else "usr/bin") / program.name).chmod(0o755)
    for old in (root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    _put(root / "etc/ssh/ssh_host_ed25519_key", (KEYS / "host").read_text(), 0o600)
    _put(root / "etc/ssh/sshd_config", _SSHD)
    _put(root / "root/.ssh/id_ed25519", (KEYS / "lab").read_text(), 0o600)
    _put(root / "root/.ssh/authorized_keys", (KEYS / "lab.pub").read_text(), 0o600)
    _put(root / "root/.ssh/known_hosts", (KEYS / "known_hosts").read_text())
    (root / "root/.ssh").chmod(0o700)
    _put(root / "etc/hosts", "127.0.0.1 localhost\n" + "".join(f"{ADDRESSES[host]} {HOSTNAMES[host]}\n" for host in ADDRESSES))
    _put(root / "etc/fstab", "")
    guest = root / "root/guest"
    guest.mkdir()
    shutil.copy(linux / "vmlinux", guest)
    _guest_initrd(guest / "initrd.gz")
    for mode, memory in _MEMORY.items():
        for name in ("g1", "g2", "g3", "g4"):
            text = _GUEST.format(name=name, mode=mode, memory=memory) + ('tsc_mode = "native"\n' if mode == "pvh" else "")
            _put(guest / f"{mode}-{name}.cfg", text)
