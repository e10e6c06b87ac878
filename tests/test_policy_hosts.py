"""The admission policy between two hosts, the real xl at both ends: what is refused, where that is said, and that the guest never stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pair import Pair, wait_for
from tests.test_hooks import set_up
from tests.test_migrate import LARGE
from tests.test_policy import merged
from tests.xl.hosts import Fault, Outcome, Point, running_copies
from tests.xl.records import StreamReader
from tests.xl.stream import StreamSpec, make_config, make_stream
from xensecure.link.config import load_config
from xensecure.link.identity import load_credentials
from xensecure.source.check import check_destination

EVIL = {"b_info": {"device_model": "/opt/evil"}}
BOOT = {"b_info": {"bootloader": "/opt/evil"}}
NAMED = '[policy]\nmemory = "4G"\ndisks = ["/dev/vg0/"]\nbridges = ["xenbr*"]\n[policy.peer.hv1]\nvcpus = 8\n'
REFUSED = "is refused by the destination's policy: "


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight MiB: more than the source sends unjudged, and less than the window, so that a source that did not wait would let the guest stop."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(8, seed=3))


def give(pair: Pair, more: dict[str, Any], name: str = "web1") -> bytes:
    """Let the domain's configuration have this as well; returns it."""
    text = json.dumps(merged(json.loads(make_config(name, mib=8)), more))
    file = pair.source.xen.path / f"configs/{pair.source.xen.domain(name).domid}.json"
    file.write_text(text)
    return text.encode()


def migrate(pair: Pair) -> Outcome:
    """A migration of web1 to its end at both hosts."""
    running = pair.migrate("web1", "-e")
    outcome = running.wait()
    wait_for(pair.quiet, "the session's end")
    return Outcome(outcome.status, running.stderr())


def expect_refused(pair: Pair, outcome: Outcome, words: str) -> None:
    """Said on both hosts and in the journal; xl there has got nothing, and the guest here has not stopped for a moment."""
    assert outcome.status != 0
    assert words in outcome.stderr
    assert "the domain stays on this host" in outcome.stderr
    assert words in pair.destination.log("xensecure-launcher")
    assert words in pair.destination.last_end()["outcome"]
    assert pair.destination.xen.calls("libxl_domain_create_restore") == []
    assert pair.destination.xen.domains() == {}
    assert pair.source.xen.domains() == {"web1": "running"}
    assert pair.source.xen.calls("suspended") == pair.source.xen.calls("libxl_domain_pause") == []


@pytest.mark.parametrize(
    ("more", "policy", "words"),
    [
        (EVIL, "", f"b_info.device_model = '/opt/evil' {REFUSED}[policy] device_models has none"),
        (BOOT, "", f"b_info.bootloader = '/opt/evil' {REFUSED}[policy] bootloaders has pygrub, "),
        ({"disks": [{"script": "/opt/evil"}]}, "", f"disks[0].script = '/opt/evil' {REFUSED}[policy] scripts has /etc/xen/scripts/block*, "),
        ({"pcidevs": [{"bus": 1}]}, "", f"pcidevs = '[{{\"bus\": 1}}]' {REFUSED}no key that an ordinary domain has; [policy] allow can let it pass"),
        ({"b_info": {"key_of_4_99": 1}}, "", f"b_info.key_of_4_99 = '1' {REFUSED}no key that an ordinary domain has"),
        ({"b_info": {"max_memkb": 5 << 20}}, NAMED, f"b_info.max_memkb = '{5 << 20}' {REFUSED}at most 4096 MiB ([policy] memory)"),
        ({"b_info": {"max_vcpus": 9}}, NAMED, f"b_info.max_vcpus = '9' {REFUSED}at most 8 ([policy.peer.hv1] vcpus)"),
        ({"disks": [{"pdev_path": "/dev/sda"}]}, NAMED, f"disks[0].pdev_path = '/dev/sda' {REFUSED}[policy] disks has /dev/vg0/"),
        ({"nics": [{"bridge": "br0"}]}, NAMED, f"nics[0].bridge = 'br0' {REFUSED}[policy] bridges has xenbr*"),
    ],
)
def test_refused(pair: Pair, more: dict[str, Any], policy: str, words: str) -> None:
    """Key, value and rule stand on both hosts, and the source's guest has never stopped."""
    set_up(pair.destination, policy)
    give(pair, more)
    expect_refused(pair, migrate(pair), words)


@pytest.mark.parametrize("more", [EVIL, BOOT])
def test_without_the_policy_it_comes(pair: Pair, more: dict[str, Any]) -> None:
    """The control: where the policy is off, xl is given the hostile configuration as it is, and makes the domain."""
    set_up(pair.destination, '[policy]\ncheck = "off"\n')
    give(pair, more)
    assert migrate(pair).status == 0
    made = pair.destination.xen.path / f"configs/{pair.destination.xen.domain('web1').domid}.json"
    assert "/opt/evil" in made.read_text()


def test_allowed(pair: Pair) -> None:
    """What the operator names comes, from the peer for whom he has named it."""
    set_up(pair.destination, '[policy.peer.hv1]\nallow = ["pcidevs"]\ndevice_models = ["/opt/evil"]\n')
    give(pair, {**EVIL, "pcidevs": [{"bus": 1}]})
    assert migrate(pair).status == 0
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]


def test_xl_gets_what_was_judged(pair: Pair) -> None:
    """The configuration that xl there is given is byte for byte the one that xl here has sent."""
    set_up(pair.destination)
    sent = give(pair, {"nics": [{"bridge": "xenbr0"}], "b_info": {"cmdline": "Füchse"}})
    assert migrate(pair).status == 0
    made = pair.destination.xen.path / f"configs/{pair.destination.xen.domain('web1').domid}.json"
    assert json.loads(made.read_bytes()) == json.loads(sent)


def test_peer_that_may_not_send(pair: Pair) -> None:
    """A peer that may not send is refused before xl there is started; others are not."""
    set_up(pair.destination, "[policy]\nsend = false\n[policy.peer.hv7]\nsend = true\n")
    outcome = migrate(pair)
    assert "the destination refuses: hv1 may not send domains there: [policy] send is false" in outcome.stderr
    assert "hv1 may not send domains there" in pair.destination.log("xensecure-launcher")
    assert pair.destination.journal() == []
    assert pair.source.xen.domains() == {"web1": "running"}
    set_up(pair.destination, "[policy]\nsend = false\n[policy.peer.hv1]\nsend = true\n")
    assert migrate(pair).status == 0


def test_too_many_domains_of_a_peer(pair: Pair, stream: Path) -> None:
    """No more of a peer's domains arrive at once than it may send; when one has arrived, the next may come."""
    set_up(pair.destination, "[policy]\ndomains = 1\n")
    pair.source.xen.create_domain("db1", stream)
    pair.destination.xen.set_hold(Point.READY)
    first = pair.migrate("db1", "-e")
    pair.destination.xen.wait_held(Point.READY)
    second = pair.migrate("web1", "-e").wait()
    assert "the destination refuses: 1 domains of hv1's are arriving there already ([policy] domains); try again later" in second.stderr
    pair.destination.xen.release(Point.READY)
    assert first.wait().status == 0
    wait_for(pair.quiet, "the first session's end")
    assert migrate(pair).status == 0


def test_no_memory(pair: Pair) -> None:
    """A domain for which there is no memory is refused before its guest stops; with the check off, xl there has the last word."""
    set_up(pair.destination)
    give(pair, {"b_info": {"max_memkb": 4 << 20, "target_memkb": 4 << 20, "shadow_memkb": 0}})
    pair.destination.xen.set_fault(Fault.FREE_MEMORY, 4097)
    words = f"b_info.target_memkb = '{4 << 20}' {REFUSED}it needs 4098 MiB there, and 4097 MiB could be had ([policy] free_memory)"
    expect_refused(pair, migrate(pair), words)
    set_up(pair.destination, '[policy]\nfree_memory = "off"\n')
    assert migrate(pair).status == 0


def test_memory_that_xl_does_not_tell(pair: Pair) -> None:
    """Where xl cannot say what is free, nobody is refused for it, and the log says why."""
    with pair.destination.other_xl('[ "$1" = info ] && { echo no hypervisor >&2; exit 1; }; exec $xl "$@"'):
        set_up(pair.destination)
        assert migrate(pair).status == 0
    assert "free memory is not looked at: 'xl info' failed with status 1: no hypervisor" in pair.destination.log("xensecure-launcher")


def test_guest_runs_while_it_is_judged(pair: Pair) -> None:
    """While the destination thinks, the guest runs, though the whole of it would find room on the way."""
    set_up(pair.destination)
    pair.destination.add_hook("pre-receive", "slow", f"#!/bin/sh\ntouch {pair.destination.folder}/asked\nsleep 1.5\n")
    running = pair.migrate("web1", "-e")
    wait_for((pair.destination.folder / "asked").exists, "the hook")
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(1)
    assert pair.source.xen.calls("suspended") == []
    assert running.wait().status == 0
    assert len(pair.source.xen.calls("suspended")) == 1


def test_xl_that_fails_before_its_receiver_hears_of_the_yes(pair: Pair) -> None:
    """A receiver that hears late that the domain may come, when xl has failed already, still brings xl's words to the source."""
    set_up(pair.destination)
    wait_for(pair.quiet, "no receiver")
    pair.destination.add_hook("pre-receive", "slow", f"#!/bin/sh\ntouch {pair.destination.folder}/late\nsleep 1\n")
    pair.destination.xen.set_fault(Fault.RESTORE_FAIL_AT, 0)
    running = pair.migrate("web1", "-e")
    wait_for((pair.destination.folder / "late").exists, "the hook")
    (receiver,) = pair.destination.children("xensecured")
    os.kill(receiver, signal.SIGSTOP)
    wait_for(lambda: pair.destination.xen.processes() == [], "xl's end")
    time.sleep(0.5)  # the launcher's word of it
    os.kill(receiver, signal.SIGCONT)
    assert "Restore failed: fault set at byte 0" in running.wait().stderr
    assert pair.source.xen.domains() == {"web1": "running"}


TWICE = '{"c_info": {"name": "web1", "name": "web2"}}'


@pytest.mark.parametrize("text", ["{", "[]", TWICE, '{"c_info": {"name": "web1"}, "b_info": NaN}', "name = 'web1'"])
def test_what_cannot_be_read(pair: Pair, text: str) -> None:
    """A configuration that is no JSON, or that two readers could understand differently, is refused."""
    set_up(pair.destination)
    process = pair.pipe("hv2", "xl", "migrate-receive", "-e")
    assert process.stdin
    assert process.stdout
    process.stdout.read(54)
    data = text.encode() + b"\0"
    head = b"Xen saved domain, xl format\n \0 \r" + b"".join(number.to_bytes(4, "little") for number in (0x01020304, 3, 0, len(data) + 4, len(data)))
    _, stderr = process.communicate(head + data + b"LibxlFmt", timeout=20)
    assert b"malformed configuration of a domain" in stderr
    assert b"what cannot be read is not taken" in stderr
    assert pair.destination.xen.calls("libxl_domain_create_restore") == []


def test_remus(pair: Pair) -> None:
    """Remus is judged like any other: a hostile domain is refused, and nothing fails over; an ordinary one is replicated."""
    set_up(pair.destination)
    give(pair, EVIL)
    outcome = pair.source.xen.remus(pair.transport(), "web1", "hv2", "-i", "10", "-e").wait()
    wait_for(pair.quiet, "the session's end")
    assert outcome.status != 0
    assert "b_info.device_model = '/opt/evil'" in outcome.stderr + pair.destination.log("xensecure-launcher")
    assert pair.destination.xen.domains() == {}
    assert pair.source.xen.running() == ["web1"]
    give(pair, {})
    pair.source.xen.set_fault(Fault.REMUS_CHECKPOINTS, 3)
    pair.source.xen.remus(pair.transport(), "web1", "hv2", "-i", "10", "-e").wait()
    wait_for(pair.destination.xen.running, "the failover")


def test_check_at_another_host(pair: Pair) -> None:
    """`policy check --to HOST DOMAIN` asks that host, which answers as it would for the domain itself; nothing is started there."""
    set_up(pair.destination)
    assert pair.source.ctl("policy", "check", "--to", "hv2", "web1").stdout == "web1 may go to hv2\n"
    head = give(pair, EVIL)
    said = pair.source.ctl("policy", "check", "--to", "hv2", "web1", status=12).stderr
    assert said == f"xensecurectl: hv2: b_info.device_model = '/opt/evil' {REFUSED}[policy] device_models has none\n"
    assert pair.source.ctl("policy", "check", "web1", status=12).stderr == said.replace("hv2: ", "")
    config = load_config(str(pair.source.config))
    assert check_destination(config, load_credentials(config), "hv2", config.options_for("hv2"), head).refusal in said
    give(pair, {})
    pair.destination.xen.set_fault(Fault.FREE_MEMORY, 1)
    assert "MiB there, and 1 MiB could be had" in pair.source.ctl("policy", "check", "--to", "hv2", "web1", status=12).stderr
    set_up(pair.destination, "[policy.peer.hv1]\nsend = false\n")
    assert "[policy.peer.hv1] send is false" in pair.source.ctl("policy", "check", "--to", "hv2", "web1", status=12).stderr
    for none in ("none", "a" * 300):  # longer than a file's name may be
        assert f"there is no domain '{none}' here" in pair.source.ctl("policy", "check", "--to", "hv2", none, status=4).stderr
    assert pair.destination.journal() == []


@pytest.mark.skipif(not LARGE.exists() or not shutil.which("zstd"), reason=f"needs {LARGE.name} in $XENSECURE_LAB/streams, and zstd")
def test_lab_guest_may_come(pair: Pair) -> None:
    """The configuration of a guest on real Xen passes the policy as it is."""
    set_up(pair.destination)
    with subprocess.Popen(["zstd", "-dc", str(LARGE)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        head = StreamReader(process.stdout).xl_header()
        process.kill()
    (pair.source.xen.path / f"configs/{pair.source.xen.domain('web1').domid}.json").write_text(head.replace('"g128"', '"web1"'))
    assert migrate(pair).status == 0
