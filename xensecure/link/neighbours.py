"""The kernel's routes and neighbour entries (IPv4: ARP, RFC 826; IPv6: Neighbor Discovery, RFC 4861), typed, and word of their changes.

They are read with pyroute2, which is imported when it is first needed: that takes longer than a key exchange.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

from ..proto.errors import SystemFailure

_NETLINK_ROUTE: Final = 0
# Multicast groups of linux/rtnetlink.h: RTNLGRP_LINK, NEIGH, IPV4_ROUTE, IPV4_RULE, IPV6_ROUTE, IPV6_RULE and NEXTHOP, as netlink(7) takes them.
_GROUPS: Final = sum(1 << (group - 1) for group in (1, 3, 7, 8, 11, 19, 32))
_PIECE: Final = 1 << 16  # bytes; the kernel's netlink messages come in pieces of 32 KiB at most
_NEIGHBOUR_EVENTS: Final = ("RTM_NEWNEIGH", "RTM_DELNEIGH")
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class NeighbourState(enum.IntFlag):
    """NUD_* of linux/neighbour.h."""

    NONE = 0x00
    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    NOARP = 0x40
    PERMANENT = 0x80


@dataclass(frozen=True)
class Neighbour:
    """One entry: the interface's index, the address, its hardware address ("" while none is known, or when the entry has gone), its state."""

    interface: int
    address: str
    hardware: str
    state: NeighbourState


@dataclass(frozen=True)
class Way:
    """Where packets for an address leave: the interface's index and name; and the next hop: a gateway, or the destination itself."""

    interface: int
    name: str
    hop: str


@dataclass(frozen=True)
class Endpoints:
    """Of a connection: the peer's address, this host's ("" for any), the index of the interface that an IPv6 link-local address is of, or 0."""

    peer: str
    own: str = ""
    scope: int = 0

    @classmethod
    def towards(cls, where: tuple[Any, ...], own: str = "") -> Self:
        """To a socket address, before there is a connection; ``own``: from this address of this host."""
        return cls(plain_address(where[0]), plain_address(own) if own else "", where[3] if len(where) == 4 else 0)

    @property
    def is_local(self) -> bool:
        """Whether the peer is this very host, and no network in between."""
        return self.own == self.peer or ipaddress.ip_address(self.peer).is_loopback


@dataclass
class Change:
    """What has changed: entries, in the order of the changes; whether routes, rules or interfaces have; whether word of some was lost."""

    neighbours: list[Neighbour] = field(default_factory=list)
    ways: bool = False
    overrun: bool = False


def plain_address(text: str) -> str:
    """An IP address in the one form in which it is compared: no scope, and an IPv4 address that is written as an IPv6 one as what it is."""
    found = ipaddress.ip_address(text.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def endpoints_of(sock: socket.socket) -> Endpoints | None:
    """A connected socket's; None if it is connected to nothing, or not by IP."""
    try:
        own, peer = sock.getsockname(), sock.getpeername()
    except OSError:
        return None
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return Endpoints.towards(peer, own[0])


def is_installed() -> bool:
    """Whether there is a pyroute2."""
    try:
        import pyroute2  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _kernel() -> Iterator[Any]:
    """For requests; SystemFailure if the kernel refuses them."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as kernel:
            yield kernel
    except (OSError, NetlinkError) as error:
        raise SystemFailure(f"rtnetlink: {error}") from None


def neighbours() -> list[Neighbour]:
    """All entries of all interfaces; SystemFailure if they cannot be had."""
    with _kernel() as kernel:
        return [entry for family in _FAMILIES.values() for message in kernel.get_neighbours(family=family) if (entry := _neighbour(message))]


def _neighbour(message: Any, *, gone: bool = False) -> Neighbour | None:
    address = message.get_attr("NDA_DST")
    if address is None or message["family"] not in _FAMILIES.values():  # a bridge's own table, for instance
        return None
    hardware = "" if gone else str(message.get_attr("NDA_LLADDR") or "")
    return Neighbour(message["ifindex"], plain_address(address), hardware, NeighbourState(message["state"]))


def find_way(ends: Endpoints) -> Way | None:
    """The way that packets between these addresses take now; None where there is none. SystemFailure if it cannot be had."""
    from pyroute2.netlink.exceptions import NetlinkError

    wanted: dict[str, Any] = {"dst": ends.peer, "family": _FAMILIES[ipaddress.ip_address(ends.peer).version]}
    if ends.own:
        wanted["src"] = ends.own
    if ends.scope:
        wanted["oif"] = ends.scope
    with _kernel() as kernel:
        try:
            message = next(iter(kernel.route("get", **wanted)), None)
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.ENODEV, errno.ENETDOWN):
                return None  # the last four: our own address has gone, an administrator forbids it, or the interface has gone or is down
            raise
    if message is None or (index := message.get_attr("RTA_OIF")) is None:
        return None
    via = message.get_attr("RTA_VIA")
    hop = message.get_attr("RTA_GATEWAY") or (via["addr"] if via else "") or ends.peer
    try:
        return Way(index, socket.if_indextoname(index), plain_address(hop))
    except OSError:  # it has gone since
        return None


class Watcher:
    """Word of every change, from the kernel. SystemFailure if it gives none."""

    def __init__(self) -> None:
        from pyroute2.netlink.rtnl.marshal import MarshalRtnl

        self._parser = MarshalRtnl()
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
            self._socket.bind((0, _GROUPS))
        except OSError as error:
            raise SystemFailure(f"rtnetlink: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when there is word."""
        return self._socket.fileno()

    def close(self) -> None:
        """No more."""
        self._socket.close()

    def read(self) -> Change:
        """All that has come since the last time."""
        change = Change()
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(_PIECE)
            except BlockingIOError:
                return change
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise SystemFailure(f"rtnetlink: {error.strerror}") from None
                change.overrun = change.ways = True
                continue
            if sender == 0:  # the kernel; another process may write to us as well (netlink(7))
                self._sort(data, change)

    def _sort(self, data: bytes, change: Change) -> None:
        for message in self._parser.parse(data):
            event = message.get("event")
            if event not in _NEIGHBOUR_EVENTS:
                change.ways = True
            elif entry := _neighbour(message, gone=event == "RTM_DELNEIGH"):
                change.neighbours.append(entry)
