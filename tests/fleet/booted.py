"""The role on hosts with systemd, from nothing: scripts/fleet-check.sh calls this with a clean system and what is to be installed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import permutations
from pathlib import Path

from tests.fleet.hosts import Fleet, Machine, ssh_options

# Inside its own mount namespace the machine's disk is the clean system with memory on top.
BOOT = """\
set -eu
mount -t proc proc /proc
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
# "ip netns exec" has mounted a /sys of the namespace's, in which systemd-nspawn looks for this.
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs {own}
mkdir {own}/upper {own}/work {own}/root
mount -t overlay overlay -o lowerdir={root},upperdir={own}/upper,workdir={own}/work {own}/root
cp {folder}/host {folder}/user.pub {own}/root/etc/ssh/
cp {folder}/{name}.sshd {own}/root/etc/ssh/sshd_config
cp -r {wheels} {own}/root/wheels
echo {name} >{own}/root/etc/hostname
exec systemd-nspawn --quiet --directory={own}/root --machine={space} --hostname={name} --register=no --keep-unit \\
    --network-namespace-path=/run/netns/{space} --console=pipe /lib/systemd/systemd
"""


class Booted(Machine):
    """A container with systemd and sshd, which is reached by ssh alone."""

    command = "xensecurectl"
    root: Path
    wheels: Path

    def start(self) -> None:
        """Boot."""
        self._boot(BOOT.format(**self._names(), root=self.root, wheels=self.wheels), Path("/etc/ssh"))

    def started(self) -> bool:
        """Whether sshd lets us in."""
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        return self._ssh("true").returncode == 0

    def _ssh(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        login = ["ssh", *ssh_options(self._folder), "-o", "ConnectTimeout=2", "-i", str(self._folder / "user"), f"root@{self.address}", "--"]
        line = ["ip", "netns", "exec", self._switch, *login, *words]
        return subprocess.run(line, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def run(self, *words: str, status: int = 0, stdin: str = "") -> str:
        """Run a command on it, check its status; what it printed."""
        done = self._ssh(*words, stdin=stdin)
        assert done.returncode == status, f"{self.name}: {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def try_out(what: str, **variables: object) -> None:
    """Two hosts from nothing, once more, and a proof in both directions."""
    with Fleet(2, Booted) as fleet:
        names = [machine.name for machine in fleet.machines]
        own = {"xensecure_systemd": True, "xensecure_ctl": "xensecurectl", **variables}
        first = fleet.play(names, **own)
        assert all(first.changed.values()), first.output
        again = fleet.play(names, **own)
        assert again.changed == dict.fromkeys(names, 0), again.output
        for one, two in permutations(names, 2):
            print(f"{what}: {one}: {fleet[one].ctl('rotate', two).strip()}", flush=True)
        moved = fleet.play(names, **own, xensecure_port=9003)
        assert all(moved.changed.values()), moved.output
        assert "9003" in fleet["hv1"].run("ss", "-ltn")
        print(f"{what}: {first.seconds:.0f} s, again {again.seconds:.0f} s, another port {moved.seconds:.0f} s", flush=True)


def main() -> int:
    """The command."""
    options = argparse.ArgumentParser(prog="scripts/fleet-check.sh")
    for name in ("root", "package", "archive", "wheels"):
        options.add_argument(f"--{name}", type=Path, required=True)
    chosen = options.parse_args()
    Booted.root, Booted.wheels = chosen.root.resolve(), chosen.wheels.resolve()
    try_out("deb", xensecure_install="deb", xensecure_deb=str(chosen.package.resolve()))
    offline = ["--no-index", "--find-links", "/wheels"]
    try_out("pip", xensecure_install="pip", xensecure_archive=str(chosen.archive.resolve()), xensecure_pip_arguments=offline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
