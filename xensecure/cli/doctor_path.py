"""The way to a destination, as the kernel knows it: interface, route, sizes and times, and what of it makes a migration slow."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..link.connection import Target
from ..proto.errors import ConnectError, LinkLostError
from .findings import Examination

_ETHERNET_MTU = 1500  # bytes: what a path carries that nobody has made otherwise (RFC 894)
_JUMBO_MTU = 9216  # bytes: what switches carry at most; what loopback's packets have beyond that is no matter
_HEADERS = {False: 20 + 20 + 12, True: 40 + 20 + 12}  # bytes of IP (IPv6: True), TCP and its time stamps around a segment
# struct tcp_info of linux/tcp.h: eight bytes, 24 u32, four u64, four u32; these are places among the numbers.
_TCP_INFO = struct.Struct("8x24I4Q4I")
_SND_MSS, _PMTU, _MIN_RTT = 2, 13, 31
_INT = struct.Struct("i")
_DELIVERY_SECONDS = 4.0  # TCP sends anew after 0.2, 0.6, 1.4 and 3 s (RFC 6298, Linux's least): what is lost four times is lost each time
_DELIVERY_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Way:
    """One connection's way. Sizes in bytes, ``rtt`` in seconds, ``speed`` in bytes a second.

    ``interface`` and what follows: "" and 0 where it is not known (no pyroute2 here, or, of ``speed``, the interface does not say).
    """

    address: str
    local_address: str
    mss: int
    path_mtu: int
    rtt: float
    interface: str = ""
    gateway: str = ""
    interface_mtu: int = 0
    speed: int = 0


def look_at(sock: socket.socket) -> Way:
    """The way of a connected TCP socket; LinkLostError if it is connected no more."""
    try:
        numbers = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
        address, local = str(sock.getpeername()[0]), str(sock.getsockname()[0])
    except OSError as error:
        raise LinkLostError(f"the connection broke: {error.strerror}; xensecured's log on the other host may say why") from None
    interface, gateway, interface_mtu = _route(address, local)
    return Way(
        address=address,
        local_address=local,
        mss=numbers[_SND_MSS],
        path_mtu=numbers[_PMTU],
        rtt=numbers[_MIN_RTT] / 1e6,
        interface=interface,
        gateway=gateway,
        interface_mtu=interface_mtu,
        speed=_speed(interface),
    )


def require_delivery(sock: socket.socket) -> None:
    """Wait until the other host's kernel has all that was sent; a silent ConnectError when it has taken nothing more for some seconds."""
    left, end = -1, 0.0
    while (now := unacknowledged(sock)) > 0:
        if now != left:
            left, end = now, time.monotonic() + _DELIVERY_SECONDS
        if time.monotonic() >= end:
            raise ConnectError("the peer did not answer in time; what is sent to it does not arrive: firewall, path MTU", silent=True)
        time.sleep(_DELIVERY_POLL_SECONDS)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that were sent and that the other host's kernel has not said to have (SIOCOUTQ, tcp(7))."""
    return int(_INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))[0])


def _route(address: str, local: str) -> tuple[str, str, int]:
    """The route between two addresses: interface, gateway ("": none), the interface's MTU; empty words and 0 where nobody here can say."""
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        return "", "", 0
    with contextlib.suppress(NetlinkError, OSError, KeyError), IPRoute() as routes:
        for message in routes.route("get", dst=address.partition("%")[0], src=local.partition("%")[0]):
            route = dict(message["attrs"])
            link = dict(routes.get_links(route["RTA_OIF"])[0]["attrs"])
            return str(link["IFLA_IFNAME"]), str(route.get("RTA_GATEWAY", "")), int(link["IFLA_MTU"])
    return "", "", 0


def _speed(interface: str) -> int:
    """Bytes a second that an interface carries; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        megabits = int(Path(f"/sys/class/net/{interface}/speed").read_text("ascii")) if interface else 0
        return max(0, megabits) * 125_000
    return 0


def send_buffer_max() -> int:
    """Bytes that TCP here buffers for one connection at most: the third of net.ipv4.tcp_wmem, which serves IPv6 too (tcp(7)); 0: not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text("ascii").split()[2])
    return 0


def examine_way(found: Examination, way: Way, seconds: float, group: str, target: Target, migration: str = "") -> None:
    """Facts of a connection's way, and what of it will be slow, or goes astray.

    ``seconds``: from the first packet to the proofs; ``group``: TLS's; ``migration``: the interface that is named for migrations, "" for any.
    """
    through = f" through {way.interface}" if way.interface else ""
    gateway = f" by way of {way.gateway}" if way.gateway else ""
    found.fact("route", f"route: {way.local_address} to {way.address}{through}{gateway}", asdict(way))
    if migration and way.interface not in ("", migration):
        remedy = f"a route over {migration}, or 'bind'; with neighbour = \"refuse\" no migration begins as it is"
        found.find("interface", f"the route to {way.address} goes over {way.interface}, and not over {migration}", remedy)
    of = f" of {way.interface_mtu}" if way.interface_mtu else ""
    found.fact("path-mtu", f"path MTU: {way.path_mtu}{of} bytes, segments of {way.mss}; round trip: {way.rtt * 1000:.2f} ms", way.path_mtu)
    found.fact("key-exchange", f"key exchange: {seconds * 1000:.0f} ms, by {group}", {"seconds": round(seconds, 4), "group": group})
    if group != "X25519MLKEM768":
        remedy = "nothing, unless recordings must stay closed in twenty years: OpenSSL 3.5 or newer on both hosts"
        found.find("group", f"the key exchange is by {group}, which a quantum computer could open together with the link key", remedy)
    # TCP may know less of the path than its segments: a host whose own MTU is small says so in the first packet.
    carried = min(way.path_mtu, way.mss + _HEADERS[":" in way.address])
    # Where every path is Ethernet's, a tunnel's few bytes less are no slip; where the interface is set for more, somebody wanted more.
    if way.interface_mtu > _ETHERNET_MTU and carried < min(way.interface_mtu, _JUMBO_MTU):
        remedy = "set the same MTU on all hosts and switches of the migration network"
        found.find("path-mtu", f"the path to {way.address} carries packets of {carried} bytes, of {way.interface}'s {way.interface_mtu}", remedy)
    _examine_first(found, way, target)


def _examine_first(found: Examination, way: Way, target: Target) -> None:
    """Whether the first address to try was the one that answered."""
    first = target.addresses[0]
    try:
        known = {str(entry[4][0]) for entry in socket.getaddrinfo(first, target.port, type=socket.SOCK_STREAM)}
    except OSError:
        known = set()
    if way.address not in known:
        text = f"{first} does not answer, {way.address} does, and each migration tries the first one first"
        found.find("address", text, f"set address = {way.address!r} in its [host.NAME]")


def examine_buffers(found: Examination, way: Way, window: int, buffer: int) -> None:
    """Whether a round trip's worth of the line may be in flight. ``window``: the session's; ``buffer``: TCP's here, 0 if not known (bytes)."""
    if not way.speed or not way.rtt:
        return
    flight = min(window, buffer or window)
    if flight / way.rtt >= way.speed:
        return
    what = "[receive] window there" if window == flight else "the third value of sysctl net.ipv4.tcp_wmem here, and of tcp_rmem there"
    most = f"{flight >> 10} KiB in flight over {way.rtt * 1000:.1f} ms are {flight / way.rtt / 1e6:.0f} MB/s"
    text = f"{most}, of {way.speed / 1e6:.0f} that {way.interface} carries"
    found.find("buffers", text, f"raise {what} to at least {int(way.speed * way.rtt) >> 10} KiB")
