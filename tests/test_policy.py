"""The admission policy as a pure function: every key of libxl's, every rule both ways, and what the policy has never heard of."""

from __future__ import annotations

import io
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xl.records import StreamReader
from tests.xl.stream import make_config
from xensecure.link.config import load_config
from xensecure.proto import limits
from xensecure.proto.domain import configuration
from xensecure.proto.domainkeys import CONFIGURATION, Rule, Shape
from xensecure.proto.errors import ProtocolError, Reason, RefusedError
from xensecure.proto.policy import Policy, judge

DATA = Path(__file__).with_name("data")
ORDINARY: dict[str, Any] = json.loads(make_config("web1"))


def domain(path: str, value: Any) -> dict[str, Any]:
    """An ordinary domain, and one key more: ``b_info.type.hvm.serial``, ``disks.0.script``. "type.hvm" and its like are one word of libxl's."""
    for word in reversed(re.findall(r"type\.\w+|connection\.\w+|[^.]+", path)):
        value = [value] if word.isdigit() else {word: value}
    return merged(ORDINARY, value)


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, and where they differ, the other."""
    nested = {key for key in set(one) & set(other) if isinstance(one[key], dict) and isinstance(other[key], dict)}
    return {**one, **other, **{key: merged(one[key], other[key]) for key in nested}}


def refusal(configured: dict[str, Any], **policy: Any) -> str:
    """Why that domain may not come; "" if it may."""
    try:
        judge(Policy(**policy), configured)
    except RefusedError as error:
        refused = error
    else:
        return ""
    assert refused.reason is Reason.NOT_ALLOWED
    assert len(str(refused).encode()) < limits.REASON_TEXT_MAX
    assert str(refused).isprintable()
    return str(refused)


# ---- what an ordinary domain has

RIGHT: dict[Rule, list[Any]] = {
    Rule.FLAG: [True, False, "True", "False", "<default>", None],
    Rule.UNSET: [False, "False", "<default>", None],
    Rule.NUMBER: [0, 1, -1, 2**64 - 1, None],
    Rule.WORD: ["", "e1000", "00:16:3e:00:00:01", "en-us", "xvda", None],
    Rule.WORDS: ["", "192.0.2.1/24 2001:db8::1", "10,20", "1 2-5/u", None],
    Rule.ADDRESSES: ["", "192.0.2.5", "2001:db8::5", "192.0.2.5 2001:db8::5", "192.0.2.5/32", "2001:db8::5/128", None],
    Rule.TEXT: ["", "console=hvc0 root=/dev/xvda1 ro", "Füchse", None],
    Rule.ANY: [None, [], {"cpuid": [{"leaf": 1, "edx": "xx0x"}], "msr": []}, [1, 2]],
    Rule.HERE: [0, None],
    Rule.LISTEN: ["", "127.0.0.1", "0.0.0.0:5", "::1", "[2001:db8::1]:12", "localhost", None],
    Rule.NAME: ["web1", "a b", "db.example.org", "0x", "9to5", "Füchse", "web--incoming2", "Domain-01", "null", "a(b)"],
    Rule.MEMORY: [0, 131072, None],
    Rule.VCPUS: [1, 128, None],
    Rule.DISK: ["", "/dev/vg0/web1", "/srv/images/web 1.img", None],
    Rule.BRIDGE: ["xenbr0", "ovsbr0.100", "", None],
    Rule.KERNEL: ["/boot/vmlinuz-6.1", "/root/guest/vmlinux", "", None],
    Rule.BOOTLOADER: ["pygrub", "/usr/bin/pygrub", "/usr/lib/xen-4.17/bin/pygrub", None],
    Rule.SCRIPT: ["vif-bridge", "vif-openvswitch", "block", "/etc/xen/scripts/block-drbd", "", None],
    Rule.DEVICE_MODEL: [None],
}
TAKEN = ["web1--incoming", "web1--migratedaway", "--incoming", "(null)", "Domain-0"]
WRONG: dict[Rule, list[Any]] = {
    Rule.FLAG: [0, 1, "yes", "", [], {}, 1.0],
    Rule.UNSET: [True, "True", 0, 1, "yes", 1.0],
    Rule.NUMBER: ["1", True, 1.5, [], {}, 2**64, -(2**31) - 1],
    Rule.WORD: [5, "a b", "a,b", "a/b", "-a", "a=b", "a\nb", "a;b", "$(x)", "ä", "x" * 129],
    Rule.WORDS: [5, "a;b", "a\nb", "$(x)", "a=b", "'", "x" * 513],
    Rule.ADDRESSES: [
        5,
        "0.0.0.0/1",
        "0.0.0.0/1 128.0.0.0/1",
        "192.0.2.5 0.0.0.0/0",
        "192.0.2.0/24",
        "::/1",
        "::1/32",
        "web1",
        "192.0.2.5,",
        " ",
        "fe80::1%a",
    ],
    Rule.TEXT: [5, "a\nb", "a\0b", "\ud800", []],
    Rule.ANY: ["a\nb", {"a\0": 1}, [["\x1b"]]],
    Rule.HERE: [1, "0", True, False, -1, 0x7FF1],
    Rule.LISTEN: [5, "unix:/etc/passwd", "unix:5", "hv1:5", "127.0.0.1,password", "127.0.0.1:x", "127.0.0.1:", "fe80::1%a,b", "[::1", "to=5"],
    Rule.NAME: [None, 5, "", "../../etc/x", "a/b", "-e", ".x", "a\nb", "a\0", " a", "a ", "a,b", "0", "12", *TAKEN],
    Rule.MEMORY: ["131072", 1.5, True, {}],
    Rule.VCPUS: ["1", True, []],
    Rule.DISK: [5, "vg0/web1", "/a,b", "/a/../b", "//a", "/a/", "/a\nb", "json:{}", "fat:rw:/etc", "nbd:host:1", "ssh://host/a", []],
    Rule.BRIDGE: [5, "a b", "a/b", "$(x)"],
    Rule.KERNEL: [5, "vmlinuz", "/boot/../etc/shadow", "/boot//x", "/a\nb"],
    Rule.BOOTLOADER: [5, "", "sh", "/bin/sh", "/usr/lib/xen-/../../tmp/bin/pygrub", "/usr/lib/xen-4.17/bin/../bin/pygrub", "./pygrub", "/opt/pygrub"],
    Rule.SCRIPT: [
        5,
        "/opt/evil",
        "vif-route",
        "vif-nat",
        "/etc/xen/scripts/vif-route",
        "/etc/xen/scripts/block/x",
        "../evil",
        "/etc/xen/scripts/../../../opt/evil",
        "/etc/xen/scripts",
        "/etc/xen/scripts/",
        "a/b",
        "a\nb",
    ],
    Rule.DEVICE_MODEL: ["", "/usr/bin/qemu-system-i386", "/opt/evil", "qemu", 5],
}


def leaves(shape: Shape, path: str = "") -> Iterator[tuple[str, Rule | frozenset[Any]]]:
    """Every key of the policy's own list that has a value, and what that must be."""
    if isinstance(shape, list):
        yield from leaves(shape[0], f"{path}.0")
    elif isinstance(shape, (Rule, frozenset)):
        yield path, shape
    else:
        for key, inner in shape.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)


LEAVES = dict(leaves(CONFIGURATION))


def test_every_rule_has_values() -> None:
    """The tables above have every rule, and the policy's list uses every rule."""
    assert set(RIGHT) == set(WRONG) == set(Rule) == {rule for rule in LEAVES.values() if isinstance(rule, Rule)}
    assert len(LEAVES) > 200


@pytest.mark.parametrize("path", LEAVES)
def test_every_key(path: str) -> None:
    """Each key takes what its rule says, in its place, and nothing else; the refusal names the key and the value."""
    rule = LEAVES[path]
    right = [*rule, *(word.upper() for word in rule if isinstance(word, str)), None] if isinstance(rule, frozenset) else RIGHT[rule]
    wrong = ["other", "", 5, True, False, 0.0, 1, 65537, [], {}, "host:1.2", "/dev/ttyS0"] if isinstance(rule, frozenset) else WRONG[rule]
    in_a_list = path.endswith(".0")
    for value in right:
        if value is not None or not in_a_list:
            assert refusal(domain(path, value)) == "", (path, value)
    shown = re.sub(r"\.0(?=\.|$)", "[0]", path)
    for value in wrong:
        if value is not None or path == "c_info.name":
            said = refusal(domain(path, value))
            assert re.match(rf"{re.escape(shown)}(\[0\])* = ", said), (path, value, said)
            assert " is refused by the destination's policy: " in said


# What a peer that owns this host would set: nothing of it comes without being named.
DANGEROUS: dict[str, Any] = {
    "c_info.ssidref": 1,
    "c_info.ssid_label": "system_u:system_r:dom0_t",
    "c_info.xsdata": {"a": "b"},
    "c_info.platformdata": {"a": "b"},
    "c_info.driver_domain": "True",
    "c_info.passthrough": "enabled",
    "c_info.domid": 7,
    "c_info.poolid": 1,
    "on_crash": "coredump_restart",
    "on_watchdog": "coredump_destroy",
    "b_info.device_model": "/opt/evil",
    "b_info.device_model_user": "root",
    "b_info.device_model_ssidref": 1,
    "b_info.bootloader": "/opt/evil",
    "b_info.bootloader_args": ["--output-directory=/etc/cron.d"],
    "b_info.bootloader_user": "root",
    "b_info.type.pv.bootloader": "/opt/evil",
    "b_info.type.pv.bootloader_args": ["-x"],
    "b_info.type.pvh.pvshim_path": "/opt/evil",
    "b_info.extra": ["-monitor", "tcp:0.0.0.0:1"],
    "b_info.extra_pv": ["-x"],
    "b_info.extra_hvm": ["-x"],
    "b_info.stubdomain_kernel": "/opt/evil",
    "b_info.stubdomain_ramdisk": "/opt/evil",
    "b_info.stubdomain_cmdline": "x",
    "b_info.device_tree": "/opt/evil.dtb",
    "b_info.ioports": [{"first": 1, "number": 1}],
    "b_info.irqs": [1],
    "b_info.iomem": [{"start": 1, "number": 1}],
    "b_info.nested_hvm": True,
    "b_info.type.hvm.firmware": "/opt/evil",
    "b_info.type.hvm.system_firmware": "/etc/shadow",
    "b_info.type.hvm.smbios_firmware": "/etc/shadow",
    "b_info.type.hvm.acpi_firmware": "/etc/shadow",
    "b_info.type.hvm.serial": "file:/etc/cron.d/x",
    "b_info.type.hvm.serial_list": ["pty", "/dev/ttyS0"],
    "b_info.type.hvm.usbdevice": "host:1.2",
    "b_info.type.hvm.usbdevice_list": ["tablet", "disk:/etc/shadow"],
    "b_info.type.hvm.gfx_passthru": "True",
    "b_info.type.hvm.boot": "c,script=/tmp/x",
    "b_info.type.hvm.keymap": "../../tmp/x",
    "b_info.type.hvm.vnc.listen": "unix:/etc/passwd",
    "b_info.type.hvm.spice.host": "0,tls-port=5",
    "b_info.type.hvm.spice.passwd": "a,b",
    "b_info.type.hvm.sdl.xauthority": "/etc/shadow",
    "b_info.type.hvm.rdm.strategy": "host",
    "disks.0.script": "/opt/evil",
    "disks.0.backend_domid": 3,
    "disks.0.backend_domname": "driver",
    "disks.0.pdev_path": "json:{}",
    "disks.0.format": "qcow2",
    "disks.0.colo_enable": "True",
    "nics.0.script": "vif-route",
    "nics.0.ip": "0.0.0.0/1 128.0.0.0/1",
    "nics.0.model": "e1000,romfile=/etc/shadow",
    "nics.0.backend_domid": 1,
    "nics.0.coloft_forwarddev": "eth0",
    "pcidevs": [{"bus": 1, "dev": 0, "func": 0}],
    "usbdevs": [{"type.hostdev": {"hostbus": 1, "hostaddr": 2}}],
    "dtdevs": [{"path": "/soc/x"}],
    "rdms": [{"start": 1, "size": 1}],
    "p9s": [{"tag": "x", "path": "/", "security_model": "none"}],
    "vtpms": [{"backend_domname": "x"}],
    "virtios": [{"type": "virtio,device"}],
    "pvcallsifs": [{"devid": 0}],
    "vdispls": [{"devid": 0}],
    "vsnds": [{"devid": 0}],
    "channels.0.connection.socket": {"path": "/etc/cron.d/x"},
    "vfbs.0.vnc.listen": "unix:/x",
}


@pytest.mark.parametrize("path", DANGEROUS)
def test_dangerous_key(path: str) -> None:
    """Whatever has root run, open or pass on something of the host's is refused without configuration, and passes where ``allow`` names the key."""
    evil = domain(path, DANGEROUS[path])
    shown = re.sub(r"\.0(?=\.|$)", r"\\[0\\]", path)
    assert re.match(rf"{shown}[]\[0-9]* = ", refusal(evil)), refusal(evil)
    assert refusal(evil, allow=(path.replace(".0", ""),)) == ""
    assert refusal(evil, allow=("other.key",)) != ""
    assert refusal(evil, check="off") == ""


KNOWN = ["", "c_info", "b_info", "b_info.type.hvm", "b_info.type.hvm.vnc", "b_info.sched_params", "disks.0", "nics.0", "vfbs.0"]


@given(
    place=st.sampled_from(KNOWN),
    key=st.text(st.characters(codec="ascii", exclude_characters="."), min_size=1, max_size=20),
    value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=3),
)
def test_unknown_key(place: str, key: str, value: Any) -> None:
    """A key that the policy does not have is refused, wherever it stands and whatever it says."""
    made = domain(f"{place}.xyzzy" if place else "xyzzy", None)
    text = json.dumps(made).replace('"xyzzy": null', f"{json.dumps(key)}: {json.dumps(value)}")
    known = {path for path in [*LEAVES, *CONFIGURATION] if path.rpartition(".")[0] == place} | {path.partition(".")[0] for path in LEAVES}
    if f"{place}.{key}" in known or key in known or any(path.startswith(f"{place}.{key}.") for path in LEAVES):
        return
    assert "no key that an ordinary domain has" in refusal(json.loads(text))


# ---- what the operator names


@pytest.mark.parametrize(
    ("policy", "path", "right", "wrong", "rule"),
    [
        ({"names": ("web*", "db?")}, "c_info.name", ["web", "web1", "db1"], ["db", "db12", "xweb"], "[policy] names has web*, db?"),
        ({"memory": 128}, "b_info.max_memkb", [131072], [131073, 2**64 - 1], "at most 128 MiB ([policy] memory)"),
        ({"memory": 128}, "b_info.target_memkb", [131072], [131073], "at most 128 MiB ([policy] memory)"),
        ({"vcpus": 4}, "b_info.max_vcpus", [1, 4], [5], "at most 4 ([policy] vcpus)"),
        (
            {"disks": ("/dev/vg0/", "/srv/*/disk?.img")},
            "disks.0.pdev_path",
            ["/dev/vg0/web1", "/dev/vg0/a/b", "/srv/web1/disk0.img", ""],
            ["/dev/vg0", "/dev/vg01/x", "/dev/sda", "/srv/a/b/disk0.img", "/srv/a/disk10.img", "/dev/vg0/../sda"],
            "[policy] disks has /dev/vg0/, /srv/*/disk?.img",
        ),
        ({"bridges": ("xenbr*",)}, "nics.0.bridge", ["xenbr0"], ["br0", ""], "[policy] bridges has xenbr*"),
        (
            {"bridges": ("xenbr*",)},
            "nics",
            [[], [{"bridge": "xenbr0"}]],
            [[{}], [{"bridge": "xenbr0"}, {"devid": 1}]],
            "without a bridge gets xl's own",
        ),
        ({"bridges": ()}, "nics.0.bridge", [], ["xenbr0", None], "[policy] bridges has none"),
        ({"bridges": (), "allow": ("nics.bridge",)}, "nics.0.bridge", [None, "x"], [], ""),
        ({"bridges": ("*",)}, "nics", [[{}], [{"bridge": None}]], [], ""),
        ({"allow": ("disks.format=qcow2",)}, "disks.0.format", ["qcow2", "raw", "empty", None], ["vhd", "qed"], "may be empty or raw or unknown"),
        ({"kernels": ("/boot/",)}, "b_info.kernel", ["/boot/x"], ["/bootx", "/root/x", "/boot/../root/x"], "[policy] kernels has /boot/"),
        ({"kernels": ("/boot/",)}, "b_info.ramdisk", ["/boot/x"], ["/etc/shadow"], "[policy] kernels has /boot/"),
        ({"device_models": ("/opt/qemu",)}, "b_info.device_model", ["/opt/qemu"], ["/opt/qemu2"], "[policy] device_models has /opt/qemu"),
        ({"bootloaders": ()}, "b_info.bootloader", [None], ["pygrub"], "[policy] bootloaders has none"),
        (
            {"scripts": ("/etc/xen/scripts/vif-route",)},
            "nics.0.script",
            ["vif-route"],
            ["vif-bridge"],
            "[policy] scripts has /etc/xen/scripts/vif-route",
        ),
        ({"scripts": ("/opt/x/",)}, "nics.0.script", ["/opt/x/vif"], ["vif-bridge", "/etc/xen/scripts/vif"], "[policy] scripts has /opt/x/"),
        ({"forbid": ("b_info.type.hvm.vnc",)}, "b_info.type.hvm.vnc", [], [{}], "[policy] forbid has it"),
        ({"forbid": ("nics.model=rtl*",)}, "nics.0.model", ["e1000"], ["rtl8139"], "[policy] forbid has it"),
        (
            {"forbid": ("b_info.type.hvm.usbdevice_list=mouse",)},
            "b_info.type.hvm.usbdevice_list",
            [["tablet"]],
            [["tablet", "mouse"]],
            "[policy] forbid has it",
        ),
        ({"allow": ("b_info.irqs=?",)}, "b_info.irqs", [[5, 6]], [[5, 12]], "no key that an ordinary domain has"),
        ({"forbid": ("disks",), "allow": ("disks",)}, "disks", [], [[]], "[policy] forbid has it"),
        ({"allow": ("b_info.type.hvm.serial=/dev/ttyS?",)}, "b_info.type.hvm.serial", ["/dev/ttyS0"], ["/dev/ttyS10"], "may be none or null or pty"),
        ({"allow": ("usbdevs", "nics.colo_*")}, "nics.0.colo_compare_out", ["x"], ["a\nb"], "characters that cannot be printed"),
    ],
)
def test_what_is_named(policy: dict[str, Any], path: str, right: list[Any], wrong: list[Any], rule: str) -> None:
    """What the operator has named comes, what he has not is refused with the rule that he wrote."""
    for value in right:
        assert refusal(domain(path, value), **policy) == "", value
    for value in wrong:
        said = refusal(domain(path, value), **policy)
        assert rule in said or "no absolute path" in said, (value, said)


@pytest.mark.parametrize(
    ("policy", "path", "value", "refused"),
    [
        # forbid looks into what allow lets pass
        ({"allow": ("*",), "forbid": ("b_info.device_model",)}, "b_info.device_model", "/opt/evil", True),
        ({"allow": ("b_info",), "forbid": ("b_info.device_model",)}, "b_info.device_model", "/opt/evil", True),
        ({"allow": ("b_info",), "forbid": ("b_info.device_model",)}, "b_info.device_model_user", "root", False),
        ({"allow": ("disks",), "forbid": ("disks.script=*evil*",)}, "disks.0.script", "/opt/evil", True),
        ({"allow": ("usbdevs",), "forbid": ("usbdevs.type.hostdev",)}, "usbdevs.0.type.hostdev", {"hostbus": 1}, True),
        ({"forbid": ("b_info.cpuid.msr",)}, "b_info.cpuid", {"msr": []}, True),
        # values of allow: folder by folder
        ({"allow": ("b_info.device_model=/usr/lib/xen/bin/*",)}, "b_info.device_model", "/usr/lib/xen/bin/../../../../opt/evil", True),
        ({"allow": ("b_info.device_model=/usr/*/qemu",)}, "b_info.device_model", "/usr/../qemu", True),
        ({"allow": ("b_info.device_model=/usr/*",)}, "b_info.device_model", "/usr/bin/qemu", True),
        ({"allow": ("b_info.device_model=/usr/",)}, "b_info.device_model", "/usr/bin/qemu", False),
        ({"allow": ("b_info.device_model=/usr/lib/xen/bin/*",)}, "b_info.device_model", "/usr/lib/xen/bin/qemu", False),
        # of forbid: in any case, and however a path is written
        ({"forbid": ("disks.pdev_path=/dev/sd*",)}, "disks.0.pdev_path", "/dev/sda", True),
        ({"allow": ("disks.pdev_path",), "forbid": ("disks.pdev_path=/dev/sda",)}, "disks.0.pdev_path", "/dev/./sda", True),
        ({"allow": ("disks",), "forbid": ("disks.pdev_path=/dev/sda",)}, "disks.0.pdev_path", "//dev/vg0/../sda", True),
        ({"forbid": ("disks.pdev_path=/srv/",)}, "disks.0.pdev_path", "/srv/a/b", True),
        ({"forbid": ("b_info.type.hvm.vga.kind=qxl",)}, "b_info.type.hvm.vga.kind", "QXL", True),
        ({"forbid": ("b_info.type.hvm.vga.kind=QXL",)}, "b_info.type.hvm.vga.kind", "qxl", True),
        ({"forbid": ("b_info.type.hvm.vga.kind=qxl",)}, "b_info.type.hvm.vga.kind", "std", False),
    ],
)
def test_allow_and_forbid(policy: dict[str, Any], path: str, value: Any, refused: bool) -> None:
    """``forbid`` holds inside of what ``allow`` lets pass; paths keep to their folders in both."""
    assert bool(refusal(domain(path, value), **policy)) == refused


@pytest.mark.parametrize(
    "text", [r'{"device_model\u0000": "/opt/evil"}', r'{"a": [{"b\n": 1}]}', r'{"a": "x\u0000y"}', r'{"a": [[{"b": "\u0000"}]]}']
)
def test_what_ends_earlier_in_c(text: str) -> None:
    """A NUL ends a text in libxl, so that a key would be another one there: what has it in any key or text is no configuration."""
    with pytest.raises(ProtocolError, match=r"a text has a NUL in it|a key has characters that cannot be printed"):
        configuration(text.encode())


def test_disk_that_a_script_makes() -> None:
    """What stands behind a script is that script's to read, and matched word by word."""
    target = "iqn=iqn.2001-05.com.example:x,portal=192.0.2.3"
    made = domain("disks.0.script", "block-iscsi")
    made["disks"][0]["pdev_path"] = target
    assert refusal(made) == ""
    assert "disks[0].pdev_path = " in refusal(made, disks=("/dev/vg0/",))
    assert refusal(made, disks=("/dev/vg0/", "iqn=iqn.2001*,portal=192.0.2.3")) == ""
    assert "[policy] disks has " in refusal(made, disks=("iqn=iqn.2001*",))  # not any portal
    made["disks"][0]["script"] = None
    assert "comma" in refusal(made)


@pytest.mark.parametrize(
    ("target", "disks", "problem"),
    [
        ("/dev/vg0/../sda", ("/dev/vg0/",), "no absolute path"),
        ("/dev/./sda", ("*",), "no absolute path"),
        ("//dev/sda", ("*",), "no absolute path"),
        ("/dev/sda", ("/dev/vg0/",), "[policy] disks has /dev/vg0/"),
        ("/dev/vg0/web1", ("/dev/vg0/",), ""),
        ("vg0/../../sda", ("*",), "'..'"),
        ("file=../../dev/sda", ("*",), "'..'"),
        ("iqn=iqn.2001:a,iqn=evil", ("*",), "twice"),
        ("iqn=iqn.2001:a iqn=evil", ("iqn=*",), "twice"),
        ("iqn=iqn.2001:a,portal=evil", ("iqn=*",), "[policy] disks has iqn=*"),
        ("iqn=iqn.2001:a,portal=192.0.2.3:3260", ("iqn=iqn.2001*,portal=192.0.2.3*",), ""),
        ("web1..2", ("web*",), ""),
        ("web1\n", ("*",), "no line of text"),
    ],
)
def test_target_of_a_script(target: str, disks: tuple[str, ...], problem: str) -> None:
    """A path stays a path behind a script, and a pattern does not reach beyond the word that it was written for."""
    made = domain("disks.0.script", "block")
    made["disks"][0]["pdev_path"] = target
    said = refusal(made, disks=disks)
    assert problem in said
    assert bool(said) == bool(problem)


def test_domain_without_a_name() -> None:
    """Xl takes a domain without a name; the policy does not."""
    for nameless in ({}, {"c_info": {}}, {"c_info": None}, {"c_info": {"name": None}}, {"c_info": []}):
        assert "a domain has a name" in refusal(nameless)


def test_rules_of_one_peer(tmp_path: Path) -> None:
    """A peer's section says what is different for it, and is named where its word decides; a long list is cut short in the refusal."""
    file = tmp_path / "xensecure.toml"
    file.write_text('[policy]\nvcpus = 4\nnames = ["a*"]\n[policy.peer.hv1]\nvcpus = 8\n[policy.peer."hv2.example.org"]\nallow = ["pcidevs"]\n')
    file.chmod(0o600)
    config = load_config(str(file))
    assert (config.policy_for("hv1").vcpus, config.policy_for("hv3").vcpus) == (8, 4)
    assert config.policy_for("hv2.example.org").allow == ("pcidevs",)
    with pytest.raises(RefusedError, match=re.escape("at most 8 ([policy.peer.hv1] vcpus)")):
        judge(config.policy_for("hv1"), {"c_info": {"name": "a"}, "b_info": {"max_vcpus": 9}})
    with pytest.raises(RefusedError, match=re.escape("[policy] names has a*")):
        judge(config.policy_for("hv1"), {"c_info": {"name": "b"}})
    assert len(refusal(domain("c_info.name", "x" * 5000), names=("y" * 5000,))) < 400


# ---- real configurations


def recorded() -> Iterator[dict[str, Any]]:
    """Those of the streams in the repository."""
    for path in DATA.glob("*.up.xz"):
        yield configuration(StreamReader(io.BytesIO(lzma.decompress(path.read_bytes()))).xl_header().encode())


def test_recorded_domains_may_come() -> None:
    """What xl sent of real guests is taken without configuration."""
    found = [ORDINARY, *recorded()]
    assert len(found) > 1
    assert [refusal(one) for one in found] == [""] * len(found)


# ---- what is written about it


def test_sample_in_the_documents(tmp_path: Path) -> None:
    """The sample policy in docs/operations.md loads, and means what stands beside it."""
    text = (Path(__file__).parent.parent / "docs/operations.md").read_text("utf-8")
    sample = re.search(r"```toml policy\n(.*?)```", text, re.DOTALL)
    assert sample
    file = tmp_path / "xensecure.toml"
    file.write_text(sample[1])
    file.chmod(0o600)
    config = load_config(str(file))
    assert not config.policy_for("lab").send
    devices = domain("pcidevs", [{"bus": 1}])
    judge(config.policy_for("hv1"), devices)
    with pytest.raises(RefusedError, match="pcidevs"):
        judge(config.policy_for("hv3"), devices)
    judge(config.policy_for("hv3"), domain("disks.0.pdev_path", "/dev/drbd/by-res/web1/0"))
    with pytest.raises(RefusedError, match="/dev/vg0/"):
        judge(config.policy_for("hv1"), domain("disks.0.pdev_path", "/dev/sda"))
