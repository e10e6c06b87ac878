"""`xensecurectl status`, `history` and `resume` on two hosts, with the real xl: what they say is true, and what they tell to type helps."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pair import Host, Pair, command, transports, wait_for
from tests.xl.hosts import Fault, Point, alive
from tests.xl.stream import StreamSpec, make_stream
from xensecure.cli.common import out
from xensecure.link.hooks import Role
from xensecure.link.journal import Journal, boot_id, records

SHORT = "[defaults]\nkeepalive = 1\nsilence = 2\n"


@pytest.fixture(scope="module")
def lasting() -> Iterator[Pair]:
    """Two hosts that soon give a lost link up."""
    with Pair(source_extra=SHORT, destination_extra=SHORT) as made:
        yield made


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two MiB."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(2, seed=5))


def ctl(host: Host, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run xensecurectl where it finds the host's libxl and xl."""
    environment = {**host.environment(), **host.xen.xl_env()}
    done = subprocess.run([command("xensecurectl"), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def verdict(host: Host, name: str = "web1", *, status: int = 0) -> dict[str, Any]:
    """What `status NAME --json` says of the domain."""
    (found,) = json.loads(ctl(host, "status", name, "--json", status=status).stdout)["domains"]
    return dict(found)


def follow(pair: Pair, host: Host, *, status: int = 1) -> str:
    """Type the one command that `status` gives, on its host; returns it."""
    (step,) = verdict(host, status=status)["steps"]
    where = {each.name: each for each in (pair.source, pair.destination)}[step["host"]]
    program, *words = shlex.split(step["command"])
    if program == "xl":
        assert where.xen.xl(*words).status == 0
    else:
        assert program == "xensecurectl"
        ctl(where, *words)
    return f"{step['host']}# {step['command']}"


def kill(pid: int) -> None:
    """Kill one process, if it has not ended by itself, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), f"the end of process {pid}")


def hold(pair: Pair, host: Host, point: Point) -> tuple[Any, Any]:
    """A migration that stands still at a point: the source's xl, and the session's processes."""
    host.xen.set_hold(point)
    running = pair.migrate("web1", "-e")
    host.xen.wait_held(point)
    return running, pair.destination.session()


def part(pair: Pair, running: Any, session: Any) -> None:
    """Kill both ends of the connection at once, so that nothing is resumed."""
    (transport,) = transports(running.pid)
    for pid in (transport, session.receiver):
        kill(pid)


# ---- status


def test_nothing_to_say(pair: Pair) -> None:
    """Where nothing has happened one line says so, and all is well; a domain nobody has moved is where it is seen."""
    for host in (pair.source, pair.destination):
        assert ctl(host, "status").stdout == "no migration runs on this host, and none of the last day needs anybody\n"
        assert ctl(host, "history").stdout == "the journal has no migration\n"
        assert json.loads(ctl(host, "status", "--json").stdout) == {"host": host.name, "live": [], "domains": []}
        assert ctl(host, "history", "--json").stdout == ""
    assert verdict(pair.source)["words"] == "web1 runs on hv1"
    assert verdict(pair.destination, status=1)["host"] == "unknown"


def test_a_domain_that_has_moved(pair: Pair) -> None:
    """After a migration both hosts name the one that has the domain, for certain, and need nobody."""
    assert pair.migrate("web1", "-e").wait().status == 0
    pair.destination.last_end()
    for host in (pair.source, pair.destination):
        found = verdict(host)
        assert (found["host"], found["sure"], found["steps"], found["well"]) == ("hv2", "certain", [], True)
        assert "no migration runs" in ctl(host, "status").stdout
        shown = ctl(host, "status", "web1--migratedaway").stdout.splitlines()
        assert shown[:2] == ["web1: web1 runs on hv2", "    held by: hv2 (certain)"]


def test_what_runs_is_shown(pair: Pair) -> None:
    """While a domain is on its way both hosts show it, with phase, bytes and peer; nothing is judged before it is over."""
    running, _ = hold(pair, pair.destination, Point.READY)
    for host, role, peer in ((pair.source, "source", "hv2"), (pair.destination, "destination", "hv1")):

        def shown(host: Host = host) -> Any:
            return json.loads(ctl(host, "status", "web1", "--json").stdout)

        document = shown()
        (live,) = document["live"]
        assert document["domains"] == []
        assert (live["role"], live["peer"], live["domain"], live["state"], live["resumptions"]) == (role, peer, "web1", "running", 0)
        assert alive(live["pid"])
        lines = ctl(host, "status").stdout.splitlines()
        assert lines[0].startswith("web1: from hv1 to hv2: running; phase ")
        assert lines[2] == f"    session {live['session']}, process {live['pid']}"
        assert ctl(host, "history").stdout.splitlines()[-1].endswith("running")
        assert "a migration of web1 runs here" in ctl(host, "resume", "web1", "--force", "I know", status=4).stderr
    pair.destination.xen.release(Point.READY)
    assert running.wait().status == 0
    wait_for(lambda: not json.loads(ctl(pair.source, "status", "--json").stdout)["live"], "the end")


def test_report_lost(pair: Pair) -> None:
    """Killed after GO: the source asks the destination, tells that the domain runs there, and to destroy the copy here; then all is well."""
    running, session = hold(pair, pair.destination, Point.UNPAUSE)
    part(pair, running, session)
    assert verdict(pair.source, status=1)["words"] == "web1 is on its way: its migration is not over on hv2"
    pair.destination.xen.release(Point.UNPAUSE)
    running.wait()
    wait_for(session.gone, "the session's end")
    assert pair.source.xen.domains() == {"web1--migratedaway": "suspended"}
    assert "web1: web1 runs on hv2; a suspended copy is left here" in ctl(pair.source, "status", status=1).stdout
    assert verdict(pair.source, status=1)["host"] == "hv2"
    (mine,) = records(pair.source.state)
    assert mine.peer_word is not None
    assert (mine.peer_word.state, mine.peer_word.status) == ("reported", 0)
    assert "a suspended copy is left here; two running copies of one domain destroy its disk" in ctl(pair.source, "resume", "web1", status=4).stderr
    assert follow(pair, pair.source) == "hv1# xl destroy web1--migratedaway"
    assert verdict(pair.source)["host"] == "hv2"
    assert pair.source.xen.domains() == {}


def test_go_lost(pair: Pair) -> None:
    """Killed before GO could leave: the source asks, tells that the domain has not run there, and `resume` brings it back."""
    running, session = hold(pair, pair.source, Point.RENAME)
    part(pair, running, session)
    pair.source.xen.release(Point.RENAME)
    assert running.wait().status != 0
    wait_for(session.gone, "the session's end")
    assert pair.source.xen.domains() == {"web1--migratedaway": "suspended"}
    assert pair.destination.xen.domains() == {}
    assert (verdict(pair.destination)["host"], verdict(pair.source, status=1)["host"]) == ("hv1", "hv1")
    assert follow(pair, pair.source) == "hv1# xensecurectl resume web1"
    assert pair.source.xen.domains() == {"web1": "running"}
    found = verdict(pair.source)
    assert (found["host"], found["sure"], found["well"]) == ("hv1", "certain", True)
    assert [entry["event"] for entry in pair.source.journal()][-2:] == ["peer", "recovered"]
    assert pair.migrate("web1", "-e").wait().status == 0


def test_the_other_host_is_silent(pair: Pair) -> None:
    """Where the destination cannot be asked, nothing is said to be known, what each possibility means is told, and nothing is started; who
    has looked may say so.
    """
    running, session = hold(pair, pair.source, Point.RENAME)
    part(pair, running, session)
    pair.source.xen.release(Point.RENAME)
    running.wait()
    wait_for(session.gone, "the session's end")
    pair.destination.stop_daemons()
    try:
        shown = ctl(pair.source, "status", status=1).stdout
        found = verdict(pair.source, status=1)
        assert (found["host"], [step["command"] for step in found["steps"]]) == ("unknown", ["xl list", "xensecurectl status web1"])
        assert "hv2 cannot be asked: cannot connect to port" in shown
        assert "    then, if\n      - web1 runs on hv2: it has arrived. Here: xl destroy web1--migratedaway\n" in shown
        for force in ((), ("--force", " ")):
            refused = ctl(pair.source, "resume", "web1", *force, status=4).stderr
            assert "two running copies of one domain destroy its disk" in refused
        assert pair.source.xen.domains() == {"web1--migratedaway": "suspended"}
        done = ctl(pair.source, "resume", "web1", "--force", "hv2 is switched off, and has not written")
        assert "resuming web1 by your word: hv2 is switched off" in done.stderr
        assert done.stdout == "web1 runs on hv1 again\n"
        assert pair.source.xen.domains() == {"web1": "running"}
        assert pair.source.journal()[-1]["why"] == "hv2 is switched off, and has not written"
    finally:
        pair.destination.start_daemons()


def test_a_resume_that_fails(pair: Pair) -> None:
    """Where libxl fails, nothing is said to run, and the domain can be resumed again under its own name."""
    xen = pair.source.xen
    fields = {"name": "web1--migratedaway", "state": "suspended"}
    domid = xen.domain("web1").domid
    book = xen.path / f"domains/{domid}"
    lines = [line for line in book.read_text().splitlines() if line.partition("=")[0] not in fields]
    book.write_text("\n".join([*lines, *(f"{key}={value}" for key, value in fields.items())]) + "\n")
    Journal(pair.source.state, Role.SOURCE).append(b"\1" * 16, "start", peer="hv2", boot=boot_id())
    Journal(pair.source.state, Role.SOURCE).append(b"\1" * 16, "end", domain="web1", outcome="link lost", state="not cleared")
    xen.set_fault(Fault.RESUME_FAIL)
    refused = ctl(pair.source, "resume", "web1", status=5)
    assert "libxl_domain_resume of 'web1' failed with -3; it is suspended as before, and can be tried again" in refused.stderr
    assert refused.stdout == ""
    assert xen.domains() == {"web1": "suspended"}
    xen.clear_faults()
    assert follow(pair, pair.source) == "hv1# xensecurectl resume web1"
    assert xen.domains() == {"web1": "running"}
    assert [call.arguments["domid"] for call in xen.calls("libxl_domain_resume")] == [str(domid)] * 2


def test_killed_xl_at_the_destination(pair: Pair) -> None:
    """The destination's xl killed after GO: two whole copies, neither runs, neither host starts one, and either says so."""
    running, session = hold(pair, pair.destination, Point.UNPAUSE)
    kill(session.xl)
    pair.destination.xen.release(Point.UNPAUSE)
    running.wait(60)
    wait_for(session.gone, "the session's end")
    assert (pair.source.xen.domains(), pair.destination.xen.domains()) == ({"web1--migratedaway": "suspended"}, {"web1": "paused"})
    for host, other in ((pair.source, "hv2"), (pair.destination, "hv1")):
        found = verdict(host, status=1)
        assert (found["host"], found["steps"][0]) == ("unknown", {"host": other, "command": "xl list"})
        assert not any("unpause" in step["command"] or "resume" in step["command"] for step in found["steps"])
        assert found["cases"]


def test_a_copy_left_by_others_is_found(pair: Pair) -> None:
    """What xl shows under a name of the way is told without being asked for, whoever has left it, and is not resumed."""
    assert pair.source.xen.xl("rename", "web1", "web1--migratedaway").status == 0
    shown = ctl(pair.source, "status", status=1).stdout
    assert shown.startswith("web1: web1 is on hv1 under the name that xl gives to what leaves")
    assert "journal of hv1: no session of it" in shown
    assert "there is nothing to resume (web1: not there, web1--migratedaway: running)" in ctl(pair.source, "resume", "web1", status=4).stderr


def test_no_xl(pair: Pair) -> None:
    """Where xl cannot be run, the journal is gone by, and `resume` does nothing."""
    Journal(pair.source.state, Role.SOURCE).append(b"\1" * 16, "start", peer="hv2", boot=boot_id())
    Journal(pair.source.state, Role.SOURCE).append(b"\1" * 16, "end", domain="web1", outcome="link lost", state="not cleared")
    wrapper = pair.source.xen.xl_wrapper()
    content = wrapper.read_text()
    try:
        for script, why in (("exit 7", "'xl list' failed with status 7: no message"), ("echo hello", "'xl list' has another head")):
            wrapper.write_text(f"#!/bin/sh\n{script}\n")
            found = verdict(pair.source, status=1)
            assert (found["host"], found["sure"]) == ("hv1", "certain")
            assert any(why in line for line in found["evidence"])
            assert why in ctl(pair.source, "resume", "web1", status=5).stderr
    finally:
        wrapper.write_text(content)


def test_names_that_are_none(pair: Pair) -> None:
    """A name that xl could take for an option is refused before anything is run."""
    assert "is no domain's name" in ctl(pair.source, "resume", "--", "-x", status=2).stderr
    assert verdict(pair.source, "web9", status=1)["words"] == "web9 is not on hv1, nor has it been: ask the other hosts"


# ---- history


def test_history(pair: Pair) -> None:
    """Both hosts list a migration, in their own roles, newest last; -n and DOMAIN choose; JSON has what the journal has."""
    assert pair.migrate("web1", "-e").wait().status == 0
    pair.destination.last_end()
    Journal(pair.source.state, Role.SOURCE).append(b"\2" * 16, "start", peer="hv3", boot=boot_id())
    Journal(pair.source.state, Role.SOURCE).append(b"\2" * 16, "domain", domain="web\x1b2")
    head, first, second = ctl(pair.source, "history").stdout.splitlines()
    assert head.split() == ["BEGUN", "DOMAIN", "FROM", "TO", "BYTES", "TIME", "OUTCOME"]
    offset = time.strftime("%z")
    assert first.split()[2:6] == [offset, "web1", "hv1", "hv2"]
    assert first.endswith("moved")
    assert second.split()[2:6] == [offset, "web?2", "hv1", "hv3"]
    assert second.endswith("no end: 'xensecurectl status' says more")
    assert ["web?2" in line for line in ctl(pair.source, "history", "-n", "1").stdout.splitlines()] == [False, True]
    assert len(ctl(pair.source, "history", "-n", "0").stdout.splitlines()) == 3
    assert "web?2" not in ctl(pair.source, "history", "web1").stdout
    (document,) = map(json.loads, ctl(pair.destination, "history", "--json").stdout.splitlines())
    assert (document["role"], document["peer"], document["domain"]) == ("destination", "hv1", "web1")
    assert (document["report"], document["state"], document["well"]) == (0, "reported", True)
    assert document["started"].endswith(f"{offset[:3]}:{offset[3:]}")
    for wrong in ("x", "-1", ""):
        assert "is no number" in ctl(pair.source, "history", f"-n{wrong}" if wrong else "-n=", status=2).stderr


def test_out_writes_all(capfd: pytest.CaptureFixture[str]) -> None:
    """A line is written whole."""
    out("x" * 200000)
    assert len(capfd.readouterr().out) == 200001
