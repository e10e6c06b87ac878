"""What this host's xl says when it is asked: bounded in time and output, and strict where it is understood."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..proto import limits
from ..proto.errors import StateError, SystemFailure
from ..proto.messages import printable
from .config import Config

# What a root login would give xl, less everything that a caller could have put there.
ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
_MIB = 1 << 20
_CPUINFO_BYTES = 4096  # of /proc/cpuinfo: its first processor's names stand at its very beginning
_NO_DOMAIN = "is an invalid domain identifier"  # find_domain() in xl_utils.c
# xl_info.c, output_physinfo() and output_xeninfo(): "%-22s : %s".
_INFO_LINE = re.compile(r"([a-z0-9_]+) *:(?: (.*))?")


def run_xl(config: Config, *arguments: str, seconds: float = limits.XL_SECONDS) -> str:
    """What an xl command prints; SystemFailure if it cannot be run, fails, or takes more than that or prints more than XL_OUTPUT_MAX bytes."""
    command = f"xl {arguments[0]}"
    try:
        process = subprocess.Popen(
            [config.xl, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(ENVIRONMENT), cwd="/"
        )
    except OSError as error:
        raise SystemFailure(f"'{command}' cannot be run ({config.xl}: {error.strerror}); set [receive] xl") from None
    with process:
        try:
            printed, complaint = _read_both(process, command, seconds)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        last = (complaint.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        raise SystemFailure(f"'{command}' failed with status {process.returncode}: {printable(last)}")
    return printed.decode("utf-8", "replace")


def _read_both(process: subprocess.Popen[bytes], command: str, seconds: float) -> tuple[bytes, bytes]:
    """What it writes to its standard output and error until both have ended, and it with them."""
    end = time.monotonic() + seconds
    read = {pipe.fileno(): bytearray() for pipe in (process.stdout, process.stderr) if pipe is not None}
    with selectors.DefaultSelector() as selector:
        for descriptor in read:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, end - time.monotonic())):
                piece = os.read(key.fd, 1 << 16)
                read[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                if len(read[key.fd]) > limits.XL_OUTPUT_MAX:
                    raise SystemFailure(f"'{command}' prints more than {limits.XL_OUTPUT_MAX >> 20} MiB; run it by hand")
            if selector.get_map() and time.monotonic() >= end:
                raise SystemFailure(f"'{command}' has not ended within {seconds:.0f} s; is xenstored well?")
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise SystemFailure(f"'{command}' has not ended within {seconds:.0f} s; is xenstored well?") from None
    printed, complaint = read.values()
    return bytes(printed), bytes(complaint)


@dataclass(frozen=True)
class XenInfo:
    """What ``xl info`` says of a host; memory in bytes. ``hw_caps``: the CPU's features, 32 bits a word; ``virt_caps``: what guests it can have;
    ``commandline``: the hypervisor's.
    """

    version: str
    memory_total: int
    memory_free: int
    cpus: int
    hw_caps: str
    virt_caps: str
    commandline: str = ""


def xl_info(config: Config) -> XenInfo:
    """This host's Xen; SystemFailure if xl does not say."""
    return parse_info(run_xl(config, "info", seconds=limits.XL_INFO_SECONDS))


def parse_info(text: str) -> XenInfo:
    """Read what ``xl info`` prints; SystemFailure where something that is needed is missing or is no number."""
    found = {line[1]: (line[2] or "").strip() for line in map(_INFO_LINE.fullmatch, text.splitlines()) if line}
    try:
        return XenInfo(
            version=printable(found["xen_version"]),
            memory_total=_number(found["total_memory"]) * _MIB,
            memory_free=_number(found["free_memory"]) * _MIB,
            cpus=_number(found["nr_cpus"]),
            hw_caps=_hw_caps(found["hw_caps"]),
            virt_caps=printable(found.get("virt_caps", "")),
            commandline=printable(found.get("xen_commandline", "")),
        )
    except KeyError as error:
        raise SystemFailure(f"'xl info' does not say {error.args[0]}; run it by hand") from None
    except ValueError as error:
        raise SystemFailure(f"'xl info' says something that is none of xl's: {printable(str(error))}") from None


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):  # MiB, or CPUs: 10^9 MiB are a pebibyte
        raise ValueError(text)
    return int(text)


def _hw_caps(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{8}(:[0-9a-f]{8}){0,27}", text, re.ASCII):
        raise ValueError(text)
    return text


def domain_configuration(config: Config, name: str) -> dict[str, Any]:
    """A running domain's configuration, as xl would send it; StateError if there is no such domain, SystemFailure if xl does not give it."""
    try:
        printed = run_xl(config, "list", "-l", name)
    except SystemFailure as error:
        if _NO_DOMAIN in str(error):
            raise no_domain(name) from None
        raise
    try:
        found = json.loads(printed)[0]["config"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SystemFailure(f"'xl list -l {name}' gives no configuration of a domain; run it by hand")
    return found


def no_domain(name: str) -> StateError:
    """The error for a name that no domain here has."""
    return StateError(f"there is no domain {printable(name)!r} here; 'xl list' shows them")


def cpu_names(cpuinfo: Path) -> tuple[str, str]:
    """Vendor and model of this host's first processor, each "" where the kernel does not say (as on ARM)."""
    with contextlib.suppress(OSError), cpuinfo.open("rb") as file:
        lines = file.read(_CPUINFO_BYTES).decode("utf-8", "replace").splitlines()
        fields = dict(reversed([(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]))
        return fields.get("vendor_id", ""), fields.get("model name", "")
    return "", ""
