"""What follows for a migration from how two hosts are: pure functions of this host's Xen, the destination's report and the domain's configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from .. import __version__
from ..link.config import HostOptions
from ..link.xl import XenInfo
from ..proto import limits
from ..proto.domain import needed_memory
from ..proto.hostreport import HostReport
from .findings import Finding

_MIB = 1 << 20
# The word of virt_caps that a domain of a type needs; an older xl has none for "pv", so only what is here and not there counts.
_NEEDS = {"hvm": "hvm", "pvh": "hvm", "pv": "pv"}


def compare_hosts(peer: str, report: HostReport, here: XenInfo | None, cpu_vendor: str, now: float) -> Iterator[Finding]:
    """What is not as it should be between this host and a destination.

    ``here``: this host's Xen, None if it does not say; ``cpu_vendor``: of this host, "" if not known; ``now``: this host's clock, seconds since 1970.
    """
    for fault in report.faults:
        text, _, remedy = fault.partition("; ")
        yield Finding("there", f"no domain can arrive on {peer}: {text}", remedy or f"mend it there, and look with 'xensecurectl doctor' on {peer}")
    if report.sessions >= report.sessions_max:
        yield Finding("full", f"{report.sessions} migrations are arriving on {peer}, and no more may", "wait, or raise [receive] sessions there")
    if report.xensecure != __version__:
        yield Finding("release", f"xensecure is {__version__} here and {report.xensecure} on {peer}", "install the same release on both")
    skew = report.clock - now
    if abs(skew) > limits.CLOCK_SKEW_SECONDS:
        ahead = "ahead of" if skew > 0 else "behind"
        text = f"the clock of {peer} is {abs(skew):.0f} s {ahead} this host's"
        yield Finding("clock", text, "have both set by NTP: tokens, certificates and journals go by them")
    if here is not None and report.xen:
        yield from _compare_xen(peer, report, here, cpu_vendor)


def _compare_xen(peer: str, report: HostReport, here: XenInfo, cpu_vendor: str) -> Iterator[Finding]:
    if _release(report.xen) < _release(here.version):
        text = f"Xen is {report.xen} on {peer}, older than {here.version} here: Xen supports migration to the same or a newer release"
        yield Finding("xen", text, f"upgrade {peer} first")
    if cpu_vendor and report.cpu_vendor and cpu_vendor != report.cpu_vendor:
        text = f"the CPU here is {cpu_vendor}'s, that of {peer} {report.cpu_vendor}'s: a guest does not live through that"
        yield Finding("cpu", text, "migrate to hosts with CPUs of the same vendor")
    missing = missing_features(here.hw_caps, report.cpu_features)
    if missing:
        count = sum(int(word, 16).bit_count() for word in missing.split(":"))
        remedy = f"'xen-cpuid {missing}' names them; hide them from guests here (cpuid= in xl.cfg) before they are started"
        yield Finding("cpu-features", f"the CPU of {peer} lacks {count} features that this one has, and a guest may use", remedy)
    if lacking := _lacking(here, report):
        text = f"Xen on {peer} lacks {', '.join(lacking)}, which it has here"
        yield Finding("virtualization", text, f"look at the firmware's settings and Xen's command line on {peer} ('xl info', virt_caps)")


def _lacking(here: XenInfo, report: HostReport) -> list[str]:
    """What Xen can do for guests here, and not there."""
    return [word for word in here.virt_caps.split() if word not in report.virtualization.split()]


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number: what stands behind them does not keep a guest away."""
    return tuple(int(number) for number in re.findall(r"[0-9]{1,4}", version)[:2])


def missing_features(here: str, there: str) -> str:
    """The features that the first CPU has and the second has not, in the form of hw_caps; "" if there is none."""
    words = [int(a, 16) & ~int(b, 16) for a, b in zip_longest(_words(here), _words(there), fillvalue="0")]
    return ":".join(f"{word:08x}" for word in words) if any(words) else ""


def _words(caps: str) -> list[str]:
    return re.findall(r"\b[0-9a-f]{1,8}\b", caps)


def compare_options(peer: str, report: HostReport, options: HostOptions, *, cipher: str, zstd: bool) -> Iterator[Finding]:
    """What this host's configuration asks for, and the destination does not have. ``cipher``, ``zstd``: what is used, and built in, here."""
    if report.cipher != cipher:
        remedy = "nothing; where speed matters: the same build of xensecure, and a CPU with VAES and AVX512, on both"
        text = f"frames are encrypted by {cipher} here and by {report.cipher} on {peer}, at the speed of the slower one"
        yield Finding("cipher-there", text, remedy)
    if options.compress != "off" and not (zstd and report.zstd):
        text = f"compress = {options.compress!r} has no effect: {peer if zstd else 'this host'} has no libzstd"
        yield Finding("compress", text, "install libzstd-dev there and build again, or set compress = 'off'")
    if options.lanes > report.lanes:
        text = f"lanes = {options.lanes} here, and {peer} takes {report.lanes}"
        yield Finding("lanes", text, f"raise [receive] lanes on {peer}, or lower lanes here")


def judge_domain_there(
    name: str, configuration: Mapping[str, Any], peer: str, report: HostReport, here: XenInfo | None
) -> Iterator[Finding]:
    """What keeps a domain from that destination. ``here``: this host's Xen, None if it does not say."""
    if report.refusal:
        text, _, remedy = report.refusal.partition("; ")
        other = f"change the domain, or [policy] on {peer} and restart its xensecure-launcher; or take another destination"
        yield Finding("refused", f"{peer} would refuse {name}: {text}", remedy or other)
    if not report.xen:
        return
    need = needed_memory(configuration)
    if need > report.memory_free // _MIB:
        text = f"{name} needs {need} MiB, and {peer} has {report.memory_free // _MIB} MiB free of {report.memory_total // _MIB}"
        yield Finding("memory", text, f"free memory there, or let xl there shrink its dom0 (autoballoon in xl.conf on {peer})")
    kind = _text(configuration, "c_info", "type")
    if here is not None and _NEEDS.get(kind) in _lacking(here, report):
        yield Finding("domain-type", f"{name} is a {kind} domain, and Xen on {peer} cannot run these", f"see virt_caps of 'xl info' on {peer}")


def _text(configuration: Mapping[str, Any], *names: str) -> str:
    value: Any = configuration
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""
