"""Attacks of one who only stands on the path: he records, rewrites, flips, replays and cuts, and has no keys."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.attack.places import PLANT, LabError
from tests.attack.places import until as wait_until
from tests.attack.relays import FinalCut, Flipper, Relay, Rewriter
from tests.attack.scene import OURS, Attack, Scene, Verdict, judged
from tests.attack.segment import ATTACKER
from tests.attack.tools import forwarding, recording, redirected
from tests.xl.hosts import Point

_MIB = 1 << 20
_READY_SECONDS = 1.5  # that the destination takes for its last word before GO: a real one's devices take as long
_UNPAUSE_SECONDS = 1.0


def listen_in(scene: Scene) -> Verdict:
    """He passes on what comes, and tcpdump records it."""
    capture = scene.lab.subfolder("capture") / "capture.pcap"
    with forwarding(scene.lab.segment), recording(scene.lab, capture, scene.transport.port):
        facts = scene.migrate()
    recorded = capture.read_bytes()
    if len(recorded) < len(scene.lab.sent) // 2:
        raise LabError(f"the migration did not pass by the attacker: {len(recorded)} bytes recorded; {facts.stderr}")
    facts.read = PLANT in recorded
    return judged(facts)


def _through(scene: Scene, relay: Relay) -> Verdict:
    with relay, redirected(scene.lab.segment, scene.transport.port, relay.port):
        facts = scene.migrate()
    relay.check()
    facts.read = facts.read or relay.read > 0
    return judged(facts)


def rewrite(scene: Scene) -> Verdict:
    """Xensploit: he looks for a credential, and puts his own in its place."""
    relay = Rewriter(scene.lab.segment, *scene.target, scene.family)
    verdict = _through(scene, relay)
    if verdict.facts.rewritten:
        verdict.words += f" ({relay.changed} credentials)"
    elif relay.changed:
        raise LabError(f"credentials changed, and another domain arrived than they make: {verdict.facts.stderr}")
    return verdict


def flip(scene: Scene) -> Verdict:
    """He changes a bit of what he cannot read."""
    relay = Flipper(scene.lab.segment, *scene.target, position=_MIB, family=scene.family)
    verdict = _through(scene, relay)
    if not relay.flipped:
        raise LabError("no bit was changed")
    return verdict


def replay(scene: Scene) -> Verdict:
    """He records all that the source sends, and says it again when the domain has long left the destination."""
    relay = Relay(scene.lab.segment, *scene.target, scene.family)
    with relay, redirected(scene.lab.segment, scene.transport.port, relay.port):
        facts = scene.migrate()
    if not facts.arrived or len(relay.recorded) < _MIB:
        raise LabError(f"nothing was recorded: {facts.stderr}")
    destination = scene.transport.destination
    destination.destroy("web1")
    calls = len(destination.calls())
    with scene.lab.segment.inside(ATTACKER):
        sock = socket.create_connection(scene.target, timeout=10)
    with sock, contextlib.suppress(OSError):
        sock.settimeout(3)
        sock.sendall(relay.recorded)
        while sock.recv(1 << 16):
            pass
    with contextlib.suppress(LabError):
        wait_until(lambda: destination.domains().get("web1") == "running", "the replayed domain", 3)
    facts = scene.look(0, lambda: "")
    started = len(destination.calls()) > calls
    words = "the old domain runs again" if facts.arrived else "a receive was started" if started else "nothing is started"
    return Verdict(falls=started, words=words, facts=facts)


def _final_cut(scene: Scene, *, after_go: bool) -> Verdict:
    destination = scene.transport.destination
    destination.set_sleep(Point.READY, _READY_SECONDS)
    destination.set_sleep(Point.UNPAUSE, _UNPAUSE_SECONDS)
    relay = FinalCut(scene.lab.segment, *scene.target, after_go=after_go, enough=_MIB, family=scene.family)
    verdict = _through(scene, relay)
    if not relay.cut:
        raise LabError(f"nothing was cut: {verdict.facts.stderr}")
    facts = verdict.facts
    if facts.status == 0 and relay.connections == 1:
        raise LabError("the cut came too late")
    if facts.arrived and not facts.kept and facts.status != 0:
        return Verdict(falls=True, words="source takes it for lost", facts=facts)
    return verdict


def cut_before_go(scene: Scene) -> Verdict:
    """He cuts the connection when the source is about to give the domain up."""
    return _final_cut(scene, after_go=False)


def cut_after_go(scene: Scene) -> Verdict:
    """He cuts the connection when the destination is about to report."""
    return _final_cut(scene, after_go=True)


def cut_short(scene: Scene) -> Verdict:
    """He ends the source's direction early, with a FIN as its own."""

    class Shortener(Relay):
        def up(self, data: bytes, number: int) -> bytes | None:
            if number == 1 and self.carried >= _MIB:
                time.sleep(0.2)
                return None
            return super().up(data, number)

    return _through(scene, Shortener(scene.lab.segment, *scene.target, scene.family))


ROWS = (
    Attack("listen-arp", "ARP poisoning (`arpspoof`), recorded by `tcpdump`", listen_in, alarm=(), guard=OURS),
    Attack(
        "listen-nd",
        "ND spoofing (`parasite6`, `fake_advertise6`), recorded",
        listen_in,
        way="parasite6 and fake_advertise6",
        alarm=(),
        guard=OURS,
    ),
    Attack("xensploit", "Xensploit: `ettercap`, `nft` redirect, memory rewritten", rewrite, way="ettercap", alarm=(), guard=OURS),
    Attack("flip", "a bit changed on the way", flip),
    Attack("replay", "a recorded session sent again", replay, alarm=()),
    Attack("short", "the stream cut short", cut_short, alarm=(), falls=()),
    Attack("cut-before-go", "cut in the final handshake, before GO", cut_before_go, alarm=()),
    Attack("cut-after-go", "cut in the final handshake, after GO", cut_after_go, alarm=()),
)
