"""What is measured: xensecure with its daemons, and ssh with an sshd of its own. The other peers: bench/peers.py."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.network import Network
from tests.pair import Host, command, free_port
from xensecure.link.config import SCHEMA

RECEIVE = ("xl", "migrate-receive")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_READY_SECONDS = 10.0


class MissingError(Exception):
    """A program that is needed is not here; the text says what helps."""


@dataclass(frozen=True)
class Place:
    """Where transports run: the network, a folder of theirs, and programs.c compiled."""

    network: Network
    folder: Path
    programs: Path

    def subfolder(self, name: str) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


class Transport:
    """Something that carries a stream to the receiving program (programs.c), and that program's words back."""

    name = ""
    encrypted = True

    def __init__(self, place: Place) -> None:
        self.place = place
        self._daemons: list[subprocess.Popen[bytes]] = []

    def words(self) -> list[str]:
        """The command at the source: the stream on its standard input, the receiving program's words on its standard output."""
        raise NotImplementedError

    def daemons(self) -> list[int]:
        """The destination's processes: their own and their children's use is the destination's."""
        return [process.pid for process in self._daemons]

    def close(self) -> None:
        """End the destination's processes."""
        for process in self._daemons:
            process.terminate()
        for process in self._daemons:
            process.wait()
        self._daemons.clear()

    def serve(self, words: Sequence[str], *, port: int = 0, path: Path | None = None) -> None:
        """Start a daemon at the destination, and wait until it listens on a port or a unix socket (if it does at all)."""
        log = self.place.subfolder("log") / "stderr"
        with self.place.network.inside("hv2"), log.open("wb") as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._daemons.append(process)
        end = time.monotonic() + _READY_SECONDS
        while not self._listens(port, path):
            if process.poll() is not None or time.monotonic() > end:
                self.close()
                raise MissingError(f"{words[0]} does not start: {log.read_text(errors='replace').strip()}")
            time.sleep(0.05)

    def _listens(self, port: int, path: Path | None) -> bool:
        if path is not None:
            return path.exists()
        if not port:
            return True
        with self.place.network.inside("hv2"):
            seen = subprocess.run(["ss", "-ltnH", f"sport = :{port}"], env={"PATH": _PATH}, capture_output=True, check=True).stdout
        return bool(seen.strip())


def find(program: str, package: str) -> str:
    """The path of a program; MissingError if it is not installed."""
    path = shutil.which(program, path=_PATH)
    if path is None:
        raise MissingError(f"there is no {program} here: install {package}")
    return path


class Xensecure(Transport):
    """xensecure as installed, between two hosts whose xl is the receiving program.

    ``extra``: more of the configuration of both hosts; ``options``: of the command at the source.
    """

    def __init__(self, place: Place, name: str = "xensecure", *, extra: str = "", options: Sequence[str] = ()) -> None:
        super().__init__(place)
        self.name = name
        self._options = options
        folder = place.subfolder("xensecure")
        folder.chmod(0o755)  # the receivers' user has to reach the launcher's socket
        for host in ("hv1", "hv2"):
            (folder / host).mkdir()
        network = place.network
        if "policy" in SCHEMA:
            extra += '[policy]\ncheck = "off"\n'  # no domain comes, and none can be judged
        self._source = Host(folder / "hv1", "hv1", extra=extra, address=network.source_address)
        self._destination = Host(folder / "hv2", "hv2", extra=extra, xl=place.programs, address=network.destination_address)
        try:
            with network.inside("hv2"):
                self._destination.ctl("init")
                self._destination.start_daemons()
                token = self._destination.invite()
            with network.inside("hv1"):
                self._source.ctl("init")
                self._source.ctl("join", token)
        except AssertionError as error:
            self.close()
            raise MissingError(f"{name}: {error}") from None

    def words(self) -> list[str]:
        """As xl calls it."""
        return [command("xensecure"), "-q", "-F", str(self._source.config), *self._options, "hv2", *RECEIVE]

    def daemons(self) -> list[int]:
        """Receiver and launcher."""
        return [process.pid for process in self._destination.processes.values()]

    def close(self) -> None:
        """End the hosts."""
        self._source.close()
        self._destination.close()


# SHLVL: bash(1) then does not take itself for a fresh login, and leaves out what somebody's ~/.bashrc may take its time for.
_SSHD_CONFIG = """\
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PrintMotd no
SetEnv SHLVL=9
"""


class Ssh(Transport):
    """ssh with a public key and nothing asked, and an sshd on a high port; ``cipher``: another than the default."""

    def __init__(self, place: Place, *, cipher: str = "") -> None:
        super().__init__(place)
        self.name = f"ssh, {cipher.removesuffix('@openssh.com')}" if cipher else "ssh"
        self._cipher = cipher
        self._port = free_port()
        self._folder = place.subfolder("ssh")
        sshd = find("sshd", "openssh-server")
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / key)], check=True)
        shutil.copy(self._folder / "user_key.pub", self._folder / "authorized_keys")
        address = place.network.destination_address
        (self._folder / "known_hosts").write_text(f"[{address}]:{self._port} {(self._folder / 'host_key.pub').read_text()}")
        config = self._folder / "sshd_config"
        config.write_text(_SSHD_CONFIG.format(address=address, port=self._port, folder=self._folder))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its unprivileged part in; Debian makes it at boot
        self.serve([sshd, "-D", "-e", "-f", str(config)], port=self._port)

    def words(self) -> list[str]:
        """As xl would call it, with this sshd's keys."""
        settings = {
            "BatchMode": "yes",
            "Compression": "no",
            "ControlMaster": "no",
            "ControlPath": "none",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(self._folder / "user_key"),
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self._folder / "known_hosts"),
            "LogLevel": "ERROR",
            **({"Ciphers": self._cipher} if self._cipher else {}),
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        target = f"{getpass.getuser()}@{self.place.network.destination_address}"
        return ["ssh", "-F", "none", *options, "-p", str(self._port), target, str(self.place.programs), *RECEIVE]
