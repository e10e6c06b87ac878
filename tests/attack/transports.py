"""What carries the domain, and who may stand at either end of it: the honest hosts, or the attacker with what he could get.

The controls are what is used where there is no xensecure: plain TCP, ssh, TLS in three kinds. xl calls each of them by its ``-s``.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from tests.attack.certificates import Pem
from tests.attack.places import XL_WORDS, Lab, Program, forget, receiving_script
from tests.attack.segment import DESTINATION, SOURCE, Family, address
from tests.xl.hosts import XenHost

_BLOCK = 64 << 10  # bytes of socat's buffer
_WAIT = 3  # seconds that socat waits for the other direction's end after one has ended


class Means(StrEnum):
    """What whoever stands at an end of a transport has to show."""

    HONEST = "what belongs there"
    OWN = "a key of his own"
    ROGUE = "a certificate of the rogue root"
    STOLEN_TLS = "the host's TLS (or ssh) key"
    STOLEN_LINK = "the host's link key"
    LINK_AND_ROGUE = "that, and a certificate of the rogue root"
    STOLEN_BOTH = "both keys"


LINK_KEYS = (Means.STOLEN_LINK, Means.LINK_AND_ROGUE, Means.STOLEN_BOTH)


class NotApplicableError(Exception):
    """The attack says nothing of this transport, for it has no such thing; the text says what."""


class Transport:
    """One way to carry the domain from hv1 to hv2: its receiver runs from start() to close()."""

    key: ClassVar[str]
    title: ClassVar[str]
    uses_tls = False

    def __init__(self, lab: Lab, family: Family = Family.IPV4) -> None:
        self.lab = lab
        self.family = family
        self.folder = lab.subfolder(self.key)
        self.source, self.destination = self._xens()
        self.port = 7000 + sum(map(ord, self.key))
        self._programs: list[Program] = []

    def _xens(self) -> tuple[XenHost, XenHost]:
        return XenHost(self.folder / SOURCE), XenHost(self.folder / DESTINATION)

    @property
    def target(self) -> str:
        """The destination's address, as socat wants it."""
        return self._bracketed(address(DESTINATION, self.family))

    def _bracketed(self, text: str) -> str:
        return f"[{text}]" if self.family is Family.IPV6 else text

    def start(self) -> None:
        """Start the honest receiver."""
        script = receiving_script(self.destination, self.folder, before=self.before())
        self._programs.append(self.serve(DESTINATION, Means.HONEST, script))

    def before(self) -> str:
        """What the receiving script does before it starts xl."""
        return ""

    def serve(self, host: str, means: Means, script: Path) -> Program:
        """Start a receiver on a host."""
        raise NotImplementedError

    def command(self, means: Means = Means.HONEST) -> str:
        """What xl gets by ``-s``, of a source that has these means."""
        raise NotImplementedError

    @contextlib.contextmanager
    def impostor(self, host: str, xen: XenHost, means: Means, loot: Path) -> Iterator[None]:
        """A receiver of the attacker's in the destination's place."""
        script = receiving_script(xen, self.lab.subfolder("impostor"), loot, before=self.before_impostor())
        program = self.serve(host, means, script)
        try:
            yield
        finally:
            program.end()

    def before_impostor(self) -> str:
        """What the attacker's receiving script does first."""
        return ""

    def stolen_identity(self) -> Pem:
        """The destination's TLS key and certificate."""
        raise NotApplicableError("no TLS")

    def script(self, text: str, *, interpreter: str = "/bin/sh") -> str:
        """A command at the source, which ignores the words that xl puts behind it."""
        path = self.lab.subfolder(f"{self.key}-source") / "transport"
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def reset(self) -> None:
        """As new, for the next attack."""
        forget(self.source)
        forget(self.destination)

    def security(self) -> tuple[str, ...]:
        """Alarms in the logs of both hosts since the last reset; of the controls nobody expects any."""
        return ()

    def close(self) -> None:
        """End everything."""
        for program in self._programs:
            program.end()
        self.source.close()
        self.destination.close()


class Plain(Transport):
    """Plain TCP by socat: what xend and libvirt did for years, and QEMU's ``tcp:`` does."""

    key, title = "plain", "plain TCP"

    def listening(self, means: Means) -> str:
        """The address that socat listens on."""
        if means not in (Means.HONEST, Means.OWN):
            raise NotApplicableError("no keys")
        version = 6 if self.family is Family.IPV6 else 4
        return f"TCP{version}-LISTEN:{self.port},reuseaddr,fork"

    def connecting(self, means: Means) -> str:
        """The address that socat connects to."""
        if means not in (Means.HONEST, Means.OWN):
            raise NotApplicableError("no keys")
        return f"TCP:{self.target}:{self.port}"

    def serve(self, host: str, means: Means, script: Path) -> Program:
        """Start socat."""
        words = ["socat", "-b", str(_BLOCK), "-t", str(_WAIT), self.listening(means), f"EXEC:{script} {' '.join(XL_WORDS)}"]
        return self.lab.start(host, words, ready=self.lab.listens(host, self.port))

    def command(self, means: Means = Means.HONEST) -> str:
        """Start socat."""
        return self.script(f"exec socat -b {_BLOCK} -t {_WAIT} - {self.connecting(means)}")


class TlsServer(Plain):
    """TLS by socat, the server's certificate verified, and its name: what a browser does."""

    key, title = "tls-server", "TLS, server's certificate"
    uses_tls = True
    mutual = False
    versions = ""  # of TLS: OpenSSL's own defaults

    def own(self, host: str, means: Means) -> Pem:
        """What an end shows."""
        if means in LINK_KEYS:
            raise NotApplicableError("no link key")
        kind = {Means.HONEST: "site", Means.STOLEN_TLS: "site", Means.ROGUE: "rogue", Means.OWN: "own"}[means]
        return self.lab.certificates.get(host, kind)

    def stolen_identity(self) -> Pem:
        """As the destination shows it."""
        return self.own(DESTINATION, Means.STOLEN_TLS)

    def roots(self) -> Path:
        """What the source trusts."""
        return self.lab.certificates.roots

    def listening(self, means: Means) -> str:
        """An attacker in the destination's place verifies nothing."""
        verify = int(self.mutual and means is Means.HONEST)
        version = 6 if self.family is Family.IPV6 else 4
        files = f"cert={self.own(DESTINATION, means).both},cafile={self.lab.certificates.roots},verify={verify}"
        return f"OPENSSL-LISTEN:{self.port},pf=ip{version},reuseaddr,fork,{files}{self.versions}"

    def connecting(self, means: Means) -> str:
        """With a certificate of its own where both are wanted."""
        pem = self.own(SOURCE, means)
        own = f",cert={pem.both}" if self.mutual else ""
        return f"OPENSSL:{self.target}:{self.port},cafile={self.roots()},verify=1,commonname={DESTINATION}{own}{self.versions}"


class TlsMutual(TlsServer):
    """TLS by socat, both certificates verified to a CA that both hosts trust."""

    key, title = "tls-mutual", "TLS, both certificates, CA"
    mutual = True


class Pinned(TlsServer):
    """As XAPI does it between pool members: the server's own certificate is what the source trusts; the source shows a secret inside TLS."""

    key, title = "pinned", "pinned server, secret (as XAPI)"
    _SECRET = "OpaqueRef:6f0d1b"

    def own(self, host: str, means: Means) -> Pem:
        """The destination's certificate is signed by itself, and known to the source."""
        if means in (Means.HONEST, Means.STOLEN_TLS):
            return self._pinned()
        return super().own(host, means)

    def _pinned(self) -> Pem:
        stem = self.folder / "pinned"
        pem = Pem(*(stem.with_suffix(ending) for ending in (".key", ".crt", ".pem")))
        if not pem.both.exists():
            words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={DESTINATION}"]
            subprocess.run([*words, "-keyout", str(pem.key), "-out", str(pem.certificate)], capture_output=True, check=True)
            pem.both.write_bytes(pem.key.read_bytes() + pem.certificate.read_bytes())
        return pem

    def roots(self) -> Path:
        """That certificate alone."""
        return self._pinned().certificate

    def before(self) -> str:
        """The session's secret is asked for."""
        return f'read -r secret\n[ "$secret" = {self._SECRET} ] || exit 1\n'

    def before_impostor(self) -> str:
        """The attacker takes any."""
        return "read -r secret\n"

    def command(self, means: Means = Means.HONEST) -> str:
        """The secret goes first."""
        secret = self._SECRET if means is Means.HONEST else "OpaqueRef:guess"
        # bash's: whoever reads this script's output then waits for socat alone.
        feed = f"< <(echo {secret}; exec cat <&3 3<&-) 3<&-"
        return self.script(f"exec 3<&0\nexec socat -b {_BLOCK} -t {_WAIT} - {self.connecting(means)} {feed}", interpreter="/bin/bash")


_SSHD = """\
Port {port}
HostKey {host_key}
{authorized}
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PrintMotd no
SetEnv SHLVL=9
ForceCommand {script} {words}
"""


class Ssh(Transport):
    """ssh with a public key; the destination's host key is known."""

    key, title = "ssh", "ssh, known host"
    checking = "yes"

    def __init__(self, lab: Lab, family: Family = Family.IPV4) -> None:
        super().__init__(lab, family)
        for name in ("host", "attacker", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation; its path is built in

    def serve(self, host: str, means: Means, script: Path) -> Program:
        """Start sshd; the attacker's lets everybody in."""
        honest = f"AuthorizedKeysFile {self.folder}/user.pub"
        anybody = "AuthorizedKeysFile none\nAuthorizedKeysCommand /bin/echo %t %k\nAuthorizedKeysCommandUser root"
        config = self.lab.subfolder("sshd") / "config"
        config.write_text(
            _SSHD.format(
                port=self.port,
                host_key=self.folder / self._host_key(means),
                authorized=honest if means is Means.HONEST else anybody,
                script=script,
                words=" ".join(XL_WORDS),
            )
        )
        return self.lab.start(host, ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], ready=self.lab.listens(host, self.port))

    def _host_key(self, means: Means) -> str:
        self._check(means)
        return "attacker" if means is Means.OWN else "host"

    def _check(self, means: Means) -> None:
        if means is Means.ROGUE:
            raise NotApplicableError("no certificates")
        if means in LINK_KEYS:
            raise NotApplicableError("no link key")

    def _known_hosts(self) -> Path:
        path = self.lab.subfolder("known") / "hosts"
        path.write_text(f"[{address(DESTINATION, self.family)}]:{self.port} {(self.folder / 'host.pub').read_text()}")
        return path

    def command(self, means: Means = Means.HONEST) -> str:
        """Start ssh; of what can be stolen at the source only the user's key would help, and that is all there is."""
        self._check(means)
        settings = {
            "BatchMode": "yes",
            "ControlPath": "none",
            "IdentitiesOnly": "yes",
            "IdentityFile": self.folder / ("stranger" if means is Means.OWN else "user"),
            "StrictHostKeyChecking": self.checking,
            "UserKnownHostsFile": self._known_hosts(),
            "ServerAliveInterval": 10,
            "LogLevel": "ERROR",
        }
        options = " ".join(f"-o {key}={value}" for key, value in settings.items())
        return self.script(f"exec ssh -F none {options} -p {self.port} root@{address(DESTINATION, self.family)} xl {' '.join(XL_WORDS)}")


class SshNew(Ssh):
    """ssh that accepts a host key it has never seen, as after a reinstallation or from a script."""

    key, title = "ssh-new", "ssh, accept-new"
    checking = "accept-new"

    def _known_hosts(self) -> Path:
        return self.lab.subfolder("known") / "hosts"
