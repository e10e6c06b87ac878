"""A fleet: machines with a network, files and processes of their own, an sshd on each, and a controller that runs the role on them.

    hv1 .1 ──┐
    hv2 .2 ──┼── bridge, and the controller .254          192.0.2.0/24: addresses for documentation
    hv3 .3 ──┘

Each is a network, mount, UTS and process namespace. What it writes below /etc, /var, /opt, /usr/local, /root and /run goes into memory of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent
ROLE = ROOT / "packaging" / "ansible"
BIN = Path(sys.executable).parent
SSHD = Path("/usr/sbin/sshd")
PLAYBOOK = BIN / "ansible-playbook"
USER = "_xensecure"
OWN_FOLDERS = ("etc", "var", "opt", "usr/local", "root")
CONTROLLER = "192.0.2.254"
COUNT_MAX = 200  # hosts: their last bytes, below the controller's
PATIENCE = 60.0  # seconds until something that should happen is taken as not happening
PLAY_SECONDS = 900.0


def why_not() -> str:
    """Why there can be no fleet here; "" if there can."""
    if os.geteuid() != 0:
        return "only root can make namespaces"
    missing = [name for name in ("ip", "unshare", "nsenter", "ssh", "openssl") if shutil.which(name) is None]
    missing += [str(path) for path in (SSHD, PLAYBOOK) if not path.exists()]
    if missing:
        return f"{', '.join(missing)}: not there"
    return "" if "overlay" in Path("/proc/filesystems").read_text() else "no overlay file system"


# What init is on a machine: the files that are its own, and sshd.
INIT = """\
set -eu
hostname {name}
mount -t proc proc /proc
mount -t tmpfs tmpfs {own}
for folder in {folders}; do
    mkdir -p {own}/$folder/upper {own}/$folder/work
    mount -t overlay overlay -o lowerdir=/$folder,upperdir={own}/$folder/upper,workdir={own}/$folder/work /$folder
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
grep -q '^{user}:' /etc/group || echo '{user}:x:64003:' >>/etc/group
grep -q '^{user}:' /etc/passwd || echo '{user}:x:64003:64003::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
exec {sshd} -D -e -f {folder}/{name}.sshd
"""

# The rc script of a host without systemd: what xensecure_restart_command is for.
RESTART = """\
#!/bin/sh
set -eu
for daemon in xensecured xensecure-launcher; do
    if [ -e /run/$daemon.pid ]; then
        kill "$(cat /run/$daemon.pid)" 2>/dev/null || true
        while kill -0 "$(cat /run/$daemon.pid)" 2>/dev/null; do sleep 0.02; done
    fi
done
setsid {bin}/xensecure-launcher </dev/null >/var/log/xensecure-launcher 2>&1 &
echo $! >/run/xensecure-launcher.pid
setsid {bin}/xensecured --listen </dev/null >/var/log/xensecured 2>&1 &
echo $! >/run/xensecured.pid
for try in $(seq 500); do
    if grep -q 'ready for receivers' /var/log/xensecure-launcher && grep -q 'listening on port' /var/log/xensecured; then exit 0; fi
    sleep 0.02
done
cat /var/log/xensecure-launcher /var/log/xensecured >&2
exit 1
"""

# xensecurectl, with a book of what it was called with and of the tokens that it has printed: on the machine's own disk, for a test to read.
WITNESS = """\
#!/bin/sh
echo "$*" >>/root/arguments
case $1 in
invite) {bin}/xensecurectl "$@" | tee -a /root/tokens ;;
*) exec {bin}/xensecurectl "$@" ;;
esac
"""

# SHLVL: bash(1) then does not take itself for a fresh login, and leaves out what root's ~/.bashrc here may wait for (pyenv's for a lock: a minute).
SSHD_CONFIG = """\
ListenAddress {address}:22
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
LogLevel VERBOSE
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv SHLVL=9
"""


@dataclass(frozen=True)
class Recap:
    """How a run of the playbook ended on one host."""

    ok: int
    changed: int
    unreachable: int
    failed: int


@dataclass(frozen=True)
class Played:
    """A run of the playbook."""

    status: int
    output: str
    seconds: float

    @property
    def recap(self) -> dict[str, Recap]:
        """What the last lines say of each host."""
        found = re.findall(r"^(\w+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", self.output, re.MULTILINE)
        return {name: Recap(*map(int, numbers)) for name, *numbers in found}

    @property
    def changed(self) -> dict[str, int]:
        """The number of changes on each host, of a run that has succeeded."""
        assert self.status == 0, self.output[-20000:]
        return {name: recap.changed for name, recap in self.recap.items()}


def ssh_options(folder: Path) -> list[str]:
    """With which ssh knows the machines, and nobody else."""
    return ["-F", "none", "-o", f"UserKnownHostsFile={folder / 'known'}", "-o", "IdentitiesOnly=yes"]


class Machine:
    """One of them; ``space`` and ``switch``: the network namespaces of it and of the controller."""

    command = str(BIN / "xensecurectl")

    def __init__(self, number: int, folder: Path, space: str, switch: str) -> None:
        self.name = f"hv{number}"
        self.address = f"192.0.2.{number}"
        self.space = space
        self._switch = switch
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot."""
        self._boot(INIT.format(**self._names(), folders=" ".join(OWN_FOLDERS), user=USER, sshd=SSHD), self._folder)

    def _names(self) -> dict[str, object]:
        return {"name": self.name, "own": self._folder / self.name, "folder": self._folder, "space": self.space}

    def _boot(self, init: str, keys: Path) -> None:
        """Run a script as init in namespaces of the machine's; ``keys``: where sshd finds its own and the user's."""
        (self._folder / self.name).mkdir()
        (self._folder / f"{self.name}.sshd").write_text(SSHD_CONFIG.format(address=self.address, folder=keys))
        script = self._folder / f"{self.name}.init"
        script.write_text(init)
        unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        with self._log_path.open("wb") as log:
            words = ["ip", "netns", "exec", self.space, *unshare, "sh", str(script)]
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def started(self) -> bool:
        """Whether it lets somebody in; AssertionError if it has ended."""
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        return "listening on" in self.log()

    @property
    def _log_path(self) -> Path:
        return self._folder / f"{self.name}.log"

    def log(self) -> str:
        """What sshd has said."""
        return self._log_path.read_text(errors="replace")

    @property
    def init(self) -> int:
        """The process id of its init, as seen from outside."""
        assert self._process is not None
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def path(self, name: str) -> Path:
        """A file of the machine's, as seen from outside."""
        return Path(f"/proc/{self.init}/root{name}")

    def run(self, *words: str, status: int = 0, stdin: str = "") -> str:
        """Run a command on it, check its status; what it printed."""
        enter = ["nsenter", "--target", str(self.init), "--net", "--mount", "--uts", "--pid", "--"]
        done = subprocess.run([*enter, *words], input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, f"{self.name}: {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def ctl(self, *words: str, status: int = 0, stdin: str = "") -> str:
        """Run its xensecurectl."""
        return self.run(self.command, *words, status=status, stdin=stdin)

    def peers(self) -> dict[str, Any]:
        """The peers that it knows, by name."""
        return {peer["name"]: peer for peer in json.loads(self.ctl("peers", "--json"))}

    def cpu_seconds(self) -> float:
        """What its processes have used so far, those that have ended included."""
        space = Path(f"/proc/{self.init}/ns/pid").stat().st_ino
        ticks = 0
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "ns/pid").stat().st_ino == space:
                    ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:15]))  # utime to cstime of proc(5)
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Switch it off: with its init all of its processes go."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE)


class Fleet:
    """Machines, and the controller."""

    def __init__(self, count: int, kind: type[Machine] = Machine) -> None:
        assert 0 < count <= COUNT_MAX
        self.folder = Path(tempfile.mkdtemp(prefix="xensecure-fleet-"))
        self.folder.chmod(0o755)
        self._switch = f"xsfleet{os.getpid()}-switch"
        self.machines = [kind(number, self.folder, f"xsfleet{os.getpid()}-{number}", self._switch) for number in range(1, count + 1)]
        self._spaces: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._cable()
            self._keys()
            for machine in self.machines:
                machine.start()
            end = time.monotonic() + PATIENCE
            while not all(machine.started() for machine in self.machines):
                assert time.monotonic() < end, "sshd does not listen"
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getitem__(self, name: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == name)

    def _cable(self) -> None:
        for space in (self._switch, *(machine.space for machine in self.machines)):
            _ip("netns", "add", space)
            self._spaces.append(space)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "addr", "add", f"{CONTROLLER}/24", "dev", "br0")
        for link in ("br0", "lo"):
            _ip("-n", self._switch, "link", "set", link, "up")
        for machine in self.machines:
            _ip("-n", self._switch, "link", "add", machine.name, "type", "veth", "peer", "name", "eth0", "netns", machine.space)
            _ip("-n", self._switch, "link", "set", machine.name, "master", "br0", "up")
            _ip("-n", machine.space, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                _ip("-n", machine.space, "link", "set", link, "up")

    def _keys(self) -> None:
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        key = (self.folder / "host.pub").read_text()
        (self.folder / "known").write_text("".join(f"{machine.address} {key}" for machine in self.machines))
        for name, text in (("restart", RESTART), ("xensecurectl", WITNESS)):
            (self.folder / name).write_text(text.format(bin=BIN))
            (self.folder / name).chmod(0o755)

    def inventory(self, names: Iterable[str], **variables: object) -> Path:
        """An inventory of these machines, with more variables for all."""
        hosts = {name: {"ansible_host": self[name].address, "xensecure_addresses": [self[name].address]} for name in names}
        common = {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(self.folder / "user"),
            "ansible_ssh_common_args": " ".join(ssh_options(self.folder)),
            "xensecure_install": "none",
            "xensecure_systemd": False,
            "xensecure_restart_command": str(self.folder / "restart"),
            "xensecure_ctl": str(self.folder / "xensecurectl"),
        }
        path = self.folder / "inventory.json"
        path.write_text(json.dumps({"xensecure": {"hosts": hosts, "vars": {**common, **variables}}}))
        return path

    def play(self, names: Iterable[str], *words: str, environment: dict[str, str] | None = None, **variables: object) -> Played:
        """Run the role's own playbook for these machines; ``words``: further arguments of ansible-playbook."""
        own = {
            "ANSIBLE_CONFIG": str(ROLE / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            # Other fleets on this machine have the same addresses: their connections are not ours.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
            "ANSIBLE_LOG_PATH": str(self.folder / "ansible.log"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }
        # With its process namespace the ssh connections go that ansible leaves open for the next run.
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        playbook = [str(PLAYBOOK), "-i", str(self.inventory(names, **variables)), *words, str(ROLE / "fleet.yml")]
        start = time.monotonic()
        done = subprocess.run(
            ["ip", "netns", "exec", self._switch, *alone, *playbook],
            env={**os.environ, **own, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PLAY_SECONDS,
            check=False,
        )
        return Played(done.returncode, done.stdout, time.monotonic() - start)

    def close(self) -> None:
        """Switch everything off and remove it."""
        for machine in self.machines:
            machine.close()
        for space in self._spaces:
            _ip("netns", "del", space)
        self._spaces.clear()
        shutil.rmtree(self.folder)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)
