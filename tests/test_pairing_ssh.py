"""`xensecurectl enroll`: the token comes over ssh, from a real sshd on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import command, free_port, wait_for
from tests.pairing_forks import ForkedPair

SSHD = "/usr/sbin/sshd"
pytestmark = pytest.mark.skipif(
    not (Path(SSHD).exists() and shutil.which("ssh") and os.geteuid() == 0), reason="needs openssh-server, openssh-client and root"
)


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkedPair]:
    """Two hosts that are forks."""
    with ForkedPair() as made:
        yield made


@pytest.fixture(scope="module")
def ssh() -> Iterator[list[str]]:
    """A running sshd that lets us in as root; the options with which enroll's ssh finds it."""
    folder = Path(tempfile.mkdtemp(prefix="xensecure-sshd-"))
    made_run = not Path("/run/sshd").exists()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation; its path is built in
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nLogLevel VERBOSE\n"
        "SetEnv SHLVL=9\n"  # bash(1) then leaves out what root's ~/.bashrc here may wait for
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: "listening on" in (folder / "log").read_text() or process.poll() is not None, "sshd ready")
        assert process.poll() is None, (folder / "log").read_text()
        options = {"Port": port, "IdentityFile": folder / "user", "IdentitiesOnly": "yes", "UserKnownHostsFile": folder / "known", "BatchMode": "yes"}
        yield [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
        if made_run:
            Path("/run/sshd").rmdir()


def _remote(forks: ForkedPair, *arguments: str) -> list[str]:
    """The option that names hv2's own xensecurectl, as an administrator with an unusual path would give it."""
    words = [command("xensecurectl"), "--config", str(forks.second.path), "invite", *arguments]
    return ["--remote-command", " ".join(words)]


def _enroll(forks: ForkedPair, *arguments: str, status: int) -> str:
    assert forks.first.ctl("enroll", *arguments) == status, forks.first.log("xensecurectl")
    return forks.first.log("xensecurectl")


@pytest.mark.parametrize("destination", ["root@127.0.0.1", "127.0.0.1"])
def test_enroll(forks: ForkedPair, ssh: list[str], destination: str) -> None:
    """One command, over the ssh trust that is there, and the two know each other both ways."""
    forks.set_back("fresh")
    said = _enroll(forks, "--ssh", destination, *ssh, *_remote(forks), status=0)
    assert "hv1 and hv2 (127.0.0.1, port" in said
    assert "xs1:" not in said
    assert forks.both_ways()


def test_enroll_without_trust(forks: ForkedPair, ssh: list[str]) -> None:
    """Where ssh does not get in, its own words and the command to try by hand are shown."""
    forks.set_back("fresh")
    said = _enroll(forks, "--ssh", "root@127.0.0.1", *ssh, "-o", "IdentityFile=/nonexistent", "-o", "PubkeyAuthentication=no", status=13)
    assert "Permission denied" in said
    assert "ssh root@127.0.0.1 'xensecurectl invite' printed no token (status 255); run it by hand" in said


def test_enroll_where_nothing_is(forks: ForkedPair, ssh: list[str]) -> None:
    """A host without xensecure, or one that refuses to invite, gives no token, and that is said."""
    forks.set_back("fresh")
    assert "(status 127)" in _enroll(forks, "--ssh", "127.0.0.1", *ssh, "--remote-command", "nothing-of-the-kind", status=13)
    said = _enroll(forks, "--ssh", "127.0.0.1", *ssh, *_remote(forks, "--ttl", "0"), status=13)
    assert "at most 7 days" in said
    assert "(status 2)" in said
    assert "mistyped" in _enroll(forks, "--ssh", "127.0.0.1", *ssh, "--remote-command", "echo xs1:abc", status=13)
    assert "printed no token (status 0)" in _enroll(forks, "--ssh", "127.0.0.1", *ssh, "--remote-command", "echo hello", status=13)


def test_enroll_takes_no_option_for_a_host(forks: ForkedPair) -> None:
    """A destination that starts with a dash is not passed on to ssh as an option of its own."""
    marker = forks.folder / "marker"
    _enroll(forks, f"--ssh=-oProxyCommand=touch {marker}", status=13)
    assert not marker.exists()
