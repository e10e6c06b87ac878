"""dom0's disk: Debian's root tree, xensecure's package, the guests and the lab's own programs. Made anew when any of these has changed."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.xen.common import CACHE, HERE, ROOT, LabError, digest, run, say
from tests.xen.guests import busybox_tree, cpio, put_guests
from tests.xen.packages import DOM0, kernel, own_package, root_tree

ADDRESSES = {"a": "10.77.0.11", "b": "10.77.0.12"}
HOSTNAMES = {"a": "xen-a", "b": "xen-b"}
KEYS = CACHE / "keys"
_LOADED = ("virtio_net", "virtio_rng", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs")
_DOM0_MODULES = [*_LOADED, "virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "bridge", "tun", "loop", "xen-blkback", "xen-netback", "autofs4"]
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
UseDNS no
PrintMotd no
"""
# A key exchange takes an emulated CPU seconds, and more on a machine that is busy.
CONFIGURATION = """\
[defaults]
connect_timeout = 60
"""
# What nobody looks at in a lab, and an emulated CPU would spend seconds on.
_MASKED = (
    *("getty@tty1.service", "serial-getty@hvc0.service", "systemd-udevd.service", "systemd-udev-trigger.service", "apt-daily.timer"),
    *("apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer"),
    *("systemd-pcrphase-sysinit.service", "systemd-pcrphase.service", "ldconfig.service", "xendomains.service", "systemd-update-utmp.service"),
    *("getty-static.service", "e2scrub_reap.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount"),
)


@dataclass(frozen=True)
class Image:
    """What QEMU boots a host from."""

    disk: Path
    kernel: Path
    initrd: Path


def make_image(tree: Path = ROOT, deb: Path | None = None, tools: Path | None = None) -> Image:
    """The disk with xensecure's package as a source tree makes it now, or with a package that is there.

    ``tools``: what ``make install-tools`` of a Xen source tree has put into its DESTDIR, to be used in the place of Debian's.
    """
    debian, linux = root_tree("dom0", DOM0), kernel()
    _make_keys()
    initrd = _first_initrd(linux)
    package = deb or own_package(tree)
    programs = sorted(path for part in ("dom0", "guest") for path in (HERE / part).iterdir())
    own = [HERE / name for name in ("image.py", "guests.py", "packages.py")]
    disk = CACHE / f"dom0-{digest([package, *programs, *own], debian.name, linux.name, *_listing(tools))}.img"
    if not disk.exists():
        say(f"making dom0's disk with {package.name}")
        with tempfile.TemporaryDirectory(prefix="xensecure-xen-") as name:
            root = Path(name) / "root"
            run(["cp", "-a", debian, root])
            _fill(root, linux)
            _install(package, root)
            if tools:
                _put_tools(tools, root)
            new = disk.with_suffix(".new")
            with new.open("wb") as file:
                file.truncate(2500 << 20)
            run(["mkfs.ext4", "-q", "-F", "-O", "^metadata_csum,^has_journal", "-d", root, new])
        for old in CACHE.glob("dom0-*.img"):
            old.unlink()
        new.rename(disk)
    return Image(disk, linux / "vmlinux", initrd)


def _install(package: Path, root: Path) -> None:
    """Install xensecure's package, onto Debian's own libraries; each host makes its own identity at its first start."""
    shutil.copy(package, root / "root/xensecure.deb")
    policy = root / "usr/sbin/policy-rc.d"
    _put(policy, "#!/bin/sh\nexit 101\n", 0o755)
    run(["chroot", root, "dpkg", "-i", "/root/xensecure.deb"])
    policy.unlink()
    _put(root / "etc/xensecure/xensecure.toml", CONFIGURATION)


def _listing(tools: Path | None) -> list[str]:
    """What a tree of tools is known by: its files, their sizes and times."""
    if tools is None:
        return []
    files = sorted(path for path in tools.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        raise LabError(f"{tools}: no files there; give the DESTDIR of 'make install-tools'")
    return [f"{path.relative_to(tools)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def _put_tools(tools: Path, root: Path) -> None:
    """Another Xen's tools: its xl and its daemons take the place of Debian's."""
    found = [path for path in ("usr/local/sbin/xl", "usr/sbin/xl") if (tools / path).exists()]
    if not found:
        raise LabError(f"{tools}: neither usr/local/sbin/xl nor usr/sbin/xl is there; give the DESTDIR of 'make install-tools'")
    packed = root.parent / "tools.tar"
    run(["tar", "-C", tools, "-cf", packed, "."])
    run(["tar", "-C", root, "--keep-directory-symlink", "-xf", packed])  # /var/run is a link in Debian
    run(["chroot", root, "ldconfig", "/usr/local/lib", "/usr/lib"])
    missing = sorted({line.split()[0] for line in run(["chroot", root, "ldd", f"/{found[0]}"]).splitlines() if "not found" in line})
    if missing:
        raise LabError(f"{tools}: xl there needs {', '.join(missing)}, which dom0 has not; name their packages in DOM0 of tests/xen/packages.py")
    _put(root / "etc/xensecure/xensecure.toml", f'{CONFIGURATION}[receive]\nxl = "/{found[0]}"\n')
    if (tools / "etc/init.d/xencommons").exists():
        with (root / "etc/default/xencommons").open("a") as file:
            file.write("XENCONSOLED_TRACE=guest\nQEMU_XEN=/bin/true\n")  # no guest here has a disk that qemu would have to serve
        (root / "etc/systemd/system/xen.service").symlink_to("/dev/null")
        run(["chroot", root, "update-rc.d", "xencommons", "defaults"])
        unit = root / "etc/systemd/system/lab-boot.service"
        unit.write_text(unit.read_text().replace("After=xen.service", "After=xencommons.service"))


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


def _first_initrd(linux: Path) -> Path:
    """The initrd that finds dom0's disk."""
    target = CACHE / "initrd-dom0.gz"
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        busybox_tree(tree, "bin lib proc sys dev mnt")
        modules = _modules(linux, ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"])
        for module in modules:
            shutil.copy(module, tree / "lib")
        (tree / "lib/order").write_text("\n".join(module.name for module in modules))
        shutil.copy(HERE / "dom0/stage1", tree / "init")
        (tree / "init").chmod(0o755)
        cpio(tree, target)
    return target


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
    _put_lab(root)
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
    put_guests(root / "root/guest", linux / "vmlinux")


def _put_lab(root: Path) -> None:
    """The lab's own programs and unit, and what systemd is to do and to leave."""
    for program in (HERE / "dom0").glob("lab-*"):
        if program.suffix == ".service":
            _put(root / "etc/systemd/system" / program.name, program.read_text())
            wants = root / "etc/systemd/system/multi-user.target.wants"
            wants.mkdir(parents=True, exist_ok=True)
            (wants / program.name).symlink_to(f"../{program.name}")
        else:
            _put(root / "usr/bin" / program.name, program.read_text(), 0o755)
    for unit in _MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    # Not a first boot, which would go through all presets; both hosts may have the same.
    _put(root / "etc/machine-id", f"{'77' * 16}\n")
    _put(root / "etc/modules-load.d/lab.conf", "\n".join(_LOADED) + "\n")
    _put(root / "etc/default/xen", 'XENCONSOLED_ARGS="--log=guest --log-dir=/var/log/xen/console"\n')
    (root / "var/log/xen/console").mkdir(parents=True)
