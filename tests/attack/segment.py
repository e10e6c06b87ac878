"""The segment: source, destination and attacker in network namespaces of their own, on one bridge, with IPv4 and IPv6; removed on leaving.

    hv1 .1 ──┐
    hv2 .2 ──┼── bridge (a namespace too: the switch)          192.0.2.0/24, 2001:db8::/64: addresses for documentation
    mallory .66 ─┘
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

try:
    from pyroute2 import NetNS, netns
except ImportError:  # the lab says so when it is asked for a segment
    netns = None

_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
DEVICE = "eth0"
SWITCH, SOURCE, DESTINATION, ATTACKER = "switch", "hv1", "hv2", "mallory"
_NUMBER = {SOURCE: 1, DESTINATION: 2, ATTACKER: 0x66}
_EXTRA = 128  # the first of the addresses that an attacker may have beside his own, for a flood


class Family(StrEnum):
    """What the hosts speak."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


class NoSegmentError(Exception):
    """This machine does not let us make the segment; the text says why."""


def address(host: str, family: Family = Family.IPV4) -> str:
    """A host's address."""
    number = _NUMBER[host]
    return f"192.0.2.{number}" if family is Family.IPV4 else f"2001:db8::{number:x}"


class Segment:
    """Four namespaces, three cables."""

    def __init__(self) -> None:
        self._names = {host: f"xsattack{os.getpid()}-{host}" for host in (SWITCH, *_NUMBER)}
        self._made: list[str] = []

    def __enter__(self) -> Self:
        if netns is None:
            raise NoSegmentError("python3-pyroute2 is not installed")
        if os.geteuid() != 0:
            raise NoSegmentError("only root can make network namespaces")
        try:
            self._make()
        except (OSError, RuntimeError, ValueError) as error:
            self._remove()
            raise NoSegmentError(f"no network namespaces: {error}") from None
        except BaseException as error:
            self._remove()
            if type(error).__name__ == "NetlinkError":
                raise NoSegmentError(f"no network namespaces: {error}") from None
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _make(self) -> None:
        for name in self._names.values():
            netns.create(name)
            self._made.append(name)
        with NetNS(self._names[SWITCH]) as switch:
            # No snooping: a plain switch, that floods what it does not know, neighbour solicitations included.
            switch.link("add", ifname="br0", kind="bridge", br_mcast_snooping=0)
            switch.link("set", index=switch.link_lookup(ifname="br0")[0], state="up")
        for host in _NUMBER:
            self._cable(host)
        with self.inside(ATTACKER):
            for setting in ("ipv4/conf/all/send_redirects", f"ipv4/conf/{DEVICE}/send_redirects"):
                Path("/proc/sys/net", setting).write_text("0")  # a router would tell the victims of a shorter way

    def _plug(self, host: str, port: str, device: str) -> None:
        with NetNS(self._names[SWITCH]) as switch:
            switch.link("add", ifname=port, kind="veth", peer={"ifname": device, "net_ns_fd": self._names[host]})
            index = switch.link_lookup(ifname=port)[0]
            switch.link("set", index=index, master=switch.link_lookup(ifname="br0")[0])
            switch.link("set", index=index, state="up")

    def _cable(self, host: str) -> None:
        self._plug(host, f"to-{host}", DEVICE)
        with self.inside(host):
            Path(f"/proc/sys/net/ipv6/conf/{DEVICE}/accept_dad").write_text("0")
        with NetNS(self._names[host]) as own:
            own.link("set", index=own.link_lookup(ifname="lo")[0], state="up")
            index = own.link_lookup(ifname=DEVICE)[0]
            own.link("set", index=index, state="up")
            own.addr("add", index=index, address=address(host), prefixlen=24)
            own.addr("add", index=index, address=address(host, Family.IPV6), prefixlen=64)

    def _remove(self) -> None:
        for name in self._made:
            with contextlib.suppress(OSError):
                netns.remove(name)
        self._made.clear()

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Where the commands of a host run: this thread's namespace, and that of all it starts, is the host's meanwhile."""
        before = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.enter(host)
            yield
        finally:
            netns.setns(f"/proc/self/fd/{before}")
            os.close(before)

    def enter(self, host: str) -> None:
        """Put the calling thread into a host's namespace, for good."""
        netns.setns(self._names[host])

    def run(self, host: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of a host's to its end."""
        with self.inside(host):
            return subprocess.run(words, capture_output=True, text=True, check=check, timeout=30)

    @contextlib.contextmanager
    def second_cable(self, host: str, device: str) -> Iterator[None]:
        """One more between a host and the switch for a while, down at the host's end."""
        self._plug(host, f"more-{host}", device)
        try:
            yield
        finally:
            self.run(SWITCH, "ip", "link", "del", f"more-{host}")

    # ---- who has which hardware address

    def hardware(self, host: str) -> str:
        """A host's hardware address."""
        with NetNS(self._names[host]) as own:
            return str(own.link("get", ifname=DEVICE)[0].get_attr("IFLA_ADDRESS"))

    def believed(self, host: str, whose: str, family: Family) -> str:
        """The hardware address that a host has for another; "" if none."""
        with NetNS(self._names[host]) as own:
            for entry in own.get_neighbours():
                if entry.get_attr("NDA_DST") == address(whose, family):
                    return str(entry.get_attr("NDA_LLADDR") or "")
        return ""

    def forget_neighbours(self) -> None:
        """Have every host ask anew."""
        for host in _NUMBER:
            with NetNS(self._names[host]) as own:
                index = own.link_lookup(ifname=DEVICE)[0]
                for entry in own.get_neighbours(ifindex=index):
                    if entry.get_attr("NDA_LLADDR") and entry.get_attr("NDA_DST"):
                        with contextlib.suppress(Exception):
                            own.neigh("del", ifindex=index, dst=entry.get_attr("NDA_DST"), family=entry["family"])

    def extra_addresses(self, host: str, count: int) -> list[str]:
        """So many IPv4 addresses that a host has beside its own; it gets them when they are first asked for."""
        wanted = [f"192.0.2.{_EXTRA + number}" for number in range(count)]
        with NetNS(self._names[host]) as own:
            index = own.link_lookup(ifname=DEVICE)[0]
            there = {entry.get_attr("IFA_ADDRESS") for entry in own.get_addr(index=index)}
            for extra in wanted:
                if extra not in there:
                    own.addr("add", index=index, address=extra, prefixlen=24)
        return wanted
