"""Two hosts under QEMU, one bridge between them, and an attacker's place on it: all in network namespaces of the lab's own.

    xensecure-xen:   br0 10.77.0.1 ── tap-a (host a, 10.77.0.11), tap-b (host b, 10.77.0.12), port-m
    xensecure-xen-m: eth0 10.77.0.66, the attacker's, on the same segment

Nothing of it is connected to the machine's network. Everything that runs has a pid file below the cache, so that `down` finds it later.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.xen.common import RUN, LabError, run, say
from tests.xen.image import ADDRESSES, HOSTNAMES, KEYS, Image

SPACE = "xensecure-xen"
ATTACKER = "xensecure-xen-m"
ATTACKER_ADDRESS = "10.77.0.66"
CUTTER = ("10.77.0.1", 4460)  # where dom0/lab-at asks for a cut
BOOT_SECONDS = 120
# spec-ctrl: QEMU's emulation offers no mitigations, but lazy FPU switching, on which spec-ctrl=no alone falls back, corrupts dom0's programs.
_XEN = (
    "com1=115200,8n1 console=com1 loglvl=all guest_loglvl=all dom0_mem=512M,max:512M dom0_max_vcpus=1 spec-ctrl=no,eager-fpu xpti=no watchdog=0"
)
_LINUX = "console=hvc0 root=/dev/vda rw net.ifnames=0 panic=10 mitigations=off nokaslr random.trust_cpu=on quiet systemd.gpt_auto=0"
# smap: QEMU's emulation faults in dom0 with it.
_CPU = "max,-smap,-la57,-pku"


@dataclass(frozen=True)
class Done:
    """What a command on a host came to."""

    status: int
    out: str


class Host:
    """One Xen host of the lab."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ADDRESSES[name]
        self.hostname = HOSTNAMES[name]
        self.tap = f"tap-{name}"
        self.pidfile = RUN / f"{name}.pid"
        self.console = RUN / f"{name}.console"

    def ssh(self, *words: str, tty: bool = False) -> list[str]:
        """The command line that runs something on the host, from inside the lab's namespace; its connection is shared."""
        options = [
            *("-i", str(KEYS / "lab"), "-o", f"UserKnownHostsFile={KEYS / 'known_hosts'}", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
            *("-o", "ConnectTimeout=10", "-o", "ControlMaster=auto", "-o", f"ControlPath={RUN / self.name}.mux", "-o", "ControlPersist=600"),
        ]
        terminal = ["-t"] if tty else []
        return ["ip", "netns", "exec", SPACE, "ssh", "-F", "/dev/null", *options, *terminal, f"root@{self.address}", *words]

    def start(self, image: Image, xen: Path, accelerator: str) -> None:
        """Start QEMU with a fresh overlay on the image."""
        overlay = RUN / f"{self.name}.qcow2"
        overlay.unlink(missing_ok=True)
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", "raw", overlay])
        arguments = f"{_LINUX} lab.name={self.hostname} lab.ip={self.address}".replace(",", ",,")
        command: list[str | Path] = ["ip", "netns", "exec", SPACE, "qemu-system-x86_64", "-name", f"xensecure-{self.hostname}"]
        command += ["-accel", accelerator, "-machine", "q35", "-cpu", "host" if accelerator == "kvm" else _CPU, "-smp", "1", "-m", "1280"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{self.console}", "-rtc", "base=utc"]
        command += ["-kernel", xen, "-append", _XEN, "-initrd", f"{image.kernel} {arguments},{image.initrd}"]
        command += ["-drive", f"file={overlay},if=none,id=d0,format=qcow2,cache=unsafe", "-device", "virtio-blk-pci,drive=d0"]
        command += ["-netdev", f"tap,id=n0,ifname={self.tap},script=no,downscript=no"]
        command += ["-device", f"virtio-net-pci,netdev=n0,mac=52:54:00:77:00:{self.address.rsplit('.', 1)[1]}"]
        run([*command, "-pidfile", self.pidfile, "-daemonize"])

    def pid(self) -> int:
        """The host's QEMU, 0 if it does not run; a number that another program has meanwhile is not it."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.pidfile.read_text())
            if str(self.pidfile).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        return 0

    def wait_ready(self) -> None:
        """Wait until dom0 answers and xl works."""
        end = time.monotonic() + BOOT_SECONDS
        while self.sh("test -e /run/lab-ready", check=False).status:
            if not self.pid():
                raise LabError(f"host {self.name}: QEMU has ended; {self.console}")
            if time.monotonic() > end:
                raise LabError(f"host {self.name}: not ready after {BOOT_SECONDS} s; {self.console}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End QEMU and the shared ssh connection."""
        mux = RUN / f"{self.name}.mux"
        if mux.exists():
            subprocess.run(["ssh", "-o", f"ControlPath={mux}", "-O", "exit", f"root@{self.address}"], capture_output=True, check=False)
            mux.unlink(missing_ok=True)
        pid = self.pid()
        if pid:
            os.kill(pid, signal.SIGTERM)
            for _ in range(100):
                if not self.pid():
                    break
                time.sleep(0.05)
            else:
                os.kill(pid, signal.SIGKILL)
        for path in (self.pidfile, RUN / f"{self.name}.qcow2"):
            path.unlink(missing_ok=True)

    def power_off(self) -> None:
        """The host stops at once, as if its power had failed."""
        pid = self.pid()
        if not pid:
            raise LabError(f"host {self.name} does not run")
        os.kill(pid, signal.SIGKILL)
        self.stop()

    # ---- what tests do on a host

    def sh(self, command: str, *, check: bool = True, seconds: float = 120, stdin: str | None = None) -> Done:
        """Run a shell command in dom0; stdout and stderr together."""
        try:
            done = subprocess.run(
                self.ssh(command),
                input=stdin or "",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"host {self.name}: {command}: not within {seconds:.0f} s") from None
        if check and done.returncode:
            raise LabError(f"host {self.name}: {command}: status {done.returncode}\n{done.stdout}")
        return Done(done.returncode, done.stdout)

    def popen(self, command: str) -> subprocess.Popen[str]:
        """Start a shell command in dom0."""
        return subprocess.Popen(
            self.ssh(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )

    def domains(self) -> dict[str, str]:
        """The guests by name, with xl's state letters."""
        lines = self.sh("xl list").out.splitlines()[1:]
        rows = [line.split() for line in lines]
        return {row[0]: row[-2] for row in rows if len(row) >= 6 and row[0] != "Domain-0"}


HOSTS = {name: Host(name) for name in ADDRESSES}


def _inside(space: str, *words: str) -> None:
    run(["ip", "netns", "exec", space, "ip", *words])


def _make_network() -> None:
    run(["ip", "netns", "add", SPACE])
    run(["ip", "netns", "add", ATTACKER])
    for space in (SPACE, ATTACKER):
        _inside(space, "link", "set", "lo", "up")
    _inside(SPACE, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
    _inside(SPACE, "addr", "add", "10.77.0.1/24", "dev", "br0")
    _inside(SPACE, "link", "add", "port-m", "type", "veth", "peer", "name", "eth0", "netns", ATTACKER)
    for host in HOSTS.values():
        _inside(SPACE, "tuntap", "add", "dev", host.tap, "mode", "tap")
    for device in ("br0", "port-m", *(host.tap for host in HOSTS.values())):
        if device != "br0":
            _inside(SPACE, "link", "set", device, "master", "br0")
        _inside(SPACE, "link", "set", device, "up")
    _inside(ATTACKER, "addr", "add", f"{ATTACKER_ADDRESS}/24", "dev", "eth0")
    _inside(ATTACKER, "link", "set", "eth0", "up")


def together(*, cut: bool = False) -> None:
    """Join the hosts, or cut them off from each other: the bridge drops what one sends the other. The lab reaches both as before."""
    for host in HOSTS.values():
        if host.pid():
            _inside(SPACE, "link", "set", "dev", host.tap, "type", "bridge_slave", "isolated", "on" if cut else "off")


def up(image: Image, xen: Path, accelerator: str = "tcg,thread=multi,tb-size=512") -> None:
    """Boot both hosts, anew if they ran."""
    down()
    RUN.mkdir(parents=True, exist_ok=True)
    try:
        _make_network()
        for host in HOSTS.values():
            host.start(image, xen, accelerator)
        for host in HOSTS.values():
            host.wait_ready()
    except BaseException:
        down()
        raise
    say(f"hosts a and b are up: {shlex.quote(HOSTS['a'].sh('xl info xen_version').out.strip())}")


def down() -> None:
    """End the hosts and remove the namespaces; consoles and logs stay."""
    for host in HOSTS.values():
        host.stop()
    for space in (SPACE, ATTACKER):
        if Path("/run/netns", space).exists():
            run(["ip", "netns", "del", space])


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep a second run of the lab's commands away."""
    RUN.mkdir(parents=True, exist_ok=True)
    with (RUN / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another run of the lab is under way") from None
        yield
