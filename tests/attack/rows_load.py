"""Floods by somebody who proves nothing: connections that are opened, and say nothing."""

from __future__ import annotations

import contextlib
import socket
from functools import partial

from tests.attack.places import LabError
from tests.attack.scene import Attack, Scene, Verdict
from tests.attack.segment import ATTACKER

# More than xensecure's UNAUTHENTICATED_MAX (64) and sshd's MaxStartups (10:30:100) let in at once; sshd refuses at random from ten on, so that
# whether it falls to a flood is a matter of luck.
_CONNECTIONS = 128


def flood(scene: Scene, *, addresses: int) -> Verdict:
    """Silent connections, spread over so many addresses of his, and a migration while they stand."""
    segment = scene.lab.segment
    with contextlib.ExitStack() as stack:
        stack.enter_context(segment.inside(ATTACKER))
        own = segment.extra_addresses(ATTACKER, addresses)
        opened = 0
        for number in range(_CONNECTIONS):
            with contextlib.suppress(OSError):
                sock = socket.create_connection(scene.target, timeout=2, source_address=(own[number % addresses], 0))
                stack.callback(sock.close)
                opened += 1
        if not opened:
            raise LabError("no connection could be opened")
        facts = scene.migrate()
    # Some wait in the listener's queue, some were turned away again: what counts is whether the migration gets through.
    return Verdict(falls=not facts.arrived, words="arrives" if facts.arrived else "kept out; stays at the source", facts=facts)


ROWS = (
    Attack("flood", f"{_CONNECTIONS} silent connections from one address", partial(flood, addresses=1), way="", falls=(), alarm=()),
    Attack("flood-many", "the same from 16 addresses", partial(flood, addresses=16), way="", falls=(), alarm=(), may_fall=True),
)
