"""Which pairs of a fleet are to be made, renewed or ended, and which of the two hosts does it: a pure function of what all hosts have said."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

try:
    from ansible.errors import AnsibleFilterError
except ImportError:  # in a test without ansible
    AnsibleFilterError = ValueError

DAY = 86400  # seconds
DEFAULT_POOLS = ("fleet",)  # as the role's defaults have it


@dataclass(frozen=True)
class Member:
    """A host of the group. One that could not be asked (unreachable, or outside of --limit) has no pin: what is known of it stays."""

    host: str  # as the inventory has it
    name: str  # as its peers know it
    pools: frozenset[str]
    pin: str
    peers: Mapping[str, Mapping[str, Any]]
    damaged: Collection[str]

    @property
    def asked(self) -> bool:
        """Whether it has said whom it knows."""
        return bool(self.pin)


def member(host: str, variables: Mapping[str, Any]) -> Member:
    """A host by its variables: what the survey found, or else what the inventory says."""
    said = (variables.get("xensecure_survey") or {}).get("survey")
    asked = bool(said)
    survey = json.loads(said) if said else {}
    pools = survey["pools"] if asked else variables.get("xensecure_pools", DEFAULT_POOLS)
    return Member(
        host=host,
        name=str(survey["name"] if asked else variables.get("xensecure_name", host)),
        pools=frozenset([pools] if isinstance(pools, str) else pools),
        # A check of a host that is not set up yet finds no pin; it counts as asked, and knows nobody.
        pin=str(survey["pin"] or f"none yet: {host}") if asked else "",
        peers=survey["peers"] if asked else {},
        damaged=survey["damaged"] if asked else (),
    )


def require_distinct(members: Iterable[Member]) -> None:
    """Two hosts with one name, or with one identity (copied from one disk image), cannot be told apart by their peers."""
    names: dict[str, str] = {}
    pins: dict[str, str] = {}
    for each in members:
        other = names.setdefault(each.name.lower(), each.host)
        if other != each.host:
            raise AnsibleFilterError(f"{other} and {each.host} are both called {each.name}; set another xensecure_name for one of them")
        other = pins.setdefault(each.pin, each.host) if each.asked else each.host
        if other != each.host:
            raise AnsibleFilterError(
                f"{other} and {each.host} have one identity, as if copied from one disk; on one of them remove identity.key, identity.crt "
                "and peers/ from /var/lib/xensecure, and run this again"
            )


def wanted(first: Member, second: Member) -> bool:
    """Whether two hosts are to know each other."""
    return first.host != second.host and bool(first.pools & second.pools)


def knows(first: Member, second: Member) -> bool:
    """Whether the first has the second's name and pin."""
    return second.name in first.peers and first.peers[second.name]["pin"] == second.pin


def paired(first: Member, second: Member) -> bool:
    """Whether two hosts know each other and have a link key in common."""
    if not (knows(first, second) and knows(second, first)):
        return False
    return bool(set(first.peers[second.name]["keys"]) & set(second.peers[first.name]["keys"]))


def joins(first: int, second: int, count: int) -> bool:
    """Whether, of two hosts by their places in a ring of ``count``, the first joins the second and not the other way round.

    Each host joins the half of the ring that follows it: the work is even, and hosts that all start at once start with different ones.
    """
    distance = (second - first) % count
    return distance * 2 < count or (distance * 2 == count and first < second)


def to_forget(own: Member, members: Mapping[str, Member], *, keep: Collection[str], strangers: bool) -> list[str]:
    """The peers that a host has to forget: hosts of no pool of its own, hosts that have another identity now, damaged files.

    ``members``: by name; ``keep``: names that are nobody's business here; ``strangers``: whether hosts outside of the group are forgotten.
    """
    found = []
    for name in sorted({*own.peers, *own.damaged}):
        other = members.get(name)
        if other is None:
            if strangers and name not in keep:
                found.append(name)
        elif not wanted(own, other) or name in own.damaged or (other.asked and not knows(own, other)):
            found.append(name)
    return found


def plan(
    group: Iterable[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    *,
    rotate: bool = False,
    rotate_days: float = 0,
    keep: Collection[str] = (),
    strangers: bool = True,
) -> dict[str, dict[str, list[str]]]:
    """For every host of the group that was asked: the peers to forget and to rotate with (names), the hosts to join and to invite.

    ``rotate``: renew every link key; ``rotate_days``: those that are older (0: none); ``keep`` and ``strangers``: see ``to_forget``.
    Raises AnsibleFilterError if two hosts cannot be told apart.
    """
    members = [member(host, hostvars[host]) for host in sorted(group)]
    require_distinct(members)
    by_name = {each.name: each for each in members}
    made: dict[str, dict[str, list[str]]] = {}
    for each in members:
        if each.asked:
            made[each.host] = {"forget": to_forget(each, by_name, keep=keep, strangers=strangers), "join": [], "invite": [], "rotate": []}
    count = len(members)
    for place, own in enumerate(members):
        for distance in range(1, count // 2 + 1):
            other = members[(place + distance) % count]
            if not (own.asked and other.asked and wanted(own, other) and joins(place, (place + distance) % count, count)):
                continue
            if not paired(own, other):
                made[own.host]["join"].append(other.host)
                made[other.host]["invite"].append(own.host)
            elif rotate or (rotate_days and own.peers[other.name]["age"] > rotate_days * DAY):
                made[own.host]["rotate"].append(other.name)
    return made


def collect(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], *path: str) -> dict[str, Any]:
    """What each of these hosts has under a path of keys in its variables, left out where there is nothing (its step has failed)."""
    found: dict[str, Any] = {}
    for host in hosts:
        value: Any = hostvars[host]
        for key in path:
            value = value.get(key) if value else None
        if value:
            found[host] = value
    return found


class FilterModule:
    """What ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"xensecure_plan": plan, "xensecure_collect": collect}
