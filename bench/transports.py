"""The two transports that are measured, ready to be run: xensecure with its daemons, and ssh with an sshd of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.pair import Pair, command, free_port

RECEIVE = ("xl", "migrate-receive")


class MissingError(Exception):
    """A program that is needed is not here; the text says what helps."""


class Transport(Protocol):
    """Something that carries a stream to the receiving program."""

    name: str

    def words(self) -> list[str]:
        """Its command line, up to the end."""

    def daemons(self) -> dict[str, int]:
        """The receiving side's processes by name: their own and their children's use is the receiving side's."""

    def close(self) -> None:
        """End its daemons."""


class Xensecure:
    """xensecure as installed, between two hosts on loopback whose xl is the receiving program."""

    name = "xensecure"

    def __init__(self, receiver: Path) -> None:
        self._pair = Pair(xl=receiver)

    def words(self) -> list[str]:
        """As xl calls it."""
        return [command("xensecure"), "-q", "-F", str(self._pair.source.config), "hv2", *RECEIVE]

    def daemons(self) -> dict[str, int]:
        """Receiver and keeper."""
        return {name: process.pid for name, process in self._pair.destination.processes.items()}

    def close(self) -> None:
        """End the hosts."""
        self._pair.close()


@dataclass(frozen=True)
class _Keys:
    """Where an sshd's and a user's keys are."""

    host: Path
    user: Path


def _make_keys(folder: Path) -> _Keys:
    keys = _Keys(folder / "host_key", folder / "user_key")
    for path in (keys.host, keys.user):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return keys


class Ssh:
    """ssh with its default cipher, and an sshd on a high port of loopback, with a public key and nothing asked."""

    name = "ssh"

    def __init__(self, folder: Path, receiver: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._receiver = receiver
        self._port = free_port()
        self._keys = _make_keys(folder)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self._port} {host_key}")
        self._sshd = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise MissingError("there is no sshd here: install openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its unprivileged part in; Debian makes it at boot
        config = self._folder / "sshd_config"
        # SHLVL: bash(1) then does not take itself for a fresh login, and leaves out what somebody's ~/.bashrc may take its time for.
        config.write_text(
            f"""\
ListenAddress 127.0.0.1
Port {self._port}
HostKey {self._keys.host}
AuthorizedKeysFile {self._folder / "authorized_keys"}
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PrintMotd no
SetEnv SHLVL=9
"""
        )
        with (self._folder / "sshd.log").open("wb") as log:
            process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 10
        while time.monotonic() < end and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return process
            time.sleep(0.05)
        process.kill()
        process.wait()
        raise MissingError(f"sshd does not start:\n{(self._folder / 'sshd.log').read_text()}")

    def words(self) -> list[str]:
        """As xl would call it, with this sshd's keys."""
        settings = {
            "BatchMode": "yes",
            "Compression": "no",
            "ControlMaster": "no",
            "ControlPath": "none",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(self._keys.user),
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self._folder / "known_hosts"),
            "LogLevel": "ERROR",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", *options, "-p", str(self._port), f"{getpass.getuser()}@127.0.0.1", str(self._receiver), *RECEIVE]

    def daemons(self) -> dict[str, int]:
        """Sshd."""
        return {"sshd": self._sshd.pid}

    def close(self) -> None:
        """End sshd and what it serves."""
        self._sshd.terminate()
        self._sshd.wait()
