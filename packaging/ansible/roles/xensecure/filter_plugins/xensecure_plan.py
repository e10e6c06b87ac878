"""Which pairs of a fleet are to be made, renewed or ended, and which of the two hosts does it: a pure function of what all hosts have said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

try:
    from ansible.errors import AnsibleFilterError
except ImportError:  # in a test without ansible
    AnsibleFilterError = ValueError

DAY = 86400  # seconds
DEFAULT_POOLS = ("fleet",)  # as the role's defaults have it

# All that a host can make the controller pass on. A host may be in an enemy's hands; ansible before 2.19 runs templates that it finds in a value
# which went through a filter and set_fact, and no text that fits one of these is a template, an option of a command or a path.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,229}")  # as in a host's own configuration
PIN = re.compile(r"[0-9a-f]{64}")  # SHA-256
KEY_ID = re.compile(r"[0-9a-f]{32}")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{1,64}\n){1,64}-----END CERTIFICATE-----\n")  # 4 KB; P-256 has 0.6
TOKEN = re.compile(r"[A-Za-z0-9+/]{1,8192}={0,2}")  # base64 characters; one of 8 addresses has 2,000
UNPRINTED = re.compile(r"[^ -z|~]")  # what is not printable ASCII, and braces
LINE_MAX = 500  # characters of a line that says what has failed; xensecurectl's are shorter


# ---- what hosts say


class Known(NamedTuple):
    """What a host knows of a peer."""

    pin: str
    keys: frozenset[str]  # the ids
    age: int  # of the newest key, in seconds


class Survey(NamedTuple):
    """What a host says of itself."""

    name: str
    pin: str  # "" in a check of a host that is not set up yet
    peers: dict[str, Known]  # by name
    damaged: frozenset[str]  # names


def fit(pattern: re.Pattern[str], value: object) -> str:
    """A text that is all of the pattern's; ValueError if it is not."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError
    return str(value)


def known(entry: Mapping[str, Any]) -> Known:
    """An entry of a survey; ValueError, KeyError or TypeError if it is none."""
    if type(entry["age"]) is not int or not isinstance(entry["keys"], list):
        raise ValueError
    return Known(fit(PIN, entry["pin"]), frozenset([fit(KEY_ID, each) for each in entry["keys"]]), entry["age"])


def understand(host: str, said: str) -> Survey:
    """A survey's text. AnsibleFilterError if anything in it is not what xensecurectl prints; the host's words are not repeated then."""
    try:
        survey = json.loads(said)
        return Survey(
            name=fit(NAME, survey["name"]),
            pin=survey["pin"] if survey["pin"] == "" else fit(PIN, survey["pin"]),
            peers={fit(NAME, name): known(entry) for name, entry in survey["peers"].items()},
            damaged=frozenset([fit(NAME, name) for name in survey["damaged"]]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise AnsibleFilterError(
            f"{host} answers with names, pins or key ids that xensecure never has: look for odd files in its /var/lib/xensecure/peers, and whether "
            f"it is in other hands; --limit 'all:!{host}' leaves it as it is"
        ) from None


def require_no_claim(host: str, facts: Mapping[str, Any]) -> None:
    """A host's facts outrank the inventory in ansible, and any module's answer can hold some: none may be one of the role's variables."""
    if any(str(name).startswith("xensecure") for name in facts):
        raise AnsibleFilterError(
            f"{host} sets variables of this role by its facts, and has no say in them: look who does that there (a custom fact, set_fact with "
            f"cacheable, another's hands) and set them in the inventory; --limit 'all:!{host}' leaves it as it is, --flush-cache removes stored facts"
        )


def settle(variables: dict[str, Any], host: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The variables, as they are; AnsibleFilterError if the host can have changed them."""
    require_no_claim(host, facts)
    return variables


def collect(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], path: Iterable[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """What each of these hosts has under a path of keys in its variables, left out where there is nothing (its step has failed).

    AnsibleFilterError if it does not fit the pattern.
    """
    found: dict[str, str] = {}
    for host in hosts:
        value: Any = hostvars[host]
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        try:
            if value:
                found[host] = fit(pattern, value)
        except ValueError:
            raise AnsibleFilterError(
                f"{host} answers with something else than a certificate or an encrypted token: look whether it is in other hands; "
                f"--limit 'all:!{host}' leaves it as it is"
            ) from None
    return found


def certificates(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What tokens for each of these hosts are encrypted to."""
    return collect(hosts, hostvars, ("xensecure_prepared", "certificate"), CERTIFICATE)


def tokens(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], guest: str) -> dict[str, str]:
    """The encrypted token that each of these hosts has made for a guest."""
    return collect(hosts, hostvars, ("xensecure_invited", "tokens", guest), TOKEN)


def failures(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines in which a host's steps say what has failed, as plain text."""
    lines = []
    for result in results:
        said = result.get("failures") or []
        lines += [UNPRINTED.sub("?", str(line)[:LINE_MAX]) for line in (said if isinstance(said, list) else [said])]
    return lines


# ---- what follows from it


@dataclass(frozen=True)
class Member:
    """A host of the group. One that could not be asked (unreachable, or outside of --limit) has no pin: what is known of it stays."""

    host: str  # as the inventory has it
    name: str  # as its peers know it, by the inventory
    pools: frozenset[str]  # by the inventory
    pin: str
    peers: Mapping[str, Known]
    damaged: Collection[str]

    @property
    def asked(self) -> bool:
        """Whether it has said whom it knows."""
        return bool(self.pin)


def member(host: str, variables: Mapping[str, Any]) -> Member:
    """A host by its variables. Name and pools are the inventory's: a host has no say in whom others forget and meet.

    AnsibleFilterError if the host calls itself otherwise, or says what no xensecure does.
    """
    require_no_claim(host, variables.get("ansible_facts") or {})
    # A host outside of this run has settled nothing; it has no defaults of the role's either.
    settled = variables.get("xensecure_settled") or {
        "name": variables.get("xensecure_name", host),
        "pools": variables.get("xensecure_pools", DEFAULT_POOLS),
    }
    name, pools = str(settled["name"]), settled["pools"]
    belongs = frozenset([pools] if isinstance(pools, str) else pools)
    said = (variables.get("xensecure_survey") or {}).get("survey")
    if not said:
        return Member(host, name, belongs, "", {}, ())
    survey = understand(host, said)
    if survey.name != name:
        raise AnsibleFilterError(
            f"{host} calls itself {survey.name}, and is {name} by the inventory: set xensecure_name to what its peers are to call it, "
            "and no other name in xensecure_config"
        )
    # A check of a host that is not set up yet finds no pin; it counts as asked, and knows nobody.
    return Member(host, name, belongs, survey.pin or f"none yet: {host}", survey.peers, survey.damaged)


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
    return second.name in first.peers and first.peers[second.name].pin == second.pin


def paired(first: Member, second: Member) -> bool:
    """Whether two hosts know each other and have a link key in common."""
    if not (knows(first, second) and knows(second, first)):
        return False
    return bool(first.peers[second.name].keys & second.peers[first.name].keys)


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
    Raises AnsibleFilterError if two hosts cannot be told apart, or for what ``member`` refuses.
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
            elif rotate or (rotate_days and own.peers[other.name].age > rotate_days * DAY):
                made[own.host]["rotate"].append(other.name)
    return made


class FilterModule:
    """What ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {
            "xensecure_settle": settle,
            "xensecure_plan": plan,
            "xensecure_certificates": certificates,
            "xensecure_tokens": tokens,
            "xensecure_failures": failures,
        }
