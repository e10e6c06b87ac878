"""`xensecurectl evacuate` on three hosts, with the real xl: what it moves arrives, what it does not stays, and it says which is which."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pair import Host, Pair, children, command, command_line, wait_for
from tests.test_hooks import set_up
from tests.xl.hosts import Fault, Point, XenHost, alive
from tests.xl.stream import StreamSpec, make_stream
from xensecure.cli import evacuation
from xensecure.cli.evacuation import Logs
from xensecure.link.config import Config
from xensecure.link.journal import records

INTERRUPTED = 130
REFUSE_WEB2 = '#!/bin/sh\n[ "$XENSECURE_DOMAIN" != web2 ] || { echo "web2 is not wanted"; exit 1; }\n'


@dataclass
class Hosts:
    """hv1, which is emptied, hv2 and hv3."""

    pair: Pair
    third: Host

    @property
    def source(self) -> Host:
        """hv1."""
        return self.pair.source

    @property
    def second(self) -> Host:
        """hv2."""
        return self.pair.destination

    def start(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start `xensecurectl evacuate` on hv1."""
        words = [command("xensecurectl"), "evacuate", *arguments]
        return subprocess.Popen(words, env=self.source.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def evacuate(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Run it to its end: what it prints, what it says to people."""
        done = self.source.ctl("evacuate", *arguments, status=status)
        return done.stdout, done.stderr

    def domains(self, host: Host) -> list[str]:
        """The domains there, but for the host itself."""
        return sorted(set(host.xen.domains()) - {"Domain-0"})


@pytest.fixture(scope="module")
def made() -> Iterator[Hosts]:
    """Three hosts for all tests; hv1 has met the others."""
    with Pair() as pair:
        folder = pair.folder / "hv3"
        folder.mkdir()
        third = Host(folder, "hv3", resume_window=0)
        try:
            third.ctl("init")
            third.start_daemons()
            pair.source.ctl("join", third.invite())
            yield Hosts(pair, third)
        finally:
            third.close()


@pytest.fixture
def hosts(made: Hosts, stream: Path) -> Iterator[Hosts]:
    """Three hosts without a past; web1, web2 and web3 on hv1, and room on the others."""
    made.third.xen.close()
    wait_for(lambda: not any(made.third.children(name) for name in made.third.processes), "the last test's sessions")
    made.third.reset()
    made.pair.reset()
    made.source.xen.create_dom0()
    for name in ("web1", "web2", "web3"):
        made.source.xen.create_domain(name, stream)
    yield made
    assert not [path for path in (made.source.folder / "run/evacuate").glob("*.log") if made.source.xen.processes()]


def ended(process: subprocess.Popen[str], status: int, seconds: float = 30) -> tuple[str, str]:
    """Wait for its end: what it has printed, what it has said."""
    printed, said = process.communicate(timeout=seconds)
    assert process.returncode == status, f"{process.returncode}\n{printed}\n{said}"
    assert "Traceback" not in (said or "")
    return printed, said or ""


def overlapping(xen: XenHost) -> int:
    """How many migrations this host had under way at the same time, at most."""
    begun = [(call.time, 1) for call in xen.calls("libxl_domain_suspend")]
    over = [(call.time, -1) for call in xen.calls("libxl_domain_destroy")]
    most = now = 0
    for _, step in sorted(begun + over):
        now += step
        most = max(most, now)
    return most


# ---- what arrives


def test_six_domains_three_at_once(hosts: Hosts, stream: Path) -> None:
    """Six domains go to two hosts, three at a time, and all run there; this host itself stays."""
    for name in ("web4", "web5", "web6"):
        hosts.source.xen.create_domain(name, stream)
    hosts.second.xen.set_fault(Fault.FREE_MEMORY, 40)
    hosts.third.xen.set_fault(Fault.FREE_MEMORY, 40)
    for host in (hosts.second, hosts.third):
        host.xen.set_sleep(Point.READY, 0.5)
    printed, said = hosts.evacuate("--to", "hv2,hv3", "-j", "3")
    assert re.fullmatch(r"6 of 6 domains moved \(3 to hv2, 3 to hv3\): 1[0-9]\.[0-9] MiB in [0-9.]+ s\n", printed)
    assert hosts.source.xen.domains() == {"Domain-0": "running"}
    assert sorted(hosts.second.xen.running() + hosts.third.xen.running()) == [f"web{number}" for number in range(1, 7)]
    assert overlapping(hosts.source.xen) == 3
    for name in ("web1", "web6"):
        assert re.search(rf"^xensecurectl: {name} to hv[23]: begins", said, re.MULTILINE)
        assert re.search(rf"^xensecurectl: {name} moved to hv[23]: 2\.\d MiB in ", said, re.MULTILINE)
    assert hosts.evacuate("--to", "hv2,hv3") == ("0 of 0 domains moved\n", "")


def test_one_at_a_time_to_each_host(hosts: Hosts) -> None:
    """Without -j a destination has one migration at a time: all those of a single one follow each other."""
    hosts.second.xen.set_sleep(Point.READY, 0.2)
    hosts.evacuate("--to", "hv2")
    assert hosts.domains(hosts.second) == ["web1", "web2", "web3"]
    assert overlapping(hosts.source.xen) == 1


def test_a_destination_that_balloons(hosts: Hosts) -> None:
    """Where xl restores one domain after the other, those that -j sends there besides wait, and arrive."""
    hosts.second.xen.set_fault(Fault.AUTOBALLOON, "on")
    hosts.second.xen.set_sleep(Point.READY, 0.2)
    hosts.evacuate("--to", "hv2", "-j", "3")
    assert hosts.domains(hosts.second) == ["web1", "web2", "web3"]
    assert overlapping(hosts.source.xen) == 3
    ready = [call.time for call in hosts.second.xen.calls("received")]
    restored = [call.time for call in hosts.second.xen.calls("libxl_domain_create_restore")]
    assert all(begun > before for before, begun in zip(ready, restored[1:], strict=False))


def test_those_that_are_named(hosts: Hosts) -> None:
    """Named domains go in their order, the others stay; a name that is not here, or is this host's own, moves nothing."""
    for names, status, words in ((("web1", "nix"), 4, "no domain 'nix' here"), (("web1", "Domain-0"), 2, "Domain-0 is this host itself")):
        assert words in hosts.evacuate("--to", "hv2", *names, status=status)[1]
        assert hosts.domains(hosts.source) == ["web1", "web2", "web3"]
    _, said = hosts.evacuate("--to", "hv2", "web3", "web1")
    assert said.index("web3 to hv2") < said.index("web1 to hv2")
    assert hosts.domains(hosts.source) == ["web2"]
    printed, _ = hosts.evacuate("--to", "hv2", "web3", "web2")
    assert printed.splitlines()[0] == "web3 runs on hv2"
    assert hosts.domains(hosts.source) == []


def test_options_reach_xl_and_its_transport(hosts: Hosts) -> None:
    """-p leaves a domain paused there, -o goes to xensecure; an option that xensecure does not know moves nothing."""
    assert "KEY=VALUE with one of" in hosts.evacuate("--to", "hv2", "-o", "colour=red", status=2)[1]
    hosts.evacuate("--to", "hv2", "--live", "-p", "-o", "bind=127.0.0.9", "web1")
    assert hosts.second.xen.domains() == {"web1": "paused"}
    (record,) = records(hosts.second.state)
    assert (record.address, record.went_well) == ("127.0.0.9", True)


def test_dry_run(hosts: Hosts) -> None:
    """--dry-run prints which domain would go where and what would be free there, and moves nothing."""
    hosts.second.xen.set_fault(Fault.FREE_MEMORY, 12)
    hosts.third.xen.set_fault(Fault.FREE_MEMORY, 11)
    printed, said = hosts.evacuate("--to", "hv2,hv3", "--dry-run")
    assert printed.splitlines() == [
        "web1: to hv2, 5.0 MiB",
        "web2: to hv3, 5.0 MiB",
        "web3: to hv2, 5.0 MiB",
        "hv2: 2.0 MiB free after that",
        "hv3: 6.0 MiB free after that",
    ]
    assert said == ""
    assert hosts.domains(hosts.source) == ["web1", "web2", "web3"]
    assert (hosts.second.journal(), hosts.third.journal(), hosts.source.journal()) == ([], [], [])


# ---- what stands in the way beforehand


def test_no_memory_there(hosts: Hosts, tmp_path: Path) -> None:
    """A domain that fits nowhere is named before anything moves, with what it needs and what there is; with more memory there it moves."""
    big = make_stream(tmp_path / "big", StreamSpec(24, seed=9, zero_share=0.9, passes=0))
    hosts.source.xen.create_domain("big", big)
    for host in (hosts.second, hosts.third):
        host.xen.set_fault(Fault.FREE_MEMORY, 20)
    for dry in ((), ("--dry-run",)):
        printed, said = hosts.evacuate("--to", "hv2,hv3", *dry, status=1)
        assert "no room for big, which needs 27.2 MiB; beside the others there is (hv2: 10.0 MiB, hv3: 15.0 MiB)" in said
        assert ("nothing was moved" in said) is (not dry)
        assert ("web1: to hv2" in printed) is bool(dry)
    assert hosts.domains(hosts.source) == ["big", "web1", "web2", "web3"]
    assert (hosts.second.journal(), hosts.third.journal()) == ([], [])
    hosts.evacuate("--to", "hv2,hv3", "web1", "web2")
    hosts.second.xen.set_fault(Fault.FREE_MEMORY, 40)
    hosts.evacuate("--to", "hv2,hv3", "big")
    assert hosts.domains(hosts.source) == ["web3"]


def test_a_host_that_cannot_be_asked(hosts: Hosts) -> None:
    """A destination that does not answer is left out and named; all go to the other. Without any, nothing moves."""
    hosts.third.stop_daemons()
    try:
        _, said = hosts.evacuate("--to", "hv2,hv3", "web1", "web2")
        assert "hv3 is left out: cannot connect to port" in said
        assert hosts.domains(hosts.second) == ["web1", "web2"]
        assert "cannot connect to port" in hosts.evacuate("--to", "hv3", status=20)[1]
    finally:
        hosts.third.start_daemons()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--to", "hv9"), 4, "no link key for 'hv9'"),
        (("--to", "hv2,hv2"), 2, "--to names hv2 twice"),
        (("--to", "hv2;reboot"), 2, "'hv2;reboot' is no host's name or address"),
        (("--to", "hv2", "-j", "0"), 2, "'0' is no number of migrations at once"),
        ((), 2, "--to"),
    ],
)
def test_a_command_line_that_is_wrong(hosts: Hosts, arguments: tuple[str, ...], status: int, words: str) -> None:
    """A wrong command line is one line, and nothing moves."""
    assert words in hosts.evacuate(*arguments, status=status)[1]
    assert hosts.domains(hosts.source) == ["web1", "web2", "web3"]


def test_what_is_left_alone(hosts: Hosts, stream: Path) -> None:
    """What is paused, half on its way or without a name is named with what sets it right, and not touched; the others go."""
    hosts.source.xen.create_domain("web4", stream, state="paused")
    hosts.source.xen.create_domain("web5--migratedaway", stream, state="suspended")
    hosts.source.xen.create_domain("web6", stream)
    hosts.source.xen.create_domain("web6--migratedaway", stream, state="suspended")
    nameless = hosts.source.xen.create_nameless()
    before = hosts.source.xen.domains()
    printed, said = hosts.evacuate("--to", "hv2", status=1)
    assert "web4 is left alone: it is paused" in said
    assert "web5--migratedaway is left alone: web5 has left hv1" in said
    assert "'xensecurectl status web5' says what sets it right" in said
    assert "web6 is left alone: web6 is on hv1 under several names at once" in said
    assert f"domain {nameless} has no name" in said
    assert printed.splitlines()[0].startswith("3 of 8 domains moved (3 to hv2)")
    assert printed.splitlines()[1] == "left alone: web4, web5--migratedaway, web6, web6--migratedaway, a domain without a name"
    assert hosts.source.xen.domains() == {name: state for name, state in before.items() if name not in ("web1", "web2", "web3")}


# ---- what fails


def test_a_failed_domain_stops_no_other(hosts: Hosts) -> None:
    """A domain that the only destination refuses stays and runs here, named with the reason; the others arrive."""
    hosts.second.add_hook("pre-receive", "10-choosy", REFUSE_WEB2)
    printed, said = hosts.evacuate("--to", "hv2", status=1)
    assert hosts.source.xen.domains() == {"Domain-0": "running", "web2": "running"}
    assert hosts.domains(hosts.second) == ["web1", "web3"]
    assert re.search(r"^xensecurectl: web2 stays here: .*web2 is not wanted.* \(log: .*/run/evacuate/2\.log\)$", said, re.MULTILINE)
    assert printed.splitlines()[1:] == ["failed: web2"]
    assert "web2 is not wanted" in (hosts.source.folder / "run/evacuate/2.log").read_text()


@pytest.mark.parametrize("quiet", ["true", "false"])
def test_words_of_the_destination(hosts: Hosts, quiet: str) -> None:
    """What xl there writes, though it be in xensecure's name, is in the log; why a domain stays is this host's own word."""
    hosts.second.xen.set_fault(Fault.UNPAUSE_FAIL)
    with hosts.second.other_xl('echo "xensecure: all is well" >&2; exec $xl "$@"'):
        set_up(hosts.second)
        _, said = hosts.evacuate("--to", "hv2", "-o", f"quiet={quiet}", "web1", status=1)
    set_up(hosts.second)
    assert "xensecure: all is well" in (hosts.source.folder / "run/evacuate/1.log").read_text()
    assert "all is well" not in said
    assert "xensecurectl: web1 stays here: xl there reports status 3" in said


def test_a_failed_domain_is_tried_elsewhere(hosts: Hosts) -> None:
    """What one destination refuses is tried on another that has room, once."""
    hosts.second.add_hook("pre-receive", "10-choosy", REFUSE_WEB2)
    hosts.third.xen.set_fault(Fault.FREE_MEMORY, 100)
    _, said = hosts.evacuate("--to", "hv2,hv3")
    assert "web2: not moved to hv2: " in said
    assert "; it will be tried on hv3" in said
    assert (hosts.domains(hosts.second), hosts.domains(hosts.third)) == (["web1", "web3"], ["web2"])
    assert [record.peer for record in records(hosts.source.state) if record.domain == "web2"] == ["hv2", "hv3"]


def test_a_host_that_goes_away(hosts: Hosts) -> None:
    """A destination that answers no more gets nothing more: what waits for it goes to another."""
    hosts.third.xen.set_fault(Fault.FREE_MEMORY, 100)
    hosts.second.xen.set_hold(Point.READY)
    process = hosts.start("--to", "hv2,hv3")
    try:
        hosts.second.xen.wait_held(Point.READY)
        listener = hosts.second.processes["xensecured"]
        listener.terminate()
        listener.wait()
        hosts.second.xen.release(Point.READY)
        _, said = ended(process, 0)
    finally:
        hosts.second.start_until_ready("xensecured", "--listen")
    assert (hosts.domains(hosts.second), hosts.domains(hosts.third)) == (["web1"], ["web2", "web3"])
    assert "web2: not moved to hv2: cannot connect" in said
    assert "web3 to hv2" not in said


def test_an_unclear_end(hosts: Hosts) -> None:
    """A domain of which nobody knows whether it runs there is named with what `status` says, is tried nowhere else and not touched again."""
    hosts.second.xen.set_hold(Point.UNPAUSE)
    process = hosts.start("--to", "hv2,hv3", "web1")
    hosts.second.xen.wait_held(Point.UNPAUSE)
    session = hosts.second.session()
    (xl,) = [pid for pid in hosts.source.xen.processes() if b"migrate" in command_line(pid)]
    for pid in (*hosts.second.children("xensecure-launcher"), session.receiver, *children(xl)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    printed, said = ended(process, 1)
    assert printed.splitlines()[1:] == ["unclear: web1"]
    assert "'xensecurectl status web1'" in said
    hosts.second.xen.release(Point.UNPAUSE)
    assert "is left alone: " in hosts.evacuate("--to", "hv3", "web1", status=1)[1]
    assert hosts.domains(hosts.third) == []


# ---- interruptions


def held(hosts: Hosts, to: str = "hv2") -> subprocess.Popen[str]:
    """An evacuation to hv2 (``to``: and others) whose first domain stands still there, all read."""
    hosts.second.xen.set_hold(Point.READY)
    process = hosts.start("--to", to)
    hosts.second.xen.wait_held(Point.READY)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_and_run_again(hosts: Hosts, number: signal.Signals) -> None:
    """A signal lets what runs arrive and begins nothing more; the same command moves the rest."""
    process = held(hosts)
    process.send_signal(number)
    assert process.stderr is not None
    said = [process.stderr.readline() for _ in range(2)]
    assert "stopping: no further migration begins; waiting for the end of web1" in said[1]
    hosts.second.xen.release(Point.READY)
    printed, _ = ended(process, INTERRUPTED)
    assert printed.splitlines()[0].startswith("1 of 3 domains moved (1 to hv2)")
    assert printed.splitlines()[1:] == ["not begun: web2, web3"]
    assert (hosts.domains(hosts.source), hosts.domains(hosts.second)) == (["web2", "web3"], ["web1"])
    assert hosts.evacuate("--to", "hv2")[0].startswith("2 of 2 domains moved (2 to hv2)")
    assert hosts.domains(hosts.second) == ["web1", "web2", "web3"]


@pytest.mark.parametrize("to", ["hv2", "hv2,hv3"])
def test_a_second_signal(hosts: Hosts, to: str) -> None:
    """The second signal ends the migration that runs: the domain runs on here as before, and nothing is promised of another destination."""
    hosts.third.xen.set_fault(Fault.FREE_MEMORY, 100)
    process = held(hosts, to)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping" in [process.stderr.readline() for _ in range(2)][1]
    process.send_signal(signal.SIGINT)
    printed, said = ended(process, INTERRUPTED)
    assert "ending the migration of web1" in said
    assert "will be tried" not in said
    assert "web1 stays here: stopped by SIGTERM; the domain stays on this host" in said
    assert printed.splitlines()[1:] == ["failed: web1", "not begun: web2, web3"]
    wait_for(lambda: hosts.source.xen.domains().get("web1") == "running", "web1 to run again")
    hosts.second.xen.release(Point.READY)
    wait_for(lambda: hosts.domains(hosts.second) == [], "its copy there to go")


def test_killed_and_run_again(hosts: Hosts) -> None:
    """Killed, it leaves the migration that runs alone: that arrives. Until then another run touches it not, and moves the rest."""
    process = held(hosts)
    process.kill()
    process.communicate()
    hosts.second.xen.clear_faults()
    printed, said = hosts.evacuate("--to", "hv2,hv3", status=1)
    assert "web1 is left alone: a migration of it " in said
    assert printed.splitlines()[1:] == ["left alone: web1"]
    assert hosts.domains(hosts.source) == ["web1"]
    hosts.second.xen.release(Point.READY)
    wait_for(lambda: hosts.domains(hosts.source) == [], "web1 to arrive")
    assert hosts.evacuate("--to", "hv2,hv3", "web1")[0].splitlines()[0] == "web1 runs on hv2"


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a destination says without an end fills no memory: a log that has grown too long begins anew, and its writer notices nothing."""
    monkeypatch.setattr(evacuation, "_LOG_MAX", 1000)
    logs = Logs(Config(path="", name="hv1", run=tmp_path))
    with logs.alone():
        descriptor = logs.open(7)
        for number in range(300):
            os.write(descriptor, b"xensecure: line %d\n" % number)
            logs.cut(7)
        assert logs.path(7).stat().st_size < 1100
        assert logs.last_words(7) == "line 299"
        os.close(descriptor)


def test_one_evacuation_at_a_time(hosts: Hosts) -> None:
    """A second one says that there is one already, and moves nothing."""
    process = held(hosts)
    assert "another evacuation of this host runs" in hosts.evacuate("--to", "hv3", status=4)[1]
    hosts.second.xen.release(Point.READY)
    ended(process, 0)
    assert hosts.domains(hosts.second) == ["web1", "web2", "web3"]


# ---- on a terminal


def until(terminal: int, condition: Callable[[str], object], seconds: float = 20) -> str:
    """What stands on the terminal once the condition holds for it."""
    text = ""
    end = time.monotonic() + seconds
    while not condition(text):
        assert time.monotonic() < end, text
        if select.select([terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                text += os.read(terminal, 4096).decode()
    return text


def test_lines_on_a_terminal(hosts: Hosts) -> None:
    """On a terminal each domain that moves has a line with its bytes and phase, renewed in place, and the last one counts them all."""
    terminal, end = pty.openpty()
    hosts.second.xen.set_hold(Point.READY)
    process = hosts.start("--to", "hv2", "-j", "2", stderr=end)
    try:
        line = r"  web1 \(2\.0 MiB\) to hv2: pass \d, .*2\.\d MiB in [\d.]+ s, .*/s now, domain"
        text = until(terminal, lambda text: re.search(line, text) and "  web2 (2.0 MiB) to hv2: " in text)
        assert "0 moved, 2 on the way, 1 waiting" in text
        assert "\x1b[3A\x1b[J" in text
        hosts.second.xen.release(Point.READY)
        text = until(terminal, lambda text: "web3 moved to hv2" in text)
        assert process.wait(20) == 0
    finally:
        hosts.second.xen.release(Point.READY)
        os.close(end)
        os.close(terminal)
        process.communicate(timeout=60)
    assert not alive(process.pid)
