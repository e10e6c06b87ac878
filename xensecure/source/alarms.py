"""What about the way to a destination is suspicious: a pure function of what the kernel's tables say now and what they said first.

An alarm is:

- a route that is not over the migration interface, where one is named;
- a route over another interface than at first, or by another gateway;
- another hardware address of the next hop (the gateway, or the destination where there is none) than at first;
- another address on that link with the hardware address of the next hop: the sign of somebody who answers for another and for himself.

None is:

- an entry that ages, fails, goes, or is learned again with the same hardware address; a way that is gone, for nothing leaves then;
- an entry that the operator has pinned (``nud permanent``): nothing that comes from the line changes it, so it is his word on what is right;
- IPv4 beside IPv6, a link-local address of IPv6 beside another one, the addresses that a peer is known by: all of one host;
- the several addresses of a virtual router, which its hardware address tells.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..link.neighbours import Endpoints, Neighbour, NeighbourState, Way

_FIXED = NeighbourState.PERMANENT | NeighbourState.NOARP
# VRRP and CARP for IPv4 and IPv6 (RFC 9568 section 7.3), HSRP version 1 (RFC 2281 section 5.2) and 2, GLBP.
_VIRTUAL_ROUTERS = ("00:00:5e:00:01:", "00:00:5e:00:02:", "00:00:0c:07:ac:", "00:00:0c:9f:f", "00:07:b4:")


class Kind(enum.Enum):
    """What an alarm is about."""

    INTERFACE = "interface"
    ROUTE = "route"
    HARDWARE = "hardware address"
    SHARED = "shared hardware address"


@dataclass(frozen=True)
class Alarm:
    """One suspicion, about an interface: what was and what is, and ``text``, which says it."""

    kind: Kind
    interface: str
    was: str
    now: str
    text: str


@dataclass(frozen=True)
class Seen:
    """What the tables say of a connection: its way (None: there is none), and the entries on that way's interface."""

    ends: Endpoints
    way: Way | None
    entries: tuple[Neighbour, ...] = ()

    @property
    def hop(self) -> Neighbour | None:
        """The entry of the next hop, if its hardware address is known."""
        if self.way is None:
            return None
        return next((entry for entry in self.entries if entry.address == self.way.hop and entry.hardware), None)


@dataclass(frozen=True)
class First:
    """What they said first: the way, and the hardware address of its next hop ("" while that is not known)."""

    way: Way | None = None
    hardware: str = ""


@dataclass(frozen=True)
class Known:
    """What the operator has said: the migration interface ("" for any), and the addresses of the peer."""

    interface: str = ""
    addresses: frozenset[str] = frozenset()


def remember(first: First, seen: Seen) -> First:
    """``first`` with what is now said for the first time."""
    if seen.way is None:
        return first
    way = first.way or seen.way
    hop = seen.hop
    if hop is None or not _is_same(way, seen.way):
        return replace(first, way=way)
    return First(way, hop.hardware if hop.state & _FIXED else first.hardware or hop.hardware)


def judge(first: First, seen: Seen, known: Known) -> list[Alarm]:
    """The alarms of this moment, the gravest last."""
    way, hop = seen.way, seen.hop
    if way is None:
        return []
    alarms = []
    if known.interface and way.name != known.interface:
        words = f"the route to {seen.ends.peer} goes over {way.name}, and not over {known.interface}"
        alarms.append(Alarm(Kind.INTERFACE, way.name, known.interface, way.name, words))
    elif first.way is not None and not _is_same(first.way, way):
        was, now = _over(first.way, seen.ends), _over(way, seen.ends)
        alarms.append(Alarm(Kind.ROUTE, way.name, was, now, f"the route to {seen.ends.peer} went {was}, and goes {now} now"))
    if hop is None or hop.state & _FIXED:
        return alarms
    alarms += [_shared(seen, way, hop, other) for other in _others(seen.entries, hop, known.addresses)]
    if first.way is not None and _is_same(first.way, way) and first.hardware not in ("", hop.hardware):
        words = f"the hardware address of {_named(way, seen.ends)} on {way.name} was {first.hardware}, and is {hop.hardware} now"
        alarms.append(Alarm(Kind.HARDWARE, way.name, first.hardware, hop.hardware, words))
    return alarms


def is_certain(first: First, seen: Seen) -> bool:
    """Whether the absence of alarms says that all is as it was: there is a way, and its next hop is known, if it ever was."""
    return seen.way is not None and (seen.hop is not None or not first.hardware)


def _is_same(one: Way, other: Way) -> bool:
    """By name: an interface that is made anew has another index."""
    return (one.name, one.hop) == (other.name, other.hop)


def describe(first: First, ends: Endpoints) -> str:
    """What is watched, in words."""
    if first.way is None:
        return f"there is no route to {ends.peer}"
    return f"{_named(first.way, ends)} is {first.hardware or 'of no known hardware address'} on {first.way.name}"


def _named(way: Way, ends: Endpoints) -> str:
    return way.hop if way.hop == ends.peer else f"the gateway {way.hop} to {ends.peer}"


def _over(way: Way, ends: Endpoints) -> str:
    return f"over {way.name}" + ("" if way.hop == ends.peer else f" by {way.hop}")


def _shared(seen: Seen, way: Way, hop: Neighbour, other: Neighbour) -> Alarm:
    words = f"{_named(way, seen.ends)} and {other.address} on {way.name} both have the hardware address {hop.hardware}"
    return Alarm(Kind.SHARED, way.name, f"{hop.address} {hop.hardware}", f"{other.address} {other.hardware}", words)


def _others(entries: Iterable[Neighbour], hop: Neighbour, peers: frozenset[str]) -> list[Neighbour]:
    """Those that share the next hop's hardware address without being known to be the same host."""
    if hop.hardware.startswith(_VIRTUAL_ROUTERS):
        return []
    return [entry for entry in entries if entry.hardware == hop.hardware and entry.address != hop.address and not _belongs(entry, hop, peers)]


def _belongs(entry: Neighbour, hop: Neighbour, peers: frozenset[str]) -> bool:
    one, other = ipaddress.ip_address(entry.address), ipaddress.ip_address(hop.address)
    if entry.state & _FIXED or one.version != other.version:
        return True
    if one.version == 6 and one.is_link_local != other.is_link_local:
        return True
    return entry.address in peers and hop.address in peers
