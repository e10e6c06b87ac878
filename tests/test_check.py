"""Asking a destination how it is (docs/protocol.md, section 8): two hosts, the real xl there, and everything that can be wrong with the answer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.pair import Host, Pair, wait_for
from tests.xl.hosts import Fault, Point, alive
from tests.xl.stream import StreamSpec, make_config, make_stream
from xensecure import __version__
from xensecure.link.config import Config, load_config
from xensecure.link.connection import FrameChannel
from xensecure.link.engine import compiled_backends, find_backend
from xensecure.link.identity import load_credentials
from xensecure.link.peers import Peers
from xensecure.link.xl import cpu_names, parse_info, run_xl
from xensecure.proto import limits
from xensecure.proto.errors import LinkLostError, ProtocolError, Reason, RefusedError, StateError, SystemFailure
from xensecure.proto.hostreport import HostReport
from xensecure.proto.messages import FrameType
from xensecure.source.check import check_destination, open_check
from xensecure.source.establish import Connection, find_route

MIB = 1 << 20
CONFIGURATION = make_config("web1").encode()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts for all tests of this file."""
    with Pair(destination_extra="sessions = 7\nlanes = 3\nwindow = 1048576\n") as made:
        yield made


@pytest.fixture
def pair(lasting: Pair) -> Pair:
    """The same, without a past."""
    lasting.reset()
    return lasting


def check(host: Host, configuration: bytes = b"", peer: str = "hv2") -> HostReport:
    """What a host is told by its peer."""
    config = load_config(str(host.config))
    return check_destination(config, load_credentials(config), peer, config.options_for(peer), configuration)


def connect(host: Host) -> Connection:
    """A confirmed connection for one question."""
    config = load_config(str(host.config))
    peers = Peers(config)
    return open_check(config, peers, load_credentials(config), find_route(config, peers, "hv2", config.options_for("hv2")))


@contextmanager
def other_xl(host: Host, script: str) -> Iterator[None]:
    """Another program in the place of a host's xl."""
    kept = host.xl.read_bytes()
    aside = host.xl.with_suffix(".other")
    aside.write_text(f"#!/bin/sh\n{script}\n")
    aside.chmod(0o755)
    aside.rename(host.xl)
    try:
        yield
    finally:
        aside.write_bytes(kept)
        aside.chmod(0o755)
        aside.rename(host.xl)


def test_a_host_that_is_well(pair: Pair) -> None:
    """Everything that the destination tells is what its configuration, engine and xl have; nothing is written down or started on either host."""
    report = check(pair.source)
    assert (report.xensecure, report.xen) == (__version__, "4.17.5")
    assert (report.memory_total, report.memory_free, report.cpus) == (16384 * MIB, 8192 * MIB, 8)
    assert report.cpu_features.split(":")[:2] == ["bfebfbff", "77faf3ff"]
    assert report.virtualization.split() == ["pv", "hvm", "hap"]
    assert (report.sessions, report.sessions_max, report.lanes, report.window) == (0, 7, 3, MIB)
    assert (report.cipher, report.ciphers) == (find_backend(), tuple(compiled_backends()))
    assert abs(report.clock - time.time()) < 30
    assert (report.faults, report.refusal) == ((), "")
    assert (report.cpu_vendor, report.cpu_model) == cpu_names(Path("/proc/cpuinfo"))
    assert pair.source.journal() == pair.destination.journal() == []
    assert pair.destination.xen.calls() == []
    assert "SECURITY" not in pair.destination.log("xensecured") + pair.destination.log("xensecure-launcher")


def test_the_answer_is_of_this_moment(pair: Pair, tmp_path: Path) -> None:
    """Memory that went, another hypervisor, and a migration that arrives are in the next answer."""
    for fault, value in ((Fault.FREE_MEMORY, 100), (Fault.XEN_MINOR, 16), (Fault.HW_CAPS, "0fffffff")):
        pair.destination.xen.set_fault(fault, value)
    pair.source.xen.create_domain("web1", make_stream(tmp_path / "stream", StreamSpec(2, seed=1)))
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1")
    pair.destination.xen.wait_held(Point.READY)
    report = check(pair.source)
    pair.destination.xen.release(Point.READY)
    assert running.wait().status == 0
    assert (report.memory_free, report.xen, report.sessions) == (100 * MIB, "4.16.5", 1)
    assert report.cpu_features.startswith("0fffffff:")


@pytest.mark.parametrize("padding", [0, 1, 200_000, limits.CONFIGURATION_MAX - len(CONFIGURATION)])
def test_domain_that_would_be_taken(pair: Pair, padding: int) -> None:
    """A configuration of up to 1 MiB, with white space behind it, is judged whole."""
    assert check(pair.source, CONFIGURATION + b" " * padding).refusal == ""


def test_a_peer_that_may_not_send(pair: Pair) -> None:
    """A destination that takes nothing from this host says so, whatever the domain."""
    kept = pair.destination.config.read_text()
    pair.destination.config.write_text(f"{kept}\n[policy.peer.hv1]\nsend = false\n")
    try:
        pair.destination.stop_daemons()
        pair.destination.start_daemons()
        assert check(pair.source).faults == ("hv1 may not send domains there: [policy.peer.hv1] send is false",)
    finally:
        pair.destination.config.write_text(kept)
        pair.destination.stop_daemons()
        pair.destination.start_daemons()


def test_white_space_is_no_domain(pair: Pair) -> None:
    """A question made long by white space alone asks about no domain."""
    assert check(pair.source, b" \n" * 100_000).refusal == ""


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"{", "malformed configuration of a domain: "),
        (b"[]", "no object"),
        (b'{"c_info": {}, "c_info": {}}', "a key stands twice"),
        (b"\xff\xfe", "malformed configuration of a domain: "),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "too deep"),
        (b'{"c_info": {"name": "\\ud800\x1b[2J"}} x', "malformed configuration of a domain: "),
    ],
)
def test_domain_that_would_be_refused(pair: Pair, head: bytes, words: str) -> None:
    """What the strict parser does not take is a refusal in one line, with everything else in the report as ever."""
    report = check(pair.source, head)
    assert words in report.refusal
    assert report.refusal.isprintable()
    assert report.xen == "4.17.5"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "'xl info' failed with status 3: no message"),
        ("echo no >&2; exit 1", "'xl info' failed with status 1: no"),
        ("echo hello", "'xl info' does not say xen_version"),
        ("yes", "'xl info' prints more than 4 MiB"),
        ("exec sleep 60", "'xl info' has not ended within 5 s; is xenstored well?"),
    ],
)
def test_xl_that_does_not_say(pair: Pair, script: str, words: str) -> None:
    """An xl that fails, prints nonsense or without end, or hangs is a fault in the answer, in time, and leaves no process."""
    begun = time.monotonic()
    with other_xl(pair.destination, script):
        report = check(pair.source, CONFIGURATION)
    assert any(words in fault for fault in report.faults)
    assert (report.xen, report.memory_free, report.cpu_features) == ("", 0, "")
    assert report.sessions_max == 7
    assert time.monotonic() - begun < 30
    wait_for(pair.quiet, "the keeper to end")


@pytest.mark.parametrize("script", ["exec sleep 60", "exec sleep 60 >&- 2>&-", "while echo; do sleep 0.1; done"])
def test_xl_that_hangs(tmp_path: Path, script: str) -> None:
    """Silent, with its output closed, or talkative: a command of xl's has its time, and is killed."""
    program = tmp_path / "xl"
    program.write_text(f"#!/bin/sh\necho $$ >{tmp_path / 'pid'}\n{script}\n")
    program.chmod(0o755)
    begun = time.monotonic()
    with pytest.raises(SystemFailure, match="'xl info' has not ended within 1 s"):
        run_xl(Config(path="", xl=str(program)), "info", seconds=1.0)
    assert 1 <= time.monotonic() - begun < 20
    assert not alive(int((tmp_path / "pid").read_text()))


def test_faults_of_the_destination(pair: Pair) -> None:
    """Hooks that cannot be trusted and a journal that cannot be written would keep every domain away, and are told."""
    pair.destination.add_hook("pre-receive", "10-open", "#!/bin/sh\nexit 0\n").chmod(0o777)
    journal = pair.destination.state / "journal.jsonl"
    journal.mkdir()
    try:
        hooks, record = check(pair.source).faults
    finally:
        journal.rmdir()
    assert hooks.startswith("the hooks there cannot be trusted: ")
    assert record.startswith("the journal there cannot be written (")


def test_hooks_are_not_run(pair: Pair, tmp_path: Path) -> None:
    """A pre-receive hook may do things: it is left alone."""
    pair.destination.add_hook("pre-receive", "10-mark", f"#!/bin/sh\ntouch {tmp_path / 'mark'}\n")
    assert check(pair.source, CONFIGURATION).faults == ()
    assert not (tmp_path / "mark").exists()


def test_too_many_at_once(pair: Pair, tmp_path: Path) -> None:
    """So many questions are answered at once as the limit says; the next one is told to ask again, and then is answered."""
    tmp_path.chmod(0o755)
    answers: list[HostReport] = []
    threads = [threading.Thread(target=lambda: answers.append(check(pair.source))) for _ in range(limits.CHECKS_MAX)]
    held = f"touch {tmp_path}/held.$$; while [ ! -e {tmp_path}/release ]; do sleep 0.02; done; exit 1"
    with other_xl(pair.destination, held):
        for thread in threads:
            thread.start()
        wait_for(lambda: len(list(tmp_path.glob("held.*"))) == limits.CHECKS_MAX, "all of them")
        with pytest.raises(RefusedError, match="ask again") as refused:
            check(pair.source)
        (tmp_path / "release").touch()
        for thread in threads:
            thread.join()
    assert refused.value.reason is Reason.TOO_MANY
    assert len(answers) == limits.CHECKS_MAX
    assert check(pair.source).xen == "4.17.5"


def test_strangers_are_not_told(pair: Pair) -> None:
    """A host that has not met it, and one that has no link key, get nothing."""
    with pytest.raises(StateError, match="no link key for 'hv9'"):
        check(pair.source, peer="hv9")


OLDER = """
import sys
from xensecure.proto.messages import Purpose
del Purpose._member_map_["CHECK"]
from xensecure.cli.xensecured import main
sys.exit(main())
"""


def test_older_destination(pair: Pair) -> None:
    """A destination that does not know the purpose, as older ones do not: a clear line, and migrations as ever."""
    host = pair.destination
    first = host.processes.pop("xensecured")
    first.terminate()
    first.wait()
    with (host.folder / "older.log").open("wb") as log:
        older = subprocess.Popen([sys.executable, "-c", OLDER, "--listen"], env=host.environment(), stdout=log, stderr=log)
    try:
        wait_for(lambda: "listening" in (host.folder / "older.log").read_text(), "the older one")
        with pytest.raises(ProtocolError, match="the xensecure on hv2 is older than this one, and cannot say how that host is"):
            check(pair.source)
    finally:
        older.terminate()
        older.wait()
        host.start_until_ready("xensecured", "--listen")


def test_no_launcher(pair: Pair) -> None:
    """A destination whose launcher is down is not taken for an older one."""
    host = pair.destination
    launcher = host.processes.pop("xensecure-launcher")
    launcher.terminate()
    launcher.wait()
    try:
        with pytest.raises(LinkLostError, match="is xensecure-launcher running"):
            check(pair.source)
    finally:
        host.start_until_ready("xensecure-launcher")


HOSTILE: dict[str, tuple[Callable[[FrameChannel], None], str]] = {
    "silence": (FrameChannel.close, ""),
    "another frame": (lambda channel: channel.send(FrameType.KEEPALIVE), "KEEPALIVE where OPEN belongs"),
    "noise": (lambda channel: channel.wire.send(b"\xff" * 64), "a frame's header is not one of version 1"),
    "half a frame": (lambda channel: channel.wire.send(channel.link.seal(FrameType.OPEN, CONFIGURATION)[:-20]), ""),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_source_that_does_not_ask(pair: Pair, what: str) -> None:
    """A peer that proves itself and then sends nothing, something else or nonsense costs one process for a moment, and one line."""
    act, words = HOSTILE[what]
    with closing(connect(pair.source).channel) as channel:
        act(channel)
    wait_for(pair.quiet, "receiver and keeper to end")
    log = pair.destination.log("xensecured") + pair.destination.log("xensecure-launcher")
    assert words in log
    assert "internal error" not in log
    assert check(pair.source).xen == "4.17.5"


INFO = """\
host                   : hv2
release                : 6.1.0-18-amd64
nr_cpus                : 4
hw_caps                : bfebf3ff:77faf3ff:2c100800:00000121:0000000f:d39ffffb:00000008:00000100
virt_caps              : pv hvm
total_memory           : 2048
free_memory            : 12
xen_version            : 4.17.5
xen_commandline        : placeholder dom0_mem=512M note : colon
xend_config_format     : 4
"""


def test_info_is_read() -> None:
    """What is needed of `xl info`, whatever else stands there."""
    info = parse_info(INFO)
    assert (info.version, info.memory_total, info.memory_free, info.cpus, info.virt_caps) == ("4.17.5", 2048 * MIB, 12 * MIB, 4, "pv hvm")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("total_memory           : 2048", "total_memory           : -1"),
        ("free_memory            : 12", "free_memory            : 18446744073709551615"),
        ("nr_cpus                : 4", "nr_cpus                : ٤"),
        ("hw_caps                : bfebf3ff", "hw_caps                : bfebf3f"),
        ("xen_version            : 4.17.5", "xen_versions           : 4.17.5"),
    ],
)
def test_info_of_another_form(old: str, new: str) -> None:
    """Numbers that are none and fields that are missing are not guessed."""
    assert old in INFO
    with pytest.raises(SystemFailure, match="'xl info'"):
        parse_info(INFO.replace(old, new))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: one\n\nprocessor\t: 1\nvendor_id\t: Other\n", ("GenuineIntel", "Xeon: one")),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n", ("", "")),
        ("", ("", "")),
    ],
)
def test_cpu_names(tmp_path: Path, text: str, names: tuple[str, str]) -> None:
    """The first processor's names; none where the kernel does not give them."""
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_names(tmp_path / "cpuinfo") == names
    assert cpu_names(tmp_path / "not there") == ("", "")
