"""Attacks of one who stands in a host's place: with a key of his own, a certificate of the rogue root, or what he has stolen."""

from __future__ import annotations

import contextlib
import subprocess
from functools import partial

from tests.attack.places import DOMAIN, LabError, plant
from tests.attack.scene import OURS, Attack, Scene, Verdict, judged
from tests.attack.segment import ATTACKER, DESTINATION
from tests.attack.tools import redirected
from tests.attack.transports import Means

_TLS = ("tls-server", "tls-mutual")
_BY_CA = ("xensecure-ca",)


def answer(scene: Scene, *, means: Means) -> Verdict:
    """He answers in the destination's place, and his xl receives whatever comes."""
    port = scene.transport.port
    with scene.transport.impostor(ATTACKER, scene.xen, means, scene.loot), redirected(scene.lab.segment, port, port):
        facts = scene.migrate()
    if facts.received:
        raise LabError("the source reached the destination itself")
    return judged(facts)


def call(scene: Scene, *, means: Means) -> Verdict:
    """He passes for the source, and sends a domain of his own to the destination."""
    transport = scene.transport
    own = plant(scene.lab.subfolder("his-domain") / "domain", mib=1, seed=99)
    scene.xen.create_domain(DOMAIN, own)
    before = transport.command(means)
    with scene.lab.segment.inside(ATTACKER):
        running = scene.xen.migrate(before, DOMAIN, DESTINATION, "-e")
    status = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = running.wait(30).status
    facts = scene.look(status, running.stderr)
    words = "his domain runs" if facts.arrived else "a receive was started" if facts.received else "nothing is started"
    return Verdict(falls=facts.received, words=words, facts=facts)


def _answers(key: str, title: str, means: Means, *, falls: tuple[str, ...], alarm: tuple[str, ...] = OURS) -> Attack:
    return Attack(f"answer-{key}", title, partial(answer, means=means), falls=falls, alarm=alarm)


def _calls(key: str, title: str, means: Means, *, falls: tuple[str, ...], alarm: tuple[str, ...] = OURS) -> Attack:
    return Attack(f"call-{key}", title, partial(call, means=means), way="", falls=falls, alarm=alarm)


ROWS = (
    _answers("own", "answers as the destination, with a key of his own", Means.OWN, falls=("plain", "ssh-new")),
    # A destination that knows no link key closes when the source has proved itself: to the source that is no sign of who it is.
    _answers("rogue", "answers with a certificate of the rogue root", Means.ROGUE, falls=_TLS, alarm=("xensecure",)),
    _answers("tls", "answers with the destination's stolen TLS or ssh key", Means.STOLEN_TLS, falls=("ssh", *_TLS, "pinned"), alarm=()),
    _answers("link", "answers with the stolen link key alone", Means.STOLEN_LINK, falls=()),
    _answers("link-rogue", "answers with that and a certificate of the rogue root", Means.LINK_AND_ROGUE, falls=_BY_CA, alarm=("xensecure",)),
    _answers("both", "answers with both keys stolen", Means.STOLEN_BOTH, falls=("xensecure", "xensecure-ca"), alarm=()),
    _calls("own", "calls as the source, with a key of his own", Means.OWN, falls=("plain", "tls-server")),
    _calls("rogue", "calls with a certificate of the rogue root", Means.ROGUE, falls=("tls-mutual",)),
    _calls("tls", "calls with the source's stolen TLS or ssh key", Means.STOLEN_TLS, falls=("ssh", "tls-mutual")),
    _calls("link", "calls with the stolen link key alone", Means.STOLEN_LINK, falls=()),
    _calls("link-rogue", "calls with that and a certificate of the rogue root", Means.LINK_AND_ROGUE, falls=_BY_CA, alarm=("xensecure",)),
    _calls("both", "calls with both keys stolen", Means.STOLEN_BOTH, falls=("xensecure", "xensecure-ca"), alarm=()),
)
