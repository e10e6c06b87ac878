"""Whether a domain may come: the operator's policy, memory, and then the operator's hooks. By root's keeper, before xl gets a byte of the domain."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

from ..link import store
from ..link.config import Config
from ..link.live import Live
from ..proto.domain import configuration, domain_name
from ..proto.errors import ProtocolError, Reason, RefusedError, StateError
from ..proto.launcher import Wish
from ..proto.policy import judge
from .hooked import SessionHooks
from .memory import Room, promise_memory, require_room


def admit_peer(config: Config, peer: str) -> None:
    """RefusedError unless a peer may send a domain now: to be asked before xl is started, once in a process, whose end ends the domain's stay.

    ``peer``: the name under which it was paired, proved.
    """
    require_sender(config, peer)
    policy = config.policy_for(peer)
    if policy.domains and not _take_place(config.run, peer, policy.domains):
        many = f"{policy.domains} domains of {peer}'s are arriving there already ({policy.where('domains')}); try again later"
        raise RefusedError(many, Reason.TOO_MANY)


def require_sender(config: Config, peer: str) -> None:
    """RefusedError unless a peer may send domains here at all."""
    policy = config.policy_for(peer)
    if not policy.send:
        who = peer or "a peer without a section of its own"
        raise RefusedError(f"{who} may not send domains there: {policy.where('send')} is false", Reason.NOT_ALLOWED)


def _take_place(run: Path, peer: str, most: int) -> bool:
    """Lock one of so many files for as long as this process lives, and nothing that it starts; False if others have all."""
    try:
        store.make_directory(run / "arriving")
        for number in range(most):
            descriptor = os.open(run / "arriving" / f"{peer}.{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            os.close(descriptor)
    except (OSError, StateError) as error:
        raise RefusedError(f"the domains that arrive there cannot be counted: {error}", Reason.LOCAL_FAULT) from None
    return False


def judge_domain(config: Config, peer: str, head: bytes, room: Room | None = None) -> None:
    """RefusedError, with key, value and rule in its text, unless policy and free memory let that domain come. Nothing is started.

    ``peer``: who sends it, "" for one without a section of its own. ``head``: its configuration, libxl's JSON as in xl's header. ``room``: what
    memory there is, None where nobody knows.
    """
    require_sender(config, peer)
    policy = config.policy_for(peer)
    if policy.looks:
        found = _read(head)
        judge(policy, found)
        if room is not None and policy.free_memory == "on":
            require_room(room, found, policy.where("free_memory"))


def _read(head: bytes) -> dict[str, Any]:
    try:
        return configuration(head)
    except ProtocolError as error:
        raise RefusedError(f"{error}; what cannot be read is not taken", Reason.NOT_ALLOWED) from None


class Admission:
    """The one question of a session. ``live``: what others see of it. ``wish``: what has to be known of the domain's configuration."""

    def __init__(self, config: Config, peer: str, hooks: SessionHooks, live: Live) -> None:
        self._config = config
        self._peer = peer
        self._hooks = hooks
        self._live = live
        self.wish = Wish.ASKED if config.policy_for(peer).looks else hooks.wish
        self._asked = self.wish is Wish.ASKED
        self._admitted = ""

    def domain(self, said: str) -> str:
        """The name of the domain that xl has got: as judged, "" before the yes; where nobody is asked, what the receiver has ``said``."""
        return self._admitted if self._asked else said

    def decide(self, head: bytes) -> None:
        """RefusedError unless the domain may come; where nobody has to be asked, its configuration is kept for hooks."""
        wish, self.wish = self.wish, Wish.NOTHING
        try:
            found = _read(head)
        except RefusedError:
            if wish is Wish.ASKED:
                raise
            return
        name = domain_name(head)
        self._hooks.learn(name, found)
        if wish is Wish.ASKED:
            policy = self._config.policy_for(self._peer)
            judge(policy, found)
            if policy.looks and policy.free_memory == "on":
                promise_memory(self._config, found, policy.where("free_memory"), self._live, name)
            self._hooks.ask()
            self._admitted = name
