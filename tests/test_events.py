"""Events: every one is documented and has the fields that its kind names; they reach journald's protocol and files; nothing is held up by them."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pair import Host, Pair, command, transports, wait_for
from tests.test_docs import code, rows, section, text
from tests.wires import Wires
from tests.xl.hosts import Fault, Point
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link import events
from xensecure.link.config import Config, load_config
from xensecure.link.events import COMMON, Event, Events

ROOT = Path(__file__).resolve().parent.parent
LOG = '[log]\nevents = "{}"\n'
SHORT = "[defaults]\nkeepalive = 1\nsilence = 2\n"


# ---- the kinds


def emitted() -> Iterator[tuple[str, str, set[str]]]:
    """Every event that the code emits: where, which kind, with which fields."""
    for path in sorted((ROOT / "xensecure").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit":
                kinds = [part.attr for part in ast.walk(node.args[0]) if isinstance(part, ast.Attribute) and part.attr in Event.__members__]
                for kind in kinds or [""]:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", kind, {keyword.arg or "**" for keyword in node.keywords}


def test_events_have_the_fields_of_their_kind() -> None:
    """Every event is emitted with its kind's fields and common ones alone, and every kind is emitted somewhere."""
    found = list(emitted())
    assert len(found) > 20
    for where, kind, fields in found:
        if kind:
            assert fields <= {*Event[kind].value.fields, *COMMON}, where
    told = {kind for _, kind, _ in found if kind} | set(re.findall(r"Event\.(HOOK_\w+)", (ROOT / "xensecure/link/hooks.py").read_text()))
    assert set(Event.__members__) == told


def test_message_ids() -> None:
    """128 bits each, no two the same, and version 4 as systemd-id128 makes them."""
    ids = [kind.value.id for kind in Event]
    assert len(set(ids)) == len(ids)
    for each in ids:
        assert re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", each), each


def test_the_page_has_every_kind() -> None:
    """docs/events.md names each kind with its id, priority and fields, and the common fields."""
    page = text("docs/events.md")
    table = [cells for cells in rows(section(page, "## Kinds")) if len(cells) == 5]
    listed = {code(name)[0]: (int(priority), set(code(fields)), code(each)[0]) for name, priority, _, fields, each in table}
    assert listed == {kind.value.name: (kind.value.priority, set(kind.value.fields), kind.value.id) for kind in Event}
    common = {code(name)[0] for name, *_ in rows(section(page, "## Fields of every event"))}
    assert common >= set(COMMON)


# ---- where they go


def config(folder: Path, where: str) -> Config:
    """A configuration whose events go there."""
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    return replace(Config(path="", name="hv1"), state=folder / "state", run=folder / "run", events=where)


def lines(path: Path) -> list[dict[str, Any]]:
    """The events of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fields(datagram: bytes) -> dict[str, str]:
    """An entry as journald reads it: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/, without values that have a line feed."""
    assert datagram.endswith(b"\n")
    pairs = [line.partition("=") for line in datagram.decode().splitlines()]
    assert all(equals and re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) for name, equals, _ in pairs)
    return {name: value for name, _, value in pairs}


def test_journald_gets_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datagram an event: MESSAGE, MESSAGE_ID, PRIORITY and a field for each of ours; a line feed of a peer's makes no field."""
    monkeypatch.setattr(events, "JOURNAL_SOCKET", str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        told = Events(config(tmp_path, "journal"), "xensecure", "source")
        told.knows(peer="hv2", session="")
        told.emit(Event.LINK_LOST, cause="reset", why="a\nMESSAGE_ID=b")
        entry = fields(journald.recv(1 << 16))
    assert entry["MESSAGE_ID"] == Event.LINK_LOST.value.id
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("4", "xensecure-event")
    ours = {name.removeprefix("XENSECURE_"): value for name, value in entry.items() if name.startswith("XENSECURE_")}
    assert ours == {
        "EVENT": "link-lost",
        "PROGRAM": "xensecure",
        "HOST": "hv1",
        "ROLE": "source",
        "PEER": "hv2",
        "CAUSE": "reset",
        "WHY": ours["WHY"],
    }
    assert ours["WHY"].startswith("a")
    assert entry["MESSAGE"].startswith('link-lost role="source" peer="hv2" cause="reset" why="a')


def test_a_journald_that_does_not_read_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where journald has gone, or takes no more, events are dropped at once."""
    monkeypatch.setattr(events, "JOURNAL_SOCKET", str(tmp_path / "socket"))
    told = Events(config(tmp_path, "journal"), "xensecure")
    told.emit(Event.PAIRED)
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        for _ in range(2000):
            told.emit(Event.PAIRED)
    told.emit(Event.PAIRED)
    assert time.monotonic() - start < 5


def test_a_file_gets_json_lines(tmp_path: Path) -> None:
    """A line an event, also behind one that a full disk has cut short; a file that has grown long is moved to the one of before."""
    path = tmp_path / "events.jsonl"
    told = Events(config(tmp_path, str(path)), "xensecure")
    told.emit(Event.PAIRED, peer="hv2")
    path.write_bytes(path.read_bytes() + b'{"time": "2026')
    told.emit(Event.FORGOTTEN, peer="ä\n")
    first, cut, last = path.read_text().splitlines()
    assert cut == '{"time": "2026'
    assert {**json.loads(first), "time": 0} == {
        "time": 0, "event": "paired", "message_id": Event.PAIRED.value.id, "priority": 5,
        "program": "xensecure", "host": "hv1", "peer": "hv2",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(last)["time"])
    assert json.loads(last)["peer"].startswith("ä")
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_a_long_file_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever knocks at the port for ever fills two files, not the disk."""
    monkeypatch.setattr(events, "_FILE_MAX", 1000)
    path = tmp_path / "events.jsonl"
    told = Events(config(tmp_path, str(path)), "xensecure")
    for number in range(100):
        told.emit(Event.PAIRED, peer=str(number))
    older = path.with_name("events.jsonl.1")
    assert sorted(each.name for each in tmp_path.glob("events*")) == ["events.jsonl", "events.jsonl.1"]
    assert older.stat().st_size < 1500
    assert [int(line["peer"]) for line in lines(older) + lines(path)][-1] == 99


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there, a link, a FIFO that somebody reads, another file's second name: one line, and everything goes on."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "other").touch()
    (tmp_path / "hard").hardlink_to(tmp_path / "other")
    for name in ("no/folder", "link", "fifo", "hard"):
        told = Events(config(tmp_path, str(tmp_path / name)), "xensecure")
        for _ in range(3):
            told.emit(Event.PAIRED)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    assert all("no events are written there, see [log] events" in line for line in said)
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "other").read_bytes() == b""


JOURNALD = Path("/lib/systemd/systemd-journald")
# A journald of the test's own, in a mount namespace of its own; "$@" is the command whose events it gets.
WITH_JOURNALD = f"""
mount -t tmpfs none /run && mount -t tmpfs none /var/log && mkdir -p /run/systemd/journal || exit 9
{JOURNALD} & journald=$!
for turn in $(seq 100); do [ -S {events.JOURNAL_SOCKET} ] && break; sleep 0.1; done
"$@"
journalctl --sync
journalctl -t xensecure-event -o json
kill $journald
"""


def test_who_faces_the_network_writes_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A receiver tells journald alone: it neither writes root's files nor complains that it cannot."""
    told = Events(config(tmp_path, str(tmp_path / "events")), "xensecured", confined=True)
    told.emit(Event.AUTHENTICATION_FAILED, cause="tls")
    assert capfd.readouterr().err == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["state"]


@pytest.mark.skipif(
    os.geteuid() != 0 or not JOURNALD.exists() or not Path("/etc/machine-id").exists(),
    reason="only root can put a journald in the place of the system's, and it needs a machine id",
)
def test_the_real_journald_takes_them(tmp_path: Path) -> None:
    """With nothing configured, what a command tells is an entry of the real journald, with all its fields."""
    host = Host(tmp_path, "hv1")
    host.ctl("init")
    emit = (
        "from xensecure.link.config import load_config; from xensecure.link.events import Event, Events\n"
        "Events(load_config(), 'xensecurectl').emit(Event.FORGOTTEN, peer='hv9')"
    )
    words = ["unshare", "--mount", "--fork", "sh", "-c", WITH_JOURNALD, "sh", command("python"), "-c", emit]
    done = subprocess.run(words, env=host.environment(), capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 9 or "unshare failed" in done.stderr:
        pytest.skip("no mount namespace here")
    (entry,) = [json.loads(line) for line in done.stdout.splitlines()]
    ours = {name: value for name, value in entry.items() if not name.startswith("_")}
    assert ours == {
        "MESSAGE": 'forgotten peer="hv9"', "MESSAGE_ID": Event.FORGOTTEN.value.id, "PRIORITY": "5", "SYSLOG_IDENTIFIER": "xensecure-event",
        "XENSECURE_EVENT": "forgotten", "XENSECURE_PROGRAM": "xensecurectl", "XENSECURE_HOST": "hv1", "XENSECURE_PEER": "hv9",
    }


# ---- two hosts


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB in three passes."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(24, seed=7, passes=2))


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two hosts whose events go to files."""
    folder = tmp_path_factory.mktemp("events")
    extra = [f"{LOG.format(folder / name)}{SHORT}" for name in ("hv1", "hv2")]
    window = "window = 4194304\n"
    with Pair(source_extra=extra[0], destination_extra=window + extra[1], resume_window=3) as made:
        yield made


def told(host: Host) -> list[dict[str, Any]]:
    """The events of a host."""
    return lines(Path(load_config(str(host.config)).events))


@pytest.fixture
def pair(pair: Pair) -> Pair:
    """They have told nothing yet."""
    for host in (pair.source, pair.destination):
        Path(load_config(str(host.config)).events).unlink(missing_ok=True)
    return pair


def names(host: Host) -> list[str]:
    """The kinds of a host's events, a phase with its name."""
    return [entry["event"] if entry["event"] != "phase" else entry["phase"] for entry in told(host)]


def expect_ended(pair: Pair) -> None:
    """Wait until both hosts have told the session's end: neither's last process is xl."""
    for host in (pair.source, pair.destination):
        wait_for(lambda host=host: "session-ended" in names(host), "the end")  # type: ignore[misc]


def expect(host: Host, *kinds: str) -> None:
    """Wait until a host has told these and nothing else; the last often after the other host has heard."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: names(host) == [*kinds], "the events")
    assert names(host) == [*kinds]


def test_a_migration(pair: Pair, stream: Path) -> None:
    """Both hosts tell the same session from start to end, with what it was and how it went."""
    assert pair.migrate("web1", "-e").wait().status == 0
    expect_ended(pair)
    for host, role, peer in ((pair.source, "source", "hv2"), (pair.destination, "destination", "hv1")):
        assert names(host) == ["session-started", "domain", "ready", "go", "report", "session-ended"]
        first, *_, report, last = told(host)
        assert {entry["session"] for entry in told(host)} == {first["session"]}
        assert (last["role"], last["peer"], last["domain"], last["outcome"], last["state"]) == (role, peer, "web1", "success", "reported")
        assert report["status"] == 0
        assert first["request"] == "migrate-receive -e"
        assert last["bytes"] > stream.stat().st_size
        assert last["passes"] == 3
        assert last["rate"] == pytest.approx(last["bytes"] / last["seconds"], rel=0.05)
        assert "why" not in last


def test_a_hook_refuses(pair: Pair) -> None:
    """The hook's no is told by whoever ran it, and the refusal by both hosts."""
    pair.destination.add_hook("pre-receive", "window", "#!/bin/sh\necho not now\nexit 1\n")
    assert pair.migrate("web1").wait().status != 0
    expect_ended(pair)
    assert names(pair.destination) == ["session-started", "domain", "hook-refused", "refused", "session-ended"]
    by_hook = next(entry for entry in told(pair.destination) if entry["event"] == "hook-refused")
    assert (by_hook["point"], by_hook["hook"], by_hook["why"], by_hook["domain"]) == ("pre-receive", "window", "not now", "web1")
    refused, ended = told(pair.source)[-2:]
    assert (refused["event"], refused["cause"]) == ("refused", "not_allowed")
    assert (ended["outcome"], ended["state"]) == ("failed", "not cleared")
    assert "not now" in ended["why"]


def test_a_lost_link(pair: Pair) -> None:
    """A link that is cut and made anew stands at both hosts between start and end."""
    with Wires(pair.destination.port) as wires:
        pair.destination.xen.set_fault(Fault.RESTORE_AT, 9_000_000)
        pair.destination.xen.set_hold(Point.RESTORE)
        running = pair.migrate("web1", "-e", transport=f"-p {wires.port}")
        pair.destination.xen.wait_held(Point.RESTORE)
        wires.cut_last()
        wait_for(lambda: "link-resumed" in names(pair.source), "the new link")
        pair.destination.xen.release(Point.RESTORE)
        assert running.wait().status == 0
    expect_ended(pair)
    for host in (pair.source, pair.destination):
        assert names(host)[:4] == ["session-started", "domain", "link-lost", "link-resumed"]
        lost = next(entry for entry in told(host) if entry["event"] == "link-lost")
        assert lost["cause"] in ("closed", "reset", "replaced")
        assert told(host)[-1]["resumptions"] == 1


def test_a_lost_lane(pair: Pair) -> None:
    """One connection of two that is cut is told by both hosts, and no link is lost."""
    with Wires(pair.destination.port) as wires:
        pair.destination.xen.set_fault(Fault.RESTORE_AT, 9_000_000)
        pair.destination.xen.set_hold(Point.RESTORE)
        running = pair.migrate("web1", "-e", transport=f"-v -o lanes=2 -p {wires.port}")
        pair.destination.xen.wait_held(Point.RESTORE)
        wait_for(lambda: "xensecure: 2 connections" in running.stderr(), "the second connection")
        wires.cut_last()
        for host in (pair.source, pair.destination):
            wait_for(lambda host=host: "lane-lost" in names(host), "the loss")  # type: ignore[misc]
            assert next(entry for entry in told(host) if entry["event"] == "lane-lost")["cause"] in ("closed", "reset")
        pair.destination.xen.release(Point.RESTORE)
        assert running.wait().status == 0
    assert "link-lost" not in names(pair.source)


def test_xl_is_killed(pair: Pair) -> None:
    """What becomes of the copy that a killed xl leaves is told, and that the domain did not arrive."""
    pair.destination.xen.set_fault(Fault.RESTORE_AT, 9_000_000)
    pair.destination.xen.set_hold(Point.RESTORE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.RESTORE)
    os.kill(pair.destination.session().xl, 9)
    assert running.wait().status != 0
    expect_ended(pair)
    killed = next(entry for entry in told(pair.destination) if entry["event"] == "xl-killed")
    assert "'xl destroy web1--incoming' ended with status" in killed["why"]
    assert told(pair.destination)[-1]["outcome"] == "failed"


def test_nobody_knows_the_outcome(pair: Pair, stream: Path) -> None:
    """A source that is stopped behind GO says that it does not know what became of it; and, once it has reached that host again, what did."""
    pair.destination.xen.set_hold(Point.UNPAUSE)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.UNPAUSE)
    (transport,), session = transports(running.pid), pair.destination.session()
    wait_for(lambda: "go" in names(pair.source), "GO")
    os.kill(transport, 15)
    assert running.wait().status != 0
    wait_for(lambda: "outcome-unknown" in names(pair.source), "the end")
    assert told(pair.source)[-2]["outcome"] == "unknown"
    assert told(pair.source)[-1]["priority"] == 2
    os.kill(session.receiver, 9)  # it would wait for the source
    pair.destination.xen.release(Point.UNPAUSE)
    pair.destination.last_end()
    pair.source.xen.create_domain("web2", stream)
    assert pair.migrate("web2", "-e").wait().status == 0
    wait_for(lambda: "outcome-settled" in names(pair.source), "the destination's answer")
    settled = next(entry for entry in told(pair.source) if entry["event"] == "outcome-settled")
    assert (settled["domain"], settled["state"], settled["status"]) == ("web1", "reported", 0)


def test_pairing_and_strangers(pair: Pair) -> None:
    """A rotation is told by both; a host that is forgotten is a stranger to the other, and each tells why; neither token nor key is told."""
    pair.source.ctl("rotate", "hv2")
    expect(pair.source, "rotated")
    expect(pair.destination, "rotated")
    pair.destination.ctl("forget", "hv1")
    assert pair.migrate("web1").wait().status != 0
    expect(pair.destination, "rotated", "forgotten", "authentication-failed")
    failed = told(pair.destination)[-1]
    assert (failed["cause"], failed["address"], failed["program"]) == ("unknown_key", "127.0.0.1", "xensecure-launcher")
    expect(pair.source, "rotated", "authentication-failed", "session-ended")
    assert told(pair.source)[1]["cause"] == "not_accepted"
    assert told(pair.source)[-1]["outcome"] == "failed"
    pair.source.ctl("forget", "hv2")
    token = pair.destination.invite()
    pair.source.ctl("join", token)
    expect(pair.source, "rotated", "authentication-failed", "session-ended", "forgotten", "paired")
    expect(pair.destination, "rotated", "forgotten", "authentication-failed", "paired")
    said = "".join(json.dumps(told(host)) for host in (pair.source, pair.destination))
    raw = (pair.source.state / "peers/hv2.peer").read_bytes().partition(b"\n")[2]
    assert len(raw) >= 32
    secrets = [token.split(":")[1], *(raw[start : start + 32].hex() for start in range(len(raw) - 31))]
    assert not [secret for secret in secrets if secret in said]
