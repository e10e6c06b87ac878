"""``xensecurectl doctor [HOST]``: everything that would make the next migration fail or be slow, found before it."""

from __future__ import annotations

import argparse

from ..link.config import Config
from ..proto.errors import UsageError
from .doctor_local import examine_hooks, examine_peers, examine_receiver, examine_sender
from .doctor_peer import examine_peer
from .findings import Examination


def doctor(config: Config, chosen: argparse.Namespace) -> int:
    """The command; its exit status tells the worst finding."""
    if chosen.domain and not chosen.host:
        raise UsageError("--domain says which domain is to go to HOST; name HOST too")
    found = Examination(host=config.name, domain=chosen.domain or "")
    if chosen.host:
        examine_peer(found, config, chosen.host, chosen.domain or "")
    else:
        examine_sender(found, config)
        examine_receiver(found, config)
        examine_hooks(found, config, sending=False)
        examine_peers(found, config)
    if chosen.json:
        found.show_json()
    else:
        found.show()
    return found.status
