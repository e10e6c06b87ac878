"""The operator's hooks in migrations of the real xl: what they are told, what they can refuse, and that they hold nobody up."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pair import Host, Pair, children, transports, wait_for
from tests.test_migrate import expect_refused
from tests.xl.hosts import Fault, Outcome, Point, alive, running_copies

POINTS = ("pre-send", "post-send", "pre-receive", "post-receive", "failed")
# Keeps what it was given: environment, standard input, descriptors, and how it runs.
RECORDER = """\
#!{python}
import json, os, sys
descriptors = {{name: os.readlink(f"/proc/self/fd/{{name}}") for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{{name}}")}}
ignored = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("SigIgn"))
facts = {{
    "environment": dict(os.environ), "stdin": json.load(sys.stdin), "descriptors": descriptors, "group": os.getpgid(0), "pid": os.getpid(),
    "folder": os.getcwd(), "ignored": ignored, "arguments": sys.argv[1:],
}}
temporary = {path!r} + ".tmp"
with open(temporary, "w") as file:
    json.dump(facts, file)
os.rename(temporary, {path!r})
print("stdout of the hook")
print("stderr of the hook", file=sys.stderr)
sys.exit({status})
"""
NO = "#!/bin/sh\necho not today\necho outside the window >&2\nexit 3\n"
HANGING = "#!/bin/sh\ntrap '' TERM\nsleep 1000 &\necho $! >{path}\necho $$ >>{path}\nwait\nwait\n"


@pytest.fixture
def pair(pair: Pair) -> Pair:
    """They have no hooks."""
    set_up(pair.source)
    set_up(pair.destination)
    for record in pair.folder.glob("hv?/*.record"):
        record.unlink()
    return pair


def set_up(host: Host, extra: str = "") -> None:
    """Give a host another configuration, and its daemons anew if it has any."""
    before = host.config.read_text()
    host.configure(extra)
    if host.config.read_text() == before:
        return
    for name in tuple(host.processes):
        process = host.processes[name]
        process.terminate()
        process.wait()
        host.start_until_ready(name, *(("--listen",) if name == "xensecured" else ()))


def record_path(host: Host, point: str) -> Path:
    """Where the recorder of a point keeps what it was given."""
    return host.folder / f"{point}.record"


def record_all(pair: Pair, *, status: int = 0) -> None:
    """A recorder at every point of both hosts."""
    for host in (pair.source, pair.destination):
        for point in POINTS:
            host.add_hook(point, "50-record", RECORDER.format(python=sys.executable, path=str(record_path(host, point)), status=status))


def recorded(host: Host, point: str) -> dict[str, Any]:
    """What a recorder was given, once it has run."""
    wait_for(record_path(host, point).exists, f"the hook {point} of {host.name}")
    found: dict[str, Any] = json.loads(record_path(host, point).read_text())
    return found


def ran(host: Host) -> set[str]:
    """The points at which recorders have run so far."""
    return {point for point in POINTS if record_path(host, point).exists()}


def said(host: Host) -> str:
    """What the launcher has said in this test."""
    return host.log("xensecure-launcher")


def migrate(pair: Pair) -> Outcome:
    """A migration of web1 to its end at both hosts."""
    running = pair.migrate("web1", "-e")
    outcome = running.wait()
    wait_for(pair.quiet, "the session's end")
    return Outcome(outcome.status, running.stderr())


# ---- what they are told


def test_success(pair: Pair) -> None:
    """A migration that succeeds runs pre-send and post-send here, pre-receive and post-receive there, told who, what, whither and how it went."""
    record_all(pair)
    assert migrate(pair).status == 0
    after_send, after_receive = recorded(pair.source, "post-send"), recorded(pair.destination, "post-receive")
    assert ran(pair.source) == {"pre-send", "post-send"}
    assert ran(pair.destination) == {"pre-receive", "post-receive"}
    session = pair.destination.journal()[0]["session"]
    for role, found, own, peer in (("source", after_send, "hv1", "hv2"), ("destination", after_receive, "hv2", "hv1")):
        words = found["stdin"]
        expected = {"role": role, "host": own, "peer": peer, "address": "127.0.0.1", "domain": "web1", "session": session, "reason": ""}
        assert {key: words[key] for key in expected} == expected
        assert words["outcome"] == "success"
        assert words["request"] == ["migrate-receive", "-e"]
        assert words["bytes"] > 2 << 20
        assert 0 < words["seconds"] < 60
        assert words["configuration"]["c_info"]["name"] == "web1"


def test_before(pair: Pair) -> None:
    """pre-send knows the domain by xl's command line, the peer and its addresses; pre-receive knows the session and the configuration as well."""
    record_all(pair)
    assert migrate(pair).status == 0
    before = recorded(pair.source, "pre-send")["stdin"]
    assert (before["domain"], before["peer"], before["address"], before["session"]) == ("web1", "hv2", "127.0.0.1", "")
    assert before["configuration"] is None
    admission = recorded(pair.destination, "pre-receive")["stdin"]
    assert (admission["domain"], admission["peer"], admission["outcome"]) == ("web1", "hv1", "")
    assert admission["session"] == pair.destination.journal()[0]["session"]
    assert admission["configuration"]["b_info"]["max_vcpus"] == 1


@pytest.mark.parametrize(("side", "point"), [("source", "pre-send"), ("source", "post-send"), ("destination", "pre-receive")])
def test_environment_is_clean(pair: Pair, side: str, point: str) -> None:
    """The environment has what the contract names and nothing else, in the words of standard input; a hook leads its own group."""
    record_all(pair)
    assert migrate(pair).status == 0
    host = getattr(pair, side)
    found = recorded(host, point)
    environment, words = found["environment"], found["stdin"]
    names = ("POINT", "ROLE", "HOST", "PEER", "ADDRESS", "DOMAIN", "SESSION", "REQUEST", "OUTCOME", "REASON", "BYTES", "SECONDS")
    # Python itself adds LC_CTYPE, where LANG's locale is not there.
    assert environment.keys() - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", *(f"XENSECURE_{name}" for name in names)}
    for name in names:
        value = words[name.lower()]
        assert environment[f"XENSECURE_{name}"] == (" ".join(value) if isinstance(value, list) else str(value))
    assert environment["XENSECURE_POINT"] == point
    assert environment["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert found["group"] == found["pid"]
    assert found["folder"] == "/"
    assert found["arguments"] == []
    # SIGPIPE and SIGXFSZ are Python's own to ignore; 32 and 33 are the C library's.
    ignored = {number for number in signal.Signals if number < 32 and int(found["ignored"], 16) >> (number - 1) & 1}
    assert ignored == {signal.SIGPIPE, signal.SIGXFSZ}


@pytest.mark.parametrize(
    ("side", "point"),
    [("source", "pre-send"), ("source", "post-send"), ("destination", "pre-receive"), ("destination", "post-receive")],
)
def test_hooks_have_three_descriptors(pair: Pair, side: str, point: str) -> None:
    """A hook has 0, 1 and 2 and nothing else of ours: no socket, no pipe of xl's, no file of keys."""
    record_all(pair)
    assert migrate(pair).status == 0
    descriptors = recorded(getattr(pair, side), point)["descriptors"]
    assert "memfd:" in descriptors.pop("0")
    assert descriptors.pop("1") == descriptors.pop("2")
    assert {name for name in descriptors.values() if "/proc/" not in name and not name.endswith("50-record")} == set()


def test_output_is_ours(pair: Pair) -> None:
    """What hooks write is said with their names, on xl's stderr at the source and in the launcher's log, and never gets into xl's protocol."""
    noisy = "#!/bin/sh\nfor i in $(seq 1000); do echo \"$XENSECURE_POINT $i\"; done; printf 'no \\033[31mend'\n"
    for host in (pair.source, pair.destination):
        for point in POINTS:
            host.add_hook(point, "noisy", noisy)
    running = pair.migrate("web1", "-e")
    assert running.wait().status == 0
    wait_for(lambda: "hook post-send/noisy says more" in running.stderr(), "post-send's lines")
    lines = running.stderr().splitlines()
    assert "xensecure: pre-send/noisy: pre-send 1" in lines
    assert "xensecure: post-send/noisy: post-send 200" in lines
    assert "xensecure: post-send/noisy: post-send 201" not in lines
    wait_for(lambda: "hook post-receive/noisy says more" in said(pair.destination), "post-receive's lines")
    assert "xensecure-launcher: pre-receive/noisy: pre-receive 1\n" in said(pair.destination)


# ---- what they refuse


def test_pre_send_refuses(pair: Pair) -> None:
    """A pre-send hook that says no: no connection is made, the guest never pauses, one line names the hook with its last line; failed is told."""
    record_all(pair)
    pair.source.add_hook("pre-send", "20-no", NO)
    pair.source.add_hook("pre-send", "10-yes", "#!/bin/sh\nexit 0\n")
    connections = pair.destination.log("xensecured") + said(pair.destination)
    outcome = migrate(pair)
    expect_refused(pair, outcome)
    assert [line for line in outcome.stderr.splitlines() if "outside the window" in line] == [
        "xensecure: refused by hook pre-send/20-no: outside the window"
    ]
    assert "exited with error status 255" in outcome.stderr
    assert pair.destination.log("xensecured") + said(pair.destination) == connections
    assert pair.destination.journal() == []
    assert not pair.source.xen.calls("libxl_domain_resume")
    failed = recorded(pair.source, "failed")["stdin"]
    assert (failed["outcome"], failed["reason"]) == ("failed", "refused by hook pre-send/20-no: outside the window")
    assert ran(pair.source) == {"failed"}


def test_pre_receive_refuses(pair: Pair) -> None:
    """A pre-receive hook that says no: nothing is made there, the guest runs on here, both hosts and the journal name the hook."""
    record_all(pair)
    pair.destination.add_hook("pre-receive", "60-no", NO)
    outcome = migrate(pair)
    expect_refused(pair, outcome)
    words = "refused by hook pre-receive/60-no: outside the window"
    assert f"xensecure: the destination gave up: {words}; the domain stays on this host\n" in outcome.stderr
    assert pair.destination.xen.calls("libxl_domain_create_restore") == []
    assert pair.source.last_end()["heard"]  # nobody asks again for what that host has said
    end = pair.destination.last_end()
    assert (end["domain"], end["outcome"]) == ("web1", f"failed: {words}")
    assert [(entry["by"], entry["why"]) for entry in pair.destination.journal() if entry["event"] == "refused"] == [("launcher", words)]
    for host in (pair.source, pair.destination):
        told = recorded(host, "failed")["stdin"]
        assert told["outcome"] == "failed"
        assert words in told["reason"]
    assert ran(pair.source) == {"pre-send", "failed"}
    assert ran(pair.destination) == {"pre-receive", "failed"}


def test_xl_gets_nothing_before_the_yes(pair: Pair) -> None:
    """While pre-receive thinks, for longer than the link may be silent, xl there has got nothing, the link lives, and the domain then arrives."""
    for host in (pair.source, pair.destination):
        set_up(host, "[defaults]\nkeepalive = 1\nsilence = 2\n")
    log = pair.destination.xen.path / "calls.log"
    script = f"#!/bin/sh\nsleep 3.5\ncp {log} {pair.destination.folder}/calls.record || touch {pair.destination.folder}/calls.record\n"
    pair.destination.add_hook("pre-receive", "slow", script)
    start = time.monotonic()
    outcome = migrate(pair)
    assert outcome.status == 0, outcome.stderr
    assert time.monotonic() - start > 3.5
    assert "libxl_domain_create_restore" not in (pair.destination.folder / "calls.record").read_text()
    assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("what", ["hook", "point", "folder"])
def test_hook_that_others_can_write(pair: Pair, side: str, what: str) -> None:
    """A hook, or a folder of it, that others can write to is not run: the migration is refused with the path."""
    host: Host = getattr(pair, side)
    point = "pre-send" if side == "source" else "pre-receive"
    hook = host.add_hook(point, "50-record", RECORDER.format(python=sys.executable, path=str(record_path(host, point)), status=0))
    path = {"hook": hook, "point": hook.parent, "folder": host.hooks}[what]
    path.chmod(0o777)
    outcome = migrate(pair)
    expect_refused(pair, outcome)
    assert f"{path}: others can write to it (mode 0777)" in outcome.stderr
    assert ran(host) == set()


def test_other_hooks_that_others_can_write(pair: Pair) -> None:
    """At the points after, such a hook is not run either, and one line says so; the migration is as it is."""
    record_all(pair)
    for host, point in ((pair.source, "post-send"), (pair.destination, "post-receive")):
        (host.hooks / point / "50-record").chmod(0o775)
    outcome = migrate(pair)
    assert outcome.status == 0
    assert "xensecure: no post-send hook is run: " in outcome.stderr
    assert "no post-receive hook is run: " in said(pair.destination)
    assert ran(pair.source) == {"pre-send"}
    assert ran(pair.destination) == {"pre-receive"}


def test_configuration_that_cannot_be_read(pair: Pair) -> None:
    """A stream without a configuration is refused, and xl gets none of it."""
    pair.destination.add_hook("pre-receive", "yes", "#!/bin/sh\nexit 0\n")
    process = pair.pipe()
    assert process.stdin is not None
    process.stdin.write(b"not what xl writes" * 100)
    _, stderr = process.communicate(timeout=30)
    assert b"no configuration of a domain has come that could be judged there" in stderr
    assert process.returncode == 255
    assert pair.destination.last_end()["outcome"].startswith("failed: ")


def test_source_killed_before_the_configuration(pair: Pair) -> None:
    """A link that is cut while xl's input is held back ends the session soon, and nothing stays."""
    pair.destination.add_hook("pre-receive", "yes", "#!/bin/sh\nexit 0\n")
    process = pair.pipe()
    assert process.stdin is not None
    process.stdin.write(b"Xen saved domain, xl format")
    session = pair.destination.session()
    time.sleep(0.3)  # until it has arrived
    process.kill()
    process.communicate()
    wait_for(session.gone, "the session's end", 5)
    assert pair.destination.last_end()["outcome"].startswith("failed: ")


@pytest.mark.parametrize("victim", ["receiver", "keeper", "xl"])
def test_killed_while_a_hook_thinks(pair: Pair, victim: str) -> None:
    """Any process of the session killed while pre-receive runs: the guest runs on at the source, nothing stays at the destination."""
    mark = pair.destination.folder / "thinks.record"
    hook = pair.destination.add_hook("pre-receive", "slow", f"#!/bin/sh\necho $$ >{mark}\nexec sleep 2\n")
    running = pair.migrate("web1", "-e")
    wait_for(mark.exists, "the hook")
    (keeper,) = pair.destination.children("xensecure-launcher")
    (receiver,) = pair.destination.children("xensecured")
    wait_for(lambda: mark.read_text(), "its number")
    (xl,) = (pid for pid in children(keeper) if pid != int(mark.read_text()))
    os.kill({"keeper": keeper, "receiver": receiver, "xl": xl}[victim], signal.SIGKILL)
    outcome = running.wait()
    wait_for(pair.quiet, "the session's end")
    wait_for(lambda: not alive(xl), "xl's end")
    assert outcome.status == 1
    assert pair.source.xen.domains() == {"web1": "running"}
    assert pair.destination.xen.domains() == {}
    assert hook.exists()


# ---- that they hold nobody up


@pytest.mark.parametrize(("side", "point"), [("source", "pre-send"), ("destination", "pre-receive")])
def test_hanging_hook_is_killed(pair: Pair, side: str, point: str) -> None:
    """A hook that does not end is killed with all that it has started, SIGTERM or no, and that is a refusal."""
    host: Host = getattr(pair, side)
    set_up(host, "[hooks]\ntimeout = 1\n")
    path = host.folder / "hanging.record"
    host.add_hook(point, "hangs", HANGING.format(path=path))
    outcome = migrate(pair)
    expect_refused(pair, outcome)
    assert f"refused by hook {point}/hangs: it did not end within 1 s" in outcome.stderr
    wait_for(lambda: not any(alive(int(pid)) for pid in path.read_text().split()), "the end of its processes")


def test_xl_waits_for_no_hook(pair: Pair) -> None:
    """post-send and failed run when xensecure has ended: xl waits for neither, and its status is what it is without them."""
    path = pair.source.folder / "hanging.record"
    set_up(pair.source, "[hooks]\ntimeout = 8\n")
    for point in ("post-send", "failed"):
        pair.source.add_hook(point, "hangs", HANGING.format(path=path))
    start = time.monotonic()
    running = pair.migrate("web1", "-e")
    assert running.wait().status == 0
    assert not transports(running.pid)
    assert time.monotonic() - start < 8
    wait_for(lambda: "hook post-send/hangs has failed: it did not end within 8 s" in running.stderr(), "the hook's end")
    wait_for(lambda: not any(alive(int(pid)) for pid in path.read_text().split()), "the end of its processes")


def test_failing_hooks_change_nothing(pair: Pair) -> None:
    """post-send and post-receive that fail are said, and the migration is a success."""
    record_all(pair)
    for host, point in ((pair.source, "post-send"), (pair.destination, "post-receive")):
        host.add_hook(point, "20-no", NO)
    running = pair.migrate("web1", "-e")
    assert running.wait().status == 0
    recorded(pair.source, "post-send")
    recorded(pair.destination, "post-receive")
    assert "xensecure: hook post-send/20-no has failed: exit status 3\n" in running.stderr()
    wait_for(pair.quiet, "the session's end")
    assert "xensecure-launcher: hook post-receive/20-no has failed: exit status 3\n" in said(pair.destination)
    assert pair.destination.last_end()["outcome"] == "arrived"


def test_sigterm_while_a_hook_runs(pair: Pair) -> None:
    """SIGTERM during pre-send ends the hook and xensecure at once."""
    mark = pair.source.folder / "hanging.record"
    pair.source.add_hook("pre-send", "slow", HANGING.format(path=mark).replace("trap '' TERM\n", ""))
    process = pair.pipe()
    wait_for(lambda: mark.exists() and len(mark.read_text().split()) == 2, "the hook")
    process.terminate()
    _, stderr = process.communicate(timeout=5)
    assert b"stopped by SIGTERM; the domain stays on this host" in stderr
    assert not any(alive(int(pid)) for pid in mark.read_text().split())


def test_xl_goes_while_a_hook_runs(pair: Pair) -> None:
    """An xl that is killed during pre-send takes the hook with it: nobody waits for its answer."""
    mark = pair.source.folder / "hanging.record"
    pair.source.add_hook("pre-send", "slow", HANGING.format(path=mark).replace("trap '' TERM\n", ""))
    process = pair.pipe()
    wait_for(lambda: mark.exists() and len(mark.read_text().split()) == 2, "the hook")
    _, stderr = process.communicate(timeout=5)
    assert b"refused by hook pre-send/slow: nobody waits for it any more" in stderr


# ---- what failed is told


def test_failed_knows_why(pair: Pair) -> None:
    """A domain that cannot be restored there: failed is told the outcome and the reason on both hosts, and no post- hook runs."""
    record_all(pair)
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.READY)
    (transport,) = transports(running.pid)
    os.kill(transport, signal.SIGTERM)
    running.wait()
    pair.destination.xen.release(Point.READY)
    here, there = recorded(pair.source, "failed")["stdin"], recorded(pair.destination, "failed")["stdin"]
    assert (here["outcome"], here["reason"]) == ("failed", "stopped by SIGTERM; the domain stays on this host")
    assert (there["outcome"], there["domain"]) == ("failed", "web1")
    assert there["reason"] == "given up by the source: stopped by SIGTERM at the source"
    assert ran(pair.source) == {"pre-send", "failed"}
    assert ran(pair.destination) == {"pre-receive", "failed"}


def test_unknown_is_no_failure(pair: Pair) -> None:
    """Cut after GO: failed is told at the source that the outcome is unknown; at the destination the domain runs, and post-receive is run."""
    record_all(pair)
    pair.destination.xen.set_hold(Point.UNPAUSE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.UNPAUSE)
    (transport,) = transports(running.pid)
    os.kill(transport, signal.SIGTERM)
    running.wait()
    pair.destination.xen.release(Point.UNPAUSE)
    assert recorded(pair.source, "failed")["stdin"]["outcome"] == "unknown"
    assert recorded(pair.destination, "post-receive")["stdin"]["outcome"] == "success"
    assert ran(pair.destination) == {"pre-receive", "post-receive"}


def test_no_xl_there(pair: Pair) -> None:
    """An xl that cannot be started there is told to failed on both hosts; there was no domain to say yes to."""
    record_all(pair)
    xl = pair.destination.xl
    try:
        pair.destination.xl = Path("/nonexistent/xl")
        set_up(pair.destination)
    finally:
        pair.destination.xl = xl
    assert migrate(pair).status != 0
    for host in (pair.source, pair.destination):
        assert "xl cannot be started there" in recorded(host, "failed")["stdin"]["reason"]
    assert ran(pair.destination) == {"failed"}


def test_remus_fails_over(pair: Pair) -> None:
    """When Remus ends, the source's hooks are told that they cannot know; the destination's, that the copy runs there."""
    record_all(pair)
    pair.source.xen.set_fault(Fault.REMUS_CHECKPOINTS, 3)
    pair.source.xen.remus(pair.transport(), "web1", "hv2", "-i", "10", "-e").wait()
    wait_for(pair.destination.xen.running, "the failover")
    here, there = recorded(pair.source, "failed")["stdin"], recorded(pair.destination, "post-receive")["stdin"]
    assert (here["outcome"], there["outcome"]) == ("unknown", "failed over")
    assert there["request"] == ["migrate-receive", "-e", "-r"]
    assert pair.destination.last_end()["outcome"] == f"failed over: {there['reason']}"
    assert ran(pair.destination) == {"pre-receive", "post-receive"}
