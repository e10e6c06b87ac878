"""The samples in hooks/, each run for real: by a migration where that is what they are for, else as xensecure would run them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import ipaddress
import json
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.pair import Pair, wait_for
from tests.test_migrate import expect_refused
from xensecure.link.config import Config
from xensecure.link.hooks import Facts, Outcome, Point, Role, ask, tell
from xensecure.proto.errors import HookError

SAMPLES = Path(__file__).resolve().parent.parent / "hooks"
NAMES = sorted(path.name for path in SAMPLES.iterdir() if path.suffix != ".md")
CONFIGURATION = {
    "c_info": {"name": "web1"},
    "disks": [
        {"pdev_path": "/dev/drbd/by-res/web1-root/0", "vdev": "xvda"},
        {"pdev_path": "/dev/drbd/by-res/web1-data/0", "vdev": "xvdb"},
        {"pdev_path": "/dev/drbd/by-res/web1-data/1", "vdev": "xvdc"},
        {"pdev_path": "/dev/drbd/by-res/all/0", "vdev": "xvdd"},
        {"pdev_path": "/dev/drbd/by-res/--help/0", "vdev": "xvde"},
        {"pdev_path": "/dev/vg/web1", "vdev": "xvdf"},
        {"vdev": "xvdg"},
    ],
    "nics": [
        {"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": "xenbr7", "ip": "192.0.2.1 2001:db8::1 nonsense"},
        {"devid": 1, "mac": "00:16:3e:00:00:02", "bridge": "xenbr7"},
    ],
}


def facts(role: Role = Role.DESTINATION, outcome: Outcome = Outcome.SUCCESS, **more: Any) -> Facts:
    """What a hook is told."""
    return Facts(role=role, host="hv2", peer="hv1", domain="web1", outcome=outcome, configuration=CONFIGURATION, **more)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A host whose hooks are in a folder of their own."""
    tmp_path.chmod(0o755)
    return Config(path="", name="hv2", hooks=tmp_path / "hooks.d")


def install(config: Config, sample: str, point: Point, *, ending: str = "", content: str = "") -> Path:
    """Put a sample where it is run, with a file of settings beside it."""
    folder = config.hooks / point
    folder.mkdir(parents=True, exist_ok=True)
    for path in (config.hooks, folder):
        path.chmod(0o755)
    hook = folder / f"50-{sample}"
    shutil.copy(SAMPLES / sample, hook)
    hook.chmod(0o755)
    if ending:
        hook.with_name(f"{hook.name}.{ending}").write_text(content)
    return hook


def refusal(config: Config, point: Point, known: Facts) -> str:
    """What a refusing hook says."""
    with pytest.raises(HookError) as caught:
        ask(config, point, known, "xensecure")
    return str(caught.value)


def run(sample: Path, point: Point, known: Facts, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a sample as xensecure does, with programs of the test's in front of the PATH."""
    environment = known.environment(point)
    environment[b"PATH"] = os.fsencode(folder) + b":" + environment[b"PATH"]
    document = json.dumps(known.document(point))
    return subprocess.run([str(sample)], env=environment, input=document, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def module(sample: str) -> ModuleType:
    """A sample's functions."""
    loader = importlib.machinery.SourceFileLoader(sample.replace("-", "_"), str(SAMPLES / sample))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(made)
    finally:
        sys.dont_write_bytecode = before
    return made


# ---- all


@pytest.mark.parametrize("name", NAMES)
def test_samples_can_be_run(name: str) -> None:
    """Every sample is executable, nobody else's to write, has a name that is run, and is in the table."""
    mode = (SAMPLES / name).stat().st_mode
    assert mode & 0o111 == 0o111
    assert not mode & stat.S_IWOTH
    assert re.fullmatch(r"[a-z-]+", name)
    assert f"\n| `{name}` |" in (SAMPLES / "README.md").read_text("utf-8")


def test_contract_names_every_word() -> None:
    """The contract's table has every key of the document and every variable of the environment, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`(XENSECURE_\w+)`)? ?\|", (SAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)
    known = facts()
    assert sorted(key for key, _ in rows) == sorted(known.document(Point.FAILED))
    variables = {name.decode() for name in known.environment(Point.FAILED)} - {"PATH", "HOME", "LANG"}
    assert {name for _, name in rows if name} == variables
    assert re.findall(r"^\| `((?:pre-|post-|fail)[\w-]+)` \|", (SAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)[:5] == [
        "pre-send",
        "pre-receive",
        "post-send",
        "post-receive",
        "failed",
    ]


# ---- announce-webhook


class Server:
    """A web server on loopback that keeps what it is told."""

    def __init__(self, status: int = 200) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
                """Nothing to standard error."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server that says yes."""
    made = Server()
    yield made
    made.close()


def test_webhook_hears_of_a_migration(pair: Pair, server: Server) -> None:
    """Both hosts of a real migration tell the web server, without the configuration."""
    for host, point in ((pair.source, "post-send"), (pair.destination, "post-receive")):
        hook = host.add_hook(point, "50-webhook", (SAMPLES / "announce-webhook").read_text())
        hook.with_name("50-webhook.url").write_text(f"{server.url}\n")
    running = pair.migrate("web1", "-e")
    assert running.wait().status == 0
    wait_for(lambda: len(server.told) == 2, "both hosts' words")
    assert {one["point"] for one in server.told} == {"post-send", "post-receive"}
    for one in server.told:
        assert (one["domain"], one["outcome"]) == ("web1", "success")
        assert "configuration" not in one
    assert "announce" not in running.stderr()


def test_webhook_that_fails(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    """A server that says no, none at all, or no URL: one line each."""
    refusing = Server(status=500)
    cases = {refusing.url: "HTTP Error 500", "http://127.0.0.1:1/": "was not told", "file:///etc/passwd": "no URL of a web server"}
    for content, words in cases.items():
        install(config, "announce-webhook", Point.FAILED, ending="url", content=content)
        tell(config, Point.FAILED, facts(), "xensecure")
        lines = capfd.readouterr().err.splitlines()
        assert words in lines[0]
        assert lines[1].endswith("has failed: exit status 1")
    refusing.close()


# ---- announce-mail


def test_mail(config: Config, tmp_path: Path) -> None:
    """The mail goes to the address beside the hook, and says what has happened; the sendmail is one that keeps it."""
    hook = install(config, "announce-mail", Point.FAILED, ending="to", content="ops@example.org\n")
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/arguments\ncat >{tmp_path}/mail\n")
    sendmail.chmod(0o755)
    done = run(hook, Point.FAILED, facts(outcome=Outcome.FAILED, reason="link lost: …\nBcc: x", stream_bytes=5), tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert (tmp_path / "arguments").read_text() == "-oi -t\n"
    head, _, body = (tmp_path / "mail").read_text().partition("\n\n")
    assert head.splitlines()[:2] == ["To: ops@example.org", "Subject: xensecure: web1 from hv1 to hv2: failed"]
    assert "Reason:  link lost: …?Bcc: x\n" in body
    assert "Said by: hv2 (failed)" in body


@pytest.mark.skipif(any(Path(folder, "sendmail").exists() for folder in ("/usr/sbin", "/usr/lib", "/usr/bin")), reason="there is a sendmail")
def test_no_sendmail(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    """Where there is no sendmail the hook says so, and has not failed."""
    install(config, "announce-mail", Point.POST_RECEIVE)
    tell(config, Point.POST_RECEIVE, facts(), "xensecure")
    assert capfd.readouterr().err == "xensecure: post-receive/50-announce-mail: there is no sendmail; nobody is told\n"


# ---- announce-addresses


IN_A_NETWORK = """\
set -e
ip link add xenbr7 type bridge
ip link add out0 type veth peer name out1
ip link set out0 master xenbr7
for device in xenbr7 out0 out1; do
    sysctl -q -w net.ipv6.conf.$device.disable_ipv6=1 2>/dev/null || true
    ip link set $device up
done
exec {python} -c '{program}' {sample}
"""
# What comes out of the bridge's port: frames by source address, until each kind has come.
LISTEN = """\
import socket, subprocess, sys
seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
seen.bind(("out1", 0))
seen.settimeout(3)
done = subprocess.run([sys.argv[1]], stdin=open("/dev/stdin"))
frames = set()
try:
    while True:
        frame = seen.recv(2048)
        if frame[6:9] == bytes.fromhex("00163e"):
            frames.add(frame.hex())
except TimeoutError:
    pass
print(done.returncode, *sorted(frames))
"""


@pytest.fixture
def addresses_sent() -> list[bytes]:
    """The frames that announce-addresses sends out of a bridge, in a network namespace of its own."""
    probe = ["unshare", "-n", "ip", "link", "add", "x", "type", "bridge"]
    if os.geteuid() != 0 or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no network namespace with a bridge can be made here")
    script = IN_A_NETWORK.format(python=sys.executable, program=LISTEN, sample=SAMPLES / "announce-addresses")
    document = json.dumps(facts().document(Point.POST_RECEIVE))
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], input=document, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    status, *frames = done.stdout.split()
    assert status == "0", done.stderr
    return [bytes.fromhex(frame) for frame in frames]


def checksum_holds(packet: bytes) -> bool:
    """Whether the ICMPv6 checksum of an IPv6 packet is right (RFC 4443, section 2.3)."""
    length = struct.unpack("!H", packet[4:6])[0]
    words = packet[8:40] + struct.pack("!II", length, packet[6]) + packet[40 : 40 + length]
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def test_addresses(addresses_sent: list[bytes]) -> None:
    """Out of the bridge come, from the guest's MAC addresses: RARP for each card, ARP both ways for the IPv4 address, an advertisement for IPv6."""
    first, second = bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")
    kinds = {(frame[6:12], frame[12:14], frame[20:22] if frame[12:14] != b"\x86\xdd" else b"") for frame in addresses_sent}
    assert kinds == {
        (first, b"\x80\x35", b"\x00\x03"),
        (second, b"\x80\x35", b"\x00\x03"),
        (first, b"\x08\x06", b"\x00\x01"),
        (first, b"\x08\x06", b"\x00\x02"),
        (first, b"\x86\xdd", b""),
    }
    for frame in addresses_sent:
        if frame[12:14] == b"\x08\x06":
            assert frame[:6] == b"\xff" * 6
            assert socket.inet_ntoa(frame[28:32]) == socket.inet_ntoa(frame[38:42]) == "192.0.2.1"
        elif frame[12:14] == b"\x86\xdd":
            packet = frame[14:]
            assert frame[:6] == bytes.fromhex("333300000001")
            assert checksum_holds(packet)
            assert ipaddress.ip_address(packet[8:24]) == ipaddress.ip_address(packet[48:64]) == ipaddress.ip_address("2001:db8::1")
            assert (packet[7], packet[40], packet[44] & 0xE0, packet[66:72]) == (255, 136, 0x20, first)


def test_no_such_bridge(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    """A bridge that is not there is said once."""
    install(config, "announce-addresses", Point.POST_RECEIVE)
    tell(config, Point.POST_RECEIVE, facts(), "xensecure")
    assert re.search(r"(?m)^xensecure: post-receive/50-announce-addresses: xenbr7: (No such device|Operation not permitted)$", capfd.readouterr().err)


# ---- maintenance-window


TIMES = {
    ("Mon-Fri 22:00-05:00", "2026-11-25 22:00"): True,  # a Wednesday
    ("Mon-Fri 22:00-05:00", "2026-11-25 21:59"): False,
    ("Mon-Fri 22:00-05:00", "2026-11-28 04:59"): True,  # Saturday morning, still Friday's
    ("Mon-Fri 22:00-05:00", "2026-11-28 05:00"): False,
    ("Mon-Fri 22:00-05:00", "2026-11-30 04:00"): False,  # Monday morning, Sunday's
    ("Sat,Sun 00:00-24:00", "2026-11-29 23:59"): True,
    ("Sat,Sun 00:00-24:00", "2026-11-30 00:00"): False,
    ("Sun-Tue 10:00-11:00", "2026-11-30 10:30"): True,
    ("Sun-Tue 10:00-11:00", "2026-12-02 10:30"): False,
}


@pytest.mark.parametrize("case", TIMES, ids=" at ".join)
def test_window(case: tuple[str, str]) -> None:
    """Days and times, past midnight too."""
    line, moment = case
    assert module("maintenance-window").is_open(line, datetime.fromisoformat(moment)) is TIMES[case]


NO_TIMES = ["", "always", "Mon 9:00-10:00", "Mon 09:00-24:30", "Day 09:00-10:00", "Mon-Wed-Fri 09:00-10:00", "Mon 09:00", "Mon 09:00-09:00"]


@pytest.mark.parametrize("line", NO_TIMES)
def test_window_that_means_nothing(line: str) -> None:
    """A line that is no time is an error."""
    with pytest.raises(ValueError):
        module("maintenance-window").is_open(line, datetime.fromisoformat("2026-11-25 12:00"))


ALWAYS = "# all week\nMon-Sun 00:00-24:00\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [("{another_day} 00:00-24:00\n", "outside of the maintenance window ("), ("soon\n", "'soon' is no time like"), ("", "(none)")],
)
def test_window_refuses_a_migration(pair: Pair, content: str, words: str) -> None:
    """Outside of the times a real migration is refused by the destination, and at them it is not."""
    hook = pair.destination.add_hook("pre-receive", "10-window", (SAMPLES / "maintenance-window").read_text())
    times = hook.with_name("10-window.times")
    times.write_text(content.format(another_day=(datetime.now() + timedelta(days=3)).strftime("%a")))
    outcome = pair.migrate("web1", "-e").wait()
    expect_refused(pair, outcome)
    assert "the destination gave up: refused by hook pre-receive/10-window: " in outcome.stderr
    assert words in outcome.stderr
    times.write_text(ALWAYS)
    assert pair.migrate("web1", "-e").wait().status == 0


def test_window_without_times(config: Config) -> None:
    """Without a file of times nothing is allowed."""
    install(config, "maintenance-window", Point.PRE_SEND)
    assert "No such file or directory; it names the times" in refusal(config, Point.PRE_SEND, facts())
    install(config, "maintenance-window", Point.PRE_SEND, ending="times", content=ALWAYS)
    ask(config, Point.PRE_SEND, facts(), "xensecure")


# ---- drbd-role


@pytest.fixture
def drbdadm(tmp_path: Path) -> Path:
    """A drbdadm that keeps what it is asked, and fails as often as the file "busy" has lines."""
    program = tmp_path / "bin" / "drbdadm"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
echo "$*" >>{tmp_path}/asked
[ -s {tmp_path}/busy ] || exit 0
sed -i 1d {tmp_path}/busy
echo "Device is held open by someone" >&2
exit 11
"""
    )
    program.chmod(0o755)
    return program


DRBD_CASES = {
    (Point.PRE_RECEIVE, Role.DESTINATION, Outcome.PENDING): "primary",
    (Point.POST_SEND, Role.SOURCE, Outcome.SUCCESS): "secondary",
    (Point.FAILED, Role.DESTINATION, Outcome.FAILED): "secondary",
    (Point.FAILED, Role.DESTINATION, Outcome.UNKNOWN): "",
    (Point.FAILED, Role.SOURCE, Outcome.FAILED): "",
    (Point.POST_RECEIVE, Role.DESTINATION, Outcome.SUCCESS): "",
}


@pytest.mark.parametrize("case", DRBD_CASES, ids=lambda case: f"{case[0]} at the {case[1]}, {case[2] or 'pending'}")
def test_drbd_roles(drbdadm: Path, tmp_path: Path, case: tuple[Point, Role, Outcome]) -> None:
    """Each resource of the configuration's disks gets its role once, and nobody else's does; where the outcome is unknown none does."""
    point, role, outcome = case
    done = run(SAMPLES / "drbd-role", point, facts(role, outcome), drbdadm.parent)
    assert done.returncode == 0, done.stderr
    asked = tmp_path / "asked"
    wanted = DRBD_CASES[case]
    assert (asked.read_text().splitlines() if asked.exists() else []) == ([f"{wanted} web1-root", f"{wanted} web1-data"] if wanted else [])


def test_drbd_waits_for_the_domains_end(drbdadm: Path, tmp_path: Path) -> None:
    """Secondary is tried again while xl still has the disk open; primary is not, and its failure is a refusal with drbdadm's words."""
    (tmp_path / "busy").write_text("1\n2\n")
    assert run(SAMPLES / "drbd-role", Point.POST_SEND, facts(Role.SOURCE), drbdadm.parent).returncode == 0
    assert (tmp_path / "asked").read_text().splitlines() == ["secondary web1-root"] * 3 + ["secondary web1-data"]
    (tmp_path / "busy").write_text("1\n2\n")
    done = run(SAMPLES / "drbd-role", Point.PRE_RECEIVE, facts(), drbdadm.parent)
    assert done.returncode == 1
    assert done.stderr.startswith("drbdadm primary web1-root: Device is held open by someone; ")
