"""A domain's memory: what it needs, what the host has, and what the admission policy's ``memory`` bounds."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.pair import Pair, wait_for
from tests.test_hooks import set_up
from tests.test_policy import refusal
from tests.test_policy_hosts import give
from tests.xl.hosts import Fault, Point
from xensecure.destination.memory import Room, find_room
from xensecure.link.config import load_config
from xensecure.link.xl import XenInfo
from xensecure.proto.domain import needed_memory

INFO = XenInfo(version="4.17.5", memory_total=1 << 34, memory_free=1 << 30, cpus=4, hw_caps="", virt_caps="")


@pytest.mark.parametrize(
    ("kind", "built", "mib"),
    [
        ("pv", {"target_memkb": 131072, "max_memkb": 131072, "shadow_memkb": 0}, 129),
        ("hvm", {"target_memkb": 131072, "max_memkb": 131072, "shadow_memkb": 0, "iommu_memkb": 1024}, 131),
        ("pvh", {"max_memkb": 1048576, "max_vcpus": 2}, 1024 + 2 + 8 + 2),  # shadow: 1 MiB a CPU, 8 KiB a MiB
        ("hvm", {"target_memkb": 1024, "shadow_memkb": 0, "device_model_stubdomain": "True", "stubdomain_memkb": 2048, "video_memkb": 1024}, 6),
        ("pv", {}, 2),
        ("pv", None, 2),
        ("pv", "a text", 2),
        ("pv", {"target_memkb": "1024", "max_memkb": None, "shadow_memkb": 0}, 1),
    ],
)
def test_needed_memory(kind: str, built: Any, mib: int) -> None:
    """Libxl's own sum: target, shadow and IOMMU tables, stub domain, and what Xen needs besides."""
    assert needed_memory({"c_info": {"type": kind}, "b_info": built}) == mib


@pytest.mark.parametrize(
    ("xl_conf", "commandline", "dom0"),
    [
        (None, "dom0_mem=2048M,max:2048M loglvl=all", False),
        (None, "loglvl=all dom0_mem=min:512M", False),
        (None, "loglvl=all", True),
        (None, "xdom0_mem=5", True),
        ('autoballoon="auto"\n', "dom0_mem=1G", False),
        ('autoballoon="off"\n', "", False),
        ("autoballoon=0\n", "", False),
        ('# autoballoon="off"\n  autoballoon = "on"\n', "dom0_mem=1G", True),
        ("autoballoon='1'\n", "dom0_mem=1G", True),
    ],
)
def test_memory_that_dom0_can_give(tmp_path: Path, xl_conf: str | None, commandline: str, dom0: bool) -> None:
    """Where xl takes memory from dom0 for a domain, what dom0 has beyond libxl's least counts as free: by xl.conf and Xen's command line."""
    conf = tmp_path / "xl.conf"
    if xl_conf is not None:
        conf.write_text(xl_conf)
    xl = tmp_path / "xl"
    dom0_line = "Domain-0                                     0  1024     4     r-----      10.3"
    xl.write_text(f"#!/bin/sh\nprintf '%s\\n' 'Name                 ID   Mem VCPUs      State   Time(s)' '{dom0_line}'\n")
    xl.chmod(0o755)
    file = tmp_path / "xensecure.toml"
    file.write_text(f'[receive]\nxl = "{xl}"\n')
    file.chmod(0o600)
    info = XenInfo(**{**vars(INFO), "commandline": commandline})
    assert find_room(load_config(str(file)), info, conf) == Room(1024 + (1024 - 128 if dom0 else 0))


@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm"])
@pytest.mark.parametrize(
    ("built", "refused"),
    [
        ({}, False),  # libxl's own shadow memory is besides, here and below
        ({"max_vcpus": 16}, False),
        ({"max_vcpus": 16, "shadow_memkb": 4 * (256 * 16 + 2 * 4096)}, False),
        ({"device_model_stubdomain": "False", "stubdomain_memkb": 1 << 32, "video_memkb": 16384}, False),
        ({"shadow_memkb": 1 << 32}, True),
        ({"shadow_memkb": (1 << 64) - 1}, True),
        ({"iommu_memkb": 1 << 32}, True),
        ({"device_model_stubdomain": True, "stubdomain_memkb": 1 << 32}, True),
        ({"device_model_stubdomain": "True", "video_memkb": 1 << 32}, True),
        ({"max_vcpus": 1 << 40}, True),
        ({"shadow_memkb": 1 << 30, "iommu_memkb": -(1 << 31)}, True),
        ({"max_vcpus": 1 << 40, "shadow_memkb": 1 << 32}, True),
    ],
)
def test_memory_bounds_the_whole(kind: str, built: dict[str, Any], refused: bool) -> None:
    """What a domain has beside its memory counts for ``memory``; a guest of just that size comes, with what libxl adds by itself."""
    made = {"c_info": {"name": "web1", "type": kind}, "b_info": {"max_memkb": 4 << 20, "target_memkb": 4 << 20, **built}}
    said = refusal(made, memory=4096)
    assert ("at most 4096 MiB, and what libxl adds to that ([policy] memory)" in said) == refused
    assert bool(said) == refused
    assert refusal(made) == ""


def test_memory_promised_to_another(pair: Pair, stream: Path) -> None:
    """What a domain on its way has not got yet is not there for the next one; what it has got counts once."""
    set_up(pair.destination)
    give(pair, {"b_info": {"max_memkb": 4 << 20, "target_memkb": 4 << 20, "shadow_memkb": 0}})
    pair.source.xen.create_domain("db1", stream)
    for fault, mib in ((Fault.FREE_MEMORY, 7000), (Fault.RESTORE_AT, 1), (Fault.POPULATED, 0)):
        pair.destination.xen.set_fault(fault, mib)
    pair.destination.xen.set_hold(Point.RESTORE)
    first = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    give(pair, {"b_info": {"max_memkb": 3 << 20, "target_memkb": 3 << 20, "shadow_memkb": 0}}, name="db1")
    words = "it needs 3074 MiB there, and 2904 MiB could be had besides {} MiB for domains that are arriving ([policy] free_memory)"
    assert words.format(4096) in pair.migrate("db1", "-e").wait().stderr
    assert words.format(4096) in pair.source.ctl("policy", "check", "--to", "hv2", "db1", status=12).stderr
    for fault, mib in ((Fault.FREE_MEMORY, 5000), (Fault.POPULATED, 2000)):  # of the first one 2000 MiB have come
        pair.destination.xen.set_fault(fault, mib)
    assert words.format(2096) in pair.migrate("db1", "-e").wait().stderr
    pair.destination.xen.set_fault(Fault.FREE_MEMORY, 5172)
    second = pair.migrate("db1", "-e")
    wait_for(lambda: "db1--incoming" in pair.destination.xen.domains(), "the domain for which there is room")
    pair.destination.xen.release(Point.RESTORE)
    assert (first.wait().status, second.wait().status) == (0, 0)


def promised_at(pair: Pair) -> list[int]:
    """MiB that the destination has promised to each domain that arrives there."""
    return [shown["promised"] >> 20 for shown in json.loads(pair.destination.ctl("status", "--json").stdout)["live"]]


def test_promise_ends_with_xl(pair: Pair) -> None:
    """An xl that has ended needs no memory any more, though its receiver is still there."""
    set_up(pair.destination)
    give(pair, {"b_info": {"max_memkb": 4 << 20, "target_memkb": 4 << 20, "shadow_memkb": 0}})
    pair.destination.xen.set_fault(Fault.RESTORE_AT, 1)
    pair.destination.xen.set_hold(Point.RESTORE)
    pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    session = pair.destination.session()
    assert promised_at(pair) == [4098]
    os.kill(session.receiver, signal.SIGSTOP)
    try:
        os.kill(session.xl, signal.SIGKILL)
        wait_for(lambda: promised_at(pair) == [0], "the promise's end")
    finally:
        os.kill(session.receiver, signal.SIGCONT)


@pytest.mark.parametrize("extra", ['[policy]\ncheck = "off"\n', '[policy]\nfree_memory = "off"\n'])
def test_no_promise_unlooked(pair: Pair, extra: str) -> None:
    """Where memory is not looked at, none is promised: a domain that claims a pebibyte keeps no other out."""
    set_up(pair.destination, extra)
    pair.destination.add_hook("pre-receive", "yes", "#!/bin/sh\nexit 0\n")
    give(pair, {"b_info": {"max_memkb": 1 << 40, "target_memkb": 1 << 40}})
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.READY)
    assert promised_at(pair) == [0]
    pair.destination.xen.release(Point.READY)
    assert running.wait().status == 0


def test_xl_list_fails(pair: Pair, stream: Path) -> None:
    """Where xl does not say what a domain on its way has got, the next one is judged without it; a line says so, and it is no fault of the host's."""
    with pair.destination.other_xl('[ "$1" = list ] && { echo no xenstore >&2; exit 1; }; exec $xl "$@"'):
        set_up(pair.destination)
        pair.source.xen.create_domain("db1", stream)
        pair.destination.xen.set_hold(Point.READY)
        running = [pair.migrate("web1", "-e")]
        pair.destination.xen.wait_held(Point.READY)
        assert pair.source.ctl("policy", "check", "--to", "hv2", "db1").stderr == ""
        running.append(pair.migrate("db1", "-e"))
        wait_for(lambda: len(pair.destination.xen.domains()) == 2, "both domains")
        pair.destination.xen.release(Point.READY)
        assert [each.wait().status for each in running] == [0, 0]
    words = "what domains on their way have been promised is not looked at: 'xl list' failed with status 1: no xenstore"
    assert pair.destination.log("xensecure-launcher").count(words) == 2


def test_memory_for_one_of_two(pair: Pair, stream: Path) -> None:
    """Of two domains that come at the same moment, to where there is room for one, one comes."""
    set_up(pair.destination)
    pair.source.xen.create_domain("db1", stream)
    for name in ("web1", "db1"):
        give(pair, {"b_info": {"max_memkb": 4 << 20, "target_memkb": 4 << 20, "shadow_memkb": 0}}, name=name)
    pair.destination.xen.set_fault(Fault.FREE_MEMORY, 7000)
    pair.destination.xen.set_fault(Fault.RESTORE_AT, 1)
    pair.destination.xen.set_hold(Point.RESTORE)
    running = {name: pair.migrate(name, "-e") for name in ("web1", "db1")}
    pair.destination.xen.wait_held(Point.RESTORE)
    wait_for(lambda: any(each.process.poll() is not None for each in running.values()), "one of them to be refused")
    pair.destination.xen.release(Point.RESTORE)
    outcomes = {name: each.wait() for name, each in running.items()}
    refused = [name for name, outcome in outcomes.items() if re.search(r"besides 409[68] MiB for domains that are arriving", outcome.stderr)]
    arrived = [name for name, outcome in outcomes.items() if outcome.status == 0]
    assert sorted(refused + arrived) == ["db1", "web1"]
    assert len(arrived) == 1
    assert sorted(pair.destination.xen.running()) == arrived
    assert sorted(pair.source.xen.running()) == refused
