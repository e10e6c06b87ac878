"""``xensecurectl doctor HOST``: whether the next migration to a host would work, and how well. Nothing is started there."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..link.config import Config
from ..link.engine import compiled_features, find_backend
from ..link.identity import load_credentials
from ..link.peers import Peers
from ..link.xl import XenInfo, cpu_names, domain_configuration
from ..proto import limits
from ..proto.domain import needed_memory
from ..proto.errors import ConnectError, LinkLostError, StateError, UsageError, XensecureError
from ..proto.hostreport import HostReport
from ..proto.messages import Feature, printable
from ..source.check import SAME_RELEASE, is_older, older, open_check, receive_report, send_question
from ..source.establish import Route, find_route, reread
from .doctor_compare import compare_hosts, compare_options, judge_domain_there
from .doctor_local import examine_hooks, examine_key, examine_sender, examine_xen
from .doctor_path import examine_buffers, examine_way, look_at, require_delivery, send_buffer_max
from .findings import Examination
from .verdict import is_safe_name

# Longer than any packet of an Ethernet or of loopback: a path that loses large packets is met here, and not by the first page of a guest.
_QUESTION_BYTES = 128 << 10
_SMALL_SEGMENT = 1208  # bytes: what is left of the 1280 that every path of IPv6 carries (RFC 8200 section 5), less headers
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Domain:
    """A domain of this host's that is to go there; its configuration as libxl has it."""

    name: str
    configuration: Mapping[str, Any]

    def question(self) -> bytes:
        """As it is asked about."""
        return json.dumps(self.configuration, separators=(",", ":"), ensure_ascii=False).encode()


def examine_peer(found: Examination, config: Config, host: str, domain_name: str) -> None:
    """All checks, of this host as a sender first. ``domain_name``: "" for none."""
    examine_sender(found, config)
    examine_hooks(found, config, sending=True)
    here: XenInfo | None = None
    with found.check("xl", "run 'xl info' by hand"):
        here = examine_xen(found, config)
    domain = _domain(found, config, domain_name) if domain_name else None
    if found.has("identity", "state"):
        return
    route: Route | None = None
    with found.check("peer", "xensecurectl peers"):
        peers = Peers(config)
        route = find_route(config, peers, host, config.options_for(host))
        found.peer = route.peer.name
        examine_key(found, route.peer, time.time())
    if route is None:
        return
    report = _ask(found, config, peers, route, domain)
    if report is not None:
        _compare(found, config, route, report, here, domain)


def _domain(found: Examination, config: Config, name: str) -> Domain | None:
    if not is_safe_name(name):
        raise UsageError(f"{printable(name)!r} is no domain's name")
    with found.check("domain", "xl list"):
        domain = Domain(name, domain_configuration(config, name))
        if len(domain.question()) > limits.CONFIGURATION_MAX:
            raise StateError(f"the configuration of {name} is longer than {limits.CONFIGURATION_MAX >> 20} MiB; no destination takes that")
        need = needed_memory(domain.configuration)
        found.fact("domain", f"domain: {name} needs {need} MiB", {"name": name, "memory": need << 20})
        return domain
    return None


def _ask(found: Examination, config: Config, peers: Peers, route: Route, domain: Domain | None) -> HostReport | None:
    """The destination's answer, over a connection that is looked at as well; None where there is none, and a finding says why."""
    question = (domain.question() if domain else b"").ljust(_QUESTION_BYTES)
    with found.check("connect", f"look at the log of xensecured and xensecure-launcher on {route.peer.name}"):
        try:
            return _ask_once(found, config, peers, route, question)
        except ConnectError as error:
            if not error.silent:
                raise
            return _ask_in_small_packets(found, config, peers, route, question, error)
    return None


def _ask_once(found: Examination, config: Config, peers: Peers, route: Route, question: bytes) -> HostReport | None:
    begun, credentials = time.monotonic(), load_credentials(config)
    try:
        connection = open_check(config, peers, credentials, route)
    except LinkLostError:
        if not is_older(config, peers, credentials, route):
            raise
        found.find("release", older(route.peer.name), SAME_RELEASE)
        return None
    seconds = time.monotonic() - begun
    with contextlib.closing(connection.channel):
        send_question(connection, question)
        require_delivery(connection.channel.sock)
        way = look_at(connection.channel.sock)
        report = receive_report(connection)
    if not route.target.segment:
        examine_way(found, way, seconds, connection.group, route.target, route.options.interface)
        examine_buffers(found, way, report.window, send_buffer_max())
        return report
    text = f"small packets reach {way.address}, and some of up to {way.path_mtu} bytes are lost on the way without a word"
    remedy = "let ICMP 'packet too big' pass, or lower this interface's MTU; meanwhile sysctl net.ipv4.tcp_mtu_probing=1 helps"
    found.find("mtu-blackhole", text, remedy)
    return report


def _ask_in_small_packets(
    found: Examination, config: Config, peers: Peers, route: Route, question: bytes, silence: ConnectError
) -> HostReport | None:
    """A connection stood, and no answer came: whether one comes where every packet is small. If not, the silence is another one's."""
    again = reread(peers, route)
    try:
        return _ask_once(found, config, peers, replace(again, target=replace(again.target, segment=_SMALL_SEGMENT)), question)
    except XensecureError:
        raise silence from None


def _compare(
    found: Examination, config: Config, route: Route, report: HostReport, here: XenInfo | None, domain: Domain | None
) -> None:
    peer = route.peer.name
    xen = f"Xen {report.xen}, " if report.xen else ""
    text = f"{peer}: xensecure {report.xensecure}, {xen}{report.cpus} CPUs, {report.memory_free >> 20} of {report.memory_total >> 20} MiB free"
    found.fact("there", f"{text}, {report.sessions} of {report.sessions_max} migrations arriving, cipher {report.cipher}", asdict(report))
    vendor = cpu_names(_CPUINFO)[0]
    found.findings += compare_hosts(peer, report, here, vendor, time.time())
    found.findings += compare_options(
        peer, report, route.options, cipher=find_backend(config.cipher), zstd=Feature.ZSTD in compiled_features()
    )
    if domain is not None:
        found.findings += judge_domain_there(domain.name, domain.configuration, peer, report, here)
