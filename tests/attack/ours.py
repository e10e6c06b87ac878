"""xensecure as one of the lab's transports, by pin and by CA, and what an attacker makes of stolen parts of a host's state."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.attack.certificates import Pem
from tests.attack.places import Lab, receiving_script, until
from tests.attack.segment import ATTACKER, DESTINATION, SOURCE, Family, address
from tests.attack.transports import Means, Transport
from tests.pair import Host, command
from tests.xl.hosts import XenHost
from xensecure.link.config import load_config
from xensecure.link.peers import LinkKey, Peers

_STATE = {
    Means.STOLEN_TLS: ("identity.*",),
    Means.STOLEN_LINK: ("peers",),
    Means.LINK_AND_ROGUE: ("peers",),
    Means.STOLEN_BOTH: ("identity.*", "peers"),
}


class Xensecure(Transport):
    """xensecure, paired by a token, as a fresh installation has it: trust by pin."""

    key, title = "xensecure", "xensecure, by pin"
    uses_tls = True
    patience = "[defaults]\nkeepalive = 3\nsilence = 6\n"  # so that a silent line is given up in seconds
    window = 6  # seconds for which a lost link is tried again

    def __init__(self, lab: Lab, family: Family = Family.IPV4) -> None:
        super().__init__(lab, family)
        self.port = self._destination.port
        self._said = {"xensecured": 0, "xensecure-launcher": 0}

    def _xens(self) -> tuple[XenHost, XenHost]:
        self._source, self._destination = (self._host(self.folder / name, name, Means.HONEST) for name in (SOURCE, DESTINATION))
        return self._source.xen, self._destination.xen

    def _host(self, folder: Path, name: str, means: Means, *, where: str = "", xl: Path | None = None) -> Host:
        folder.mkdir(mode=0o755)
        extra = self.trust(name, means) + self.patience
        return Host(folder, name, extra=extra, address=address(where or name, self.family), resume_window=self.window, xl=xl)

    def trust(self, name: str, means: Means) -> str:
        """The [trust] table of a host that has these means."""
        del name, means
        return ""

    def start(self) -> None:
        """Pair the hosts; the destination's daemons run."""
        inside = self.lab.segment.inside
        with inside(DESTINATION):
            self._destination.ctl("init")
            self._destination.start_daemons()
            token = self._destination.invite()
        with inside(SOURCE):
            self._source.ctl("init")
            self._source.ctl("join", token)
        self.port = self._destination.port

    def command(self, means: Means = Means.HONEST) -> str:
        """Xensecure itself; an attacker's with a state folder of his own."""
        host = self._source if means is Means.HONEST else self._thief(SOURCE, DESTINATION, means, self._source)
        return f"{command('xensecure')} -F {host.config}"

    @contextlib.contextmanager
    def impostor(self, host: str, xen: XenHost, means: Means, loot: Path) -> Iterator[None]:
        """Daemons of the attacker's under the destination's name and port."""
        script = receiving_script(xen, self.lab.subfolder("impostor"), loot)
        thief = self._thief(DESTINATION, SOURCE, means, self._destination, xl=script)
        try:
            with self.lab.segment.inside(host):
                thief.start_daemons()
            yield
        finally:
            thief.close()

    def _thief(self, name: str, peer: str, means: Means, robbed: Host, *, xl: Path | None = None) -> Host:
        """A host of the attacker's that passes for another, with what he has stolen of its state; the rest he makes up."""
        host = self._host(self.lab.subfolder("thief") / name, name, means, where=ATTACKER, xl=xl)
        shutil.copytree(robbed.state, host.state)
        stolen = _STATE.get(means, ())
        if "identity.*" not in stolen:
            for path in host.state.glob("identity.*"):
                path.unlink()
            host.ctl("init")
        if "peers" not in stolen:
            self._guess(host, peer)
        host.port = robbed.port
        host.configure(self.trust(name, means) + self.patience + '[policy]\ncheck = "off"\n')  # he takes what he gets
        return host

    def stolen_identity(self) -> Pem:
        """What 'xensecurectl init' has made at the destination."""
        state = self._destination.state
        return Pem(state / "identity.key", state / "identity.crt", state / "identity.crt")

    def _guess(self, host: Host, peer: str) -> None:
        """Another link key than theirs, under an id that is not theirs either."""
        peers = Peers(load_config(str(host.config)))
        with peers.locked():
            known = peers.get(peer)
            assert known is not None
            peers.put(replace(known, keys=(LinkKey(generation=1, key=os.urandom(32)),)))

    def reset(self) -> None:
        """Both hosts without a past, and no session left."""
        for xen in (self.source, self.destination):
            xen.close()
        until(lambda: not any(self._destination.children(name) for name in self._destination.processes), "the last session's end", 40)
        for host in (self._source, self._destination):
            host.reset()
        self._said = {name: len(self._destination.log(name)) for name in self._said}

    def log(self) -> str:
        """All that the destination's daemons have said."""
        return "".join(self._destination.log(name) for name in self._said)

    def security(self) -> tuple[str, ...]:
        """The destination's; the source's are in xl's stderr."""
        text = "".join(self._destination.log(name)[start:] for name, start in self._said.items())
        return tuple(line.replace(str(self.folder), "…") for line in text.splitlines() if "SECURITY" in line)

    def close(self) -> None:
        """End the hosts."""
        super().close()
        for host in (self._source, self._destination):
            host.close()


class XensecureCa(Xensecure):
    """xensecure with a CA that both hosts trust, whose trust store the rogue root has got into as well."""

    key, title = "xensecure-ca", "xensecure, by CA"

    def trust(self, name: str, means: Means) -> str:
        """The site's certificate, or that which the attacker has got."""
        kind = {Means.ROGUE: "rogue", Means.LINK_AND_ROGUE: "rogue", Means.OWN: "own", Means.STOLEN_LINK: "own"}.get(means, "site")
        pem = self.lab.certificates.get(name, kind)
        return f'[trust]\nmode = "ca"\nca = "{self.lab.certificates.roots}"\ncertificate = "{pem.certificate}"\nkey = "{pem.key}"\n'

    def stolen_identity(self) -> Pem:
        """The site's certificate for the destination."""
        return self.lab.certificates.get(DESTINATION, "site")


