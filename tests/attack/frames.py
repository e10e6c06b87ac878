"""The key frames of a recording, as the thesis shows those of SSL: what tshark says of each without secrets, and with them."""

from __future__ import annotations

from pathlib import Path

from bench.report import table
from tests.attack.capture import Recording, key_log_of, old_tls, private_keys_of, record
from tests.attack.ours import Xensecure
from tests.attack.places import PLANT, Lab
from tests.attack.runs import laboratory, started
from tests.attack.scene import Scene
from tests.attack.segment import Family
from tests.attack.tools import arpspoof, wait_poisoned
from tests.attack.transports import TlsMutual

_LONGEST = 110  # characters of tshark's words


def _short(words: str) -> str:
    text = words.replace("|", "/").strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _section(title: str, recorded: Recording, **secrets: object) -> str:
    closed, opened = recorded.frames(), recorded.frames(**secrets)  # type: ignore[arg-type]
    rows = [[one[0], one[1], f"`{_short(one[2])}`", f"`{_short(two[2])}`"] for one, two in zip(closed, opened, strict=True)]
    content = recorded.opened(**secrets)  # type: ignore[arg-type]
    found = "the planted credential among them" if PLANT in content else "the planted credential not among them"
    foot = f"Opened in the whole recording: {len(content)} bytes, {found}.\n"
    return f"#### {title}\n\n{table(['packet', 'from', 'without secrets', 'with them'], rows)}\n{foot}"


def key_frames() -> str:
    """Three recordings of one migration each, off the attacker's host."""

    def scene(lab: Lab, transport: object) -> Scene:
        made = Scene(lab, transport)  # type: ignore[arg-type]
        made.reset()
        wait_poisoned(lab, Family.IPV4)
        return made

    with laboratory() as lab, started(lab, (TlsMutual, Xensecure), Family.IPV4) as (mutual, ours), arpspoof(lab):
        with old_tls(scene(lab, mutual)) as inner:
            inner.reset()
            old = _section("Mutual TLS 1.2 with RSA key exchange, and the private keys", record(inner), keys=private_keys_of(inner))
        parts = [old]
        for title, transport in (("Mutual TLS 1.3, and the connection's key log", mutual), ("xensecure, and its key log", ours)):
            log: Path = key_log_of(lab)
            parts.append(_section(title, record(scene(lab, transport), log), key_log=log))
    return "\n".join(parts)

