"""The recording and the investigator: tshark, with private keys or a key log loaded, as chapter 5 of the thesis does with Wireshark."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.attack.ours import Xensecure
from tests.attack.places import PLANT, Lab, LabError
from tests.attack.scene import Attack, Scene, Verdict, judged
from tests.attack.segment import SOURCE, address
from tests.attack.tools import forwarding, recording
from tests.attack.transports import NotApplicableError, TlsServer, Transport

ROOT = Path(__file__).resolve().parent.parent.parent
# The thesis's SSL: the client sends the secret under the server's RSA key, so that this key opens recordings for ever.
_RSA_KEY_EXCHANGE = ",openssl-max-proto-version=TLS1.2,cipher=AES256-GCM-SHA384"
_FRAMES = 14  # that are shown of each recording


@dataclass(frozen=True)
class Recording:
    """What tcpdump has written, and where its TLS is."""

    path: Path
    port: int

    def tshark(self, *words: str, keys: Sequence[Path] = (), key_log: Path | None = None) -> str:
        """Run tshark on it with these secrets loaded."""
        options = ["-d", f"tcp.port=={self.port},tls", "-o", "tls.desegment_ssl_records:TRUE"]
        for key in keys:
            options += ["-o", f'uat:rsa_keys:"{key}",""']
        if key_log is not None:
            options += ["-o", f"tls.keylog_file:{key_log}"]
        done = subprocess.run(["tshark", "-n", "-r", str(self.path), *options, *words], capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise LabError(f"tshark: {done.stderr.strip()}")
        return done.stdout

    def opened(self, *, keys: Sequence[Path] = (), key_log: Path | None = None) -> bytes:
        """All that can be read inside TLS, of both directions."""
        followed = self.tshark("-q", "-z", "follow,tls,raw,0", keys=keys, key_log=key_log)
        return b"".join(bytes.fromhex(line.strip()) for line in followed.splitlines() if re.fullmatch(r"\s*(?:[0-9a-f]{2})+", line))

    def frames(self, *, keys: Sequence[Path] = (), key_log: Path | None = None) -> list[tuple[str, str, str]]:
        """The first packets with something in them, each once: number, who sends, and what tshark says of it."""
        words = ["-T", "fields", "-e", "frame.number", "-e", "ip.src", "-e", "_ws.col.Info", "-Y", "tcp.len > 0 and not tcp.analysis.retransmission"]
        found = []
        for line in self.tshark(*words, keys=keys, key_log=key_log).splitlines()[:_FRAMES]:
            number, source, info = line.split("\t")
            found.append((number, "source" if source == address(SOURCE) else "destination", info))
        return found


def record(scene: Scene, key_log: Path | None = None) -> Recording:
    """A migration that passes by the attacker, who records it; ``key_log``: the source's TLS secrets go there."""
    path = scene.lab.subfolder("capture") / "capture.pcap"
    port = scene.transport.port
    command = "" if key_log is None else logged(scene.transport, key_log)
    with forwarding(scene.lab.segment), recording(scene.lab, path, port):
        facts = scene.migrate(command)
    if not facts.arrived or path.stat().st_size < len(scene.lab.sent) // 2:
        raise LabError(f"nothing was recorded: {facts.stderr}")
    return Recording(path, port)


def logged(transport: Transport, key_log: Path) -> str:
    """The source's command with its TLS secrets written down: a test's doing, nothing that the product could be told to do."""
    if isinstance(transport, Xensecure):
        config = transport.command().partition("-F ")[2]
        return transport.script(f'export PYTHONPATH={ROOT}\nexec {sys.executable} -m tests.attack.keylog {key_log} -F {config} "$@"')
    return transport.script(f'export LD_PRELOAD={_shim(transport.lab)} KEYLOG={key_log}\nexec {transport.command()} "$@"')


def _shim(lab: Lab) -> Path:
    made = lab.folder / "keylog.so"
    if not made.exists():
        source = Path(__file__).with_name("keylog.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"], check=True, capture_output=True)
    return made


def _need_tls(scene: Scene) -> None:
    if not scene.transport.uses_tls:
        raise NotApplicableError("no TLS")


def _found(scene: Scene, opened: bytes) -> Verdict:
    facts = scene.look(0, lambda: "")
    facts.read = PLANT in opened
    verdict = judged(facts)
    verdict.words = f"{len(opened)} bytes opened{', the credential among them' if facts.read else ''}"
    return verdict


def private_keys(scene: Scene) -> Verdict:
    """The recording, and the TLS private keys of both hosts."""
    _need_tls(scene)
    recorded = record(scene)
    return _found(scene, recorded.opened(keys=private_keys_of(scene)))


def private_keys_of(scene: Scene) -> list[Path]:
    """Those of both hosts that tshark can use."""
    own = [scene.transport.stolen_identity().key, scene.lab.certificates.get(SOURCE, "site").key]
    return [key for key in own if isinstance(load_pem_private_key(key.read_bytes(), None), rsa.RSAPrivateKey)]  # tshark takes no other kind


def rsa_key_exchange(scene: Scene) -> Verdict:
    """The same with what SSL did when the thesis was written."""
    if not isinstance(scene.transport, TlsServer):
        raise NotApplicableError("no such key exchange")
    with old_tls(scene) as inner:
        return _found(inner, record(inner).opened(keys=private_keys_of(inner)))


@contextlib.contextmanager
def old_tls(scene: Scene) -> Iterator[Scene]:
    """The same transport with TLS as it was."""
    assert isinstance(scene.transport, TlsServer)
    old = type(scene.transport)(scene.lab)
    old.versions = _RSA_KEY_EXCHANGE
    old.port += 1000
    try:
        old.start()
        yield Scene(scene.lab, old)
    finally:
        old.close()


def key_log_of(lab: Lab) -> Path:
    """Where one is to be written."""
    return lab.subfolder("keylog") / "keys"


def key_log(scene: Scene) -> Verdict:
    """The recording, and the TLS secrets of the connection itself."""
    _need_tls(scene)
    log = key_log_of(scene.lab)
    recorded = record(scene, log)
    if not log.exists():
        raise LabError("the source has written no key log")
    opened = recorded.opened(key_log=log)
    if not opened:
        raise LabError("the key log opens nothing")
    return _found(scene, opened)


_TLS = ("tls-server", "tls-mutual", "pinned")
ROWS = (
    Attack("keys-rsa", "recorded, TLS private keys later: TLS 1.2, RSA key exchange", rsa_key_exchange, falls=_TLS, alarm=()),
    Attack("keys", "recorded, TLS private keys later: as it is today", private_keys, falls=(), alarm=()),
    Attack("keylog", "recorded, and the connection's TLS secrets known", key_log, falls=_TLS, alarm=()),
)
