"""Other ways to carry a stream: TLS by socat and by stunnel, spiped, mbuffer, plain TCP by socat, and the least there is, a bare pump.

Each with what makes it fast: large blocks where it can be told, TLS 1.3 with AES-256-GCM and both certificates verified where it is TLS.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from bench.transports import RECEIVE, Place, Transport, find
from tests.pair import free_port

BLOCK = 256 << 10  # bytes: faster than socat's and mbuffer's own defaults of 8 and 10 KiB
_MBUFFER_MEMORY = "64M"  # as xensecure's window


def _certificate(folder: Path) -> None:
    """A key and a certificate that signs itself, for both ends: who may be who plays no part in a measurement."""
    find("openssl", "openssl")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=bench"]
    subprocess.run([*words, "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")], capture_output=True, check=True)
    (folder / "both.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())


class Socat(Transport):
    """socat with plain TCP: what an unencrypted migration does.

    The receiving program has a socket pair: with pipes (EXEC's option) socat waits for half a second at every end.
    """

    name = "socat, plain TCP"
    encrypted = False
    listen, connect = "TCP4-LISTEN", "TCP4"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._port = free_port()
        self._socat = find("socat", "socat")
        self.folder = place.subfolder("socat")
        listener = f"{self.listen}:{self._port},bind={place.network.destination_address},reuseaddr,fork{self.settings(listening=True)}"
        self.serve([self._socat, "-b", str(BLOCK), listener, f"EXEC:{place.programs} {' '.join(RECEIVE)}"], port=self._port)

    def settings(self, *, listening: bool) -> str:
        """More settings of the address."""
        del listening
        return ""

    def words(self) -> list[str]:
        """The end of the input is passed on, and the answers are read to their end."""
        target = f"{self.connect}:{self.place.network.destination_address}:{self._port}{self.settings(listening=False)}"
        return [self._socat, "-b", str(BLOCK), "-t", "60", "-", target]


class SocatTls(Socat):
    """socat with TLS, both certificates verified."""

    name = "socat, TLS"
    encrypted = True
    listen, connect = "OPENSSL-LISTEN", "OPENSSL"

    def settings(self, *, listening: bool) -> str:
        """Both ends have the same certificate."""
        if not (self.folder / "both.pem").exists():
            _certificate(self.folder)
        common = f",cert={self.folder}/both.pem,cafile={self.folder}/cert.pem,verify=1,openssl-min-proto-version=TLS1.3"
        return common + (",pf=ip4" if listening else ",commonname=bench")


_STUNNEL = """\
foreground = yes
debug = 3
pid =
{service}
cert = {folder}/both.pem
CAfile = {folder}/cert.pem
verifyPeer = yes
sslVersion = TLSv1.3
TIMEOUTclose = 60
"""


class Stunnel(Transport):
    """stunnel with TLS, both certificates verified; as inetd's child at the source, starting the receiving program at the destination."""

    name = "stunnel"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._stunnel = find("stunnel4", "stunnel4")
        port = free_port()
        folder = place.subfolder("stunnel")
        _certificate(folder)
        address = f"{place.network.destination_address}:{port}"
        served = f"[xl]\naccept = {address}\nexec = {place.programs}\nexecArgs = {' '.join(RECEIVE)}"
        (folder / "server.conf").write_text(_STUNNEL.format(service=served, folder=folder))
        self._config = folder / "client.conf"
        self._config.write_text(_STUNNEL.format(service=f"client = yes\nconnect = {address}", folder=folder))
        self.serve([self._stunnel, str(folder / "server.conf")], port=port)

    def words(self) -> list[str]:
        """Its configuration says everything."""
        return [self._stunnel, str(self._config)]


class Spiped(Transport):
    """spiped with a shared key, and spipe at the source; the receiving program reads from a unix socket, for spiped starts none."""

    name = "spiped"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        daemon, self._spipe = find("spiped", "spiped"), find("spipe", "spiped")
        self._folder = place.subfolder("spiped")
        (self._folder / "key").write_bytes(os.urandom(32))
        self._address = f"[{place.network.destination_address}]:{(port := free_port())}"
        receiver = self._folder / "receiver"
        self.serve([str(place.programs), "unix", str(receiver)], path=receiver)
        words = ["-d", "-F", "-s", self._address, "-t", str(receiver), "-k", str(self._folder / "key")]
        self.serve([daemon, *words], port=port)

    def words(self) -> list[str]:
        """Its end of the pipe."""
        return [self._spipe, "-t", self._address, "-k", str(self._folder / "key")]


class Mbuffer(Transport):
    """mbuffer with plain TCP: one direction only, so that the receiving program's words come back through a named pipe of this machine."""

    name = "mbuffer, plain TCP"
    encrypted = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        find("mbuffer", "mbuffer")
        self._port = free_port()
        folder = place.subfolder("mbuffer")
        self._go, self._back = folder / "go", folder / "back"
        os.mkfifo(self._go)
        os.mkfifo(self._back)
        receive = f"mbuffer -q -s {BLOCK} -m {_MBUFFER_MEMORY} -I {self._port} | {shlex.join([str(place.programs), *RECEIVE])} >{self._back}"
        self.serve(["sh", "-c", f"while read -r _ <{self._go}; do {receive}; done"])

    def words(self) -> list[str]:
        """Wait until the other end listens: mbuffer does not try twice to connect."""
        send = f"mbuffer -q -s {BLOCK} -m {_MBUFFER_MEMORY} -O {self.place.network.destination_address}:{self._port}"
        listening = f"ss -ltnH 'sport = :{self._port}' | grep -q ."
        script = f"exec 3<&0; cat {self._back} </dev/null & echo >{self._go}; until {listening}; do sleep 0.05; done; {send} <&3; wait"
        return ["sh", "-c", script]


class Bare(Transport):
    """read and write, and nothing between: programs.c under another name, so that it is not taken for the receiving program."""

    name = "bare pump"
    encrypted = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._pump = place.subfolder("bare") / "pump"
        shutil.copy(place.programs, self._pump)
        self._where = [place.network.destination_address, str(port := free_port())]
        self.serve([str(self._pump), "listen", *self._where], port=port)

    def words(self) -> list[str]:
        """Its end at the source."""
        return [str(self._pump), "connect", *self._where]


PEERS: tuple[type[Transport], ...] = (SocatTls, Stunnel, Spiped, Socat, Mbuffer, Bare)
