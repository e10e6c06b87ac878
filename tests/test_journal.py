"""The journal: appended by several processes, room set aside, rotated, and folded into one record a session."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from xensecure.link import journal as module
from xensecure.link.hooks import Role
from xensecure.link.journal import Journal, PeerWord, Record, boot_id, entries, find, records
from xensecure.proto.errors import StateError

FIRST, SECOND = b"\1" * 16, b"\2" * 16


def write(state: Path, *lines: bytes | dict[str, object], name: str = "journal.jsonl") -> None:
    """Put lines into the journal as they are."""
    content = [line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines]
    (state / name).write_bytes(b"".join(content))


def entry(event: str, *, session: bytes = FIRST, time: str = "2026-07-01T12:00:00.500Z", **fields: object) -> dict[str, object]:
    """An entry as it stands in the file."""
    return {"time": time, "session": session.hex(), "event": event, **fields}


# ---- appending


def test_entries_have_time_session_role_and_event(tmp_path: Path) -> None:
    """What is appended is read again, with the role of whoever wrote it."""
    Journal(tmp_path, Role.SOURCE).append(FIRST, "start", peer="hv2", request=["migrate-receive"])
    Journal(tmp_path, Role.DESTINATION).append(SECOND, "go", by="receiver")
    first, second = entries(tmp_path)
    assert (first["session"], first["role"], first["event"], first["peer"]) == (FIRST.hex(), "source", "start", "hv2")
    assert (second["session"], second["role"], second["by"]) == (SECOND.hex(), "destination", "receiver")
    assert list(entries(tmp_path, SECOND)) == [second]


def test_room_is_set_aside(tmp_path: Path) -> None:
    """`reserve` and `start` set blocks aside behind the end, and the file is no longer for it."""
    journal = Journal(tmp_path, Role.SOURCE)
    journal.reserve()
    path = tmp_path / "journal.jsonl"
    assert path.stat().st_size == 0
    if path.stat().st_blocks == 0:
        pytest.skip("this file system sets nothing aside")
    assert path.stat().st_blocks * 512 >= module.RESERVE_BYTES
    journal.append(FIRST, "start")
    assert path.stat().st_blocks * 512 >= module.RESERVE_BYTES
    assert len(list(entries(tmp_path))) == 1


def test_no_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be set aside, a session does not begin; what has begun is written as long as there is room."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = Journal(tmp_path, Role.SOURCE)
    monkeypatch.setattr(module, "_set_aside", full)
    for step in (journal.reserve, lambda: journal.append(FIRST, "start")):
        with pytest.raises(StateError, match=r"journal.jsonl: cannot be written: No space left on device"):
            step()
    journal.append(FIRST, "go")
    assert [each["event"] for each in entries(tmp_path)] == ["go"]


def test_it_is_rotated_when_a_session_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over its length the file is moved away with the next start, not in mid session; both files are read, in order."""
    monkeypatch.setattr(module, "ROTATE_BYTES", 300)
    journal = Journal(tmp_path, Role.SOURCE)
    journal.append(FIRST, "start", peer="hv2")
    for _ in range(4):
        journal.append(FIRST, "domain", domain="web1")
    assert not (tmp_path / "journal.jsonl.1").exists()
    journal.append(SECOND, "start", peer="hv3")
    journal.append(FIRST, "go")
    assert (tmp_path / "journal.jsonl.1").stat().st_mode & 0o777 == 0o600
    assert [each["event"] for each in entries(tmp_path)] == ["start", "domain", "domain", "domain", "domain", "start", "go"]
    assert [(record.peer, record.go) for record in records(tmp_path)] == [("hv2", True), ("hv3", False)]


def test_many_processes_append_and_rotate(tmp_path: Path) -> None:
    """Processes that append and rotate at the same time lose no entry and mix none, but for those that two rotations drop."""
    module_bytes = 4000
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                module.ROTATE_BYTES = module_bytes
                journal = Journal(tmp_path, Role.DESTINATION)
                for step in range(20):
                    journal.append(bytes([number]) * 16, "start" if step % 5 == 0 else "go", step=step)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    for name in ("journal.jsonl", "journal.jsonl.1"):
        for line in (tmp_path / name).read_bytes().splitlines():
            assert json.loads(line)["event"] in ("start", "go")
    steps: dict[str, list[int]] = {}
    for each in entries(tmp_path):
        steps.setdefault(each["session"], []).append(each["step"])
    for found in steps.values():
        assert found == list(range(found[0], 20))


def test_a_torn_line_is_not_gone_on_with(tmp_path: Path) -> None:
    """What a crash cut short stays alone on its line."""
    write(tmp_path, entry("start"), b'{"time": "2026-07-')
    Journal(tmp_path, Role.SOURCE).append(SECOND, "go")
    assert [each["event"] for each in entries(tmp_path)] == ["start", "go"]


# ---- reading


DAMAGED = [
    b"\n",
    b"\0" * 4096 + b"\n",
    b"\xff\xfe\n",
    b"[" * 60000 + b"\n",
    b"1" * 5000 + b"\n",
    b"{" + b" " * 200000 + b"}\n",
    b"null\n",
    b"[]\n",
    b'{"event": "go"}\n',
    json.dumps({"time": 1, "session": FIRST.hex(), "event": "go"}).encode() + b"\n",
    json.dumps({"time": "yesterday", "session": FIRST.hex(), "event": "go"}).encode() + b"\n",
    json.dumps({"time": "2026-07-01T12:00:00", "session": FIRST.hex(), "event": "go"}).encode() + b"\n",
    json.dumps({"time": "0001-01-01T00:00:00Z", "session": FIRST.hex(), "event": "go"}).encode() + b"\n",
    json.dumps({"time": "9999-12-31T23:59:59Z", "session": FIRST.hex(), "event": "go"}).encode() + b"\n",
    json.dumps({"time": "2026-07-01T12:00:00Z", "session": "../x", "event": "go"}).encode() + b"\n",
    json.dumps({"time": "2026-07-01T12:00:00Z", "session": [], "event": "go"}).encode() + b"\n",
    json.dumps({"time": "2026-07-01T12:00:00Z", "session": FIRST.hex(), "event": 7}).encode() + b"\n",
    b'{"time": "2026-07-01T12:00:00Z", "session": "' + FIRST.hex().encode() + b'", "event": "go", "bytes": NaN}\n',
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_lines_are_left_out(tmp_path: Path, line: bytes) -> None:
    """A line that is no entry hides neither the one before it nor the one behind it."""
    write(tmp_path, entry("start", peer="hv2"), line, entry("domain", domain="web1"), b'{"time"')
    (record,) = records(tmp_path)
    assert (record.peer, record.domain, record.go) == ("hv2", "web1", False)


def test_fields_of_a_wrong_kind_are_passed_over(tmp_path: Path) -> None:
    """An entry whose fields are nonsense changes nothing."""
    write(
        tmp_path,
        entry("start", peer=["hv2"], address=1, boot=None, request="x"),
        entry("report", status="0"),
        entry("report", status=True),
        entry("peer", state=1, status="x", text=[]),
        entry("heard of", domain=7, bytes="many"),
        entry("end", state="splendid", outcome=1, seconds="long", resumptions=1.5),
    )
    (record,) = records(tmp_path)
    assert (record.peer, record.address, record.request, record.domain, record.report) == ("", "", (), "", None)
    assert record.peer_word == PeerWord("unknown", 0, "", record.started)
    assert (record.state, record.outcome, record.resumptions) == ("not cleared", "", 0)


def test_of_a_huge_file_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was never rotated costs no more than its newest part."""
    monkeypatch.setattr(module, "_READ_BYTES", 1000)
    write(tmp_path, *(entry("go", session=bytes([number]) * 16) for number in range(100)))
    found = records(tmp_path)
    assert found[-1].session == bytes([99]).hex() * 16
    assert 5 < len(found) <= 10


def test_no_journal_is_no_session(tmp_path: Path) -> None:
    """A host without one has had no sessions."""
    assert records(tmp_path) == []
    assert find(tmp_path, FIRST, Role.SOURCE) is None


# ---- records


def test_a_session_is_folded(tmp_path: Path) -> None:
    """Every field of a record comes from its entry."""
    journal = Journal(tmp_path, Role.SOURCE)
    journal.append(FIRST, "start", peer="hv2", address="192.0.2.2", request=["migrate-receive", "-p"], boot=boot_id())
    journal.append(FIRST, "domain", domain="web1")
    journal.append(FIRST, "ready")
    journal.append(FIRST, "go")
    record = find(tmp_path, FIRST, Role.SOURCE)
    assert record is not None
    assert (record.state, record.ended, record.go, record.went_well, record.same_boot) == ("going on", 0.0, True, False, True)
    journal.append(FIRST, "lost", why="link lost: reset")
    journal.append(FIRST, "report", status=0)
    journal.append(FIRST, "end", domain="web1", outcome="arrived", state="reported", status=0, bytes=5, seconds=1.5, resumptions=2)
    record = find(tmp_path, FIRST, Role.SOURCE)
    assert record is not None
    assert record == Record(
        session=FIRST.hex(),
        role=Role.SOURCE,
        peer="hv2",
        address="192.0.2.2",
        request=("migrate-receive", "-p"),
        domain="web1",
        started=record.started,
        ended=record.ended,
        ready=True,
        go=True,
        report=0,
        state="reported",
        outcome="arrived",
        why="link lost: reset",
        resumptions=2,
        bytes=5,
        seconds=1.5,
        boot=boot_id(),
        last=record.ended,
    )
    assert record.went_well
    assert 0 <= record.ended - record.started < 10


def test_roles_have_records_of_their_own(tmp_path: Path) -> None:
    """A host that sends to itself keeps both ends apart; an entry without a role is the destination's."""
    write(tmp_path, entry("start", role="source", peer="a"), entry("start", peer="b"), entry("go", role="destination"))
    assert [(record.role, record.peer, record.go) for record in records(tmp_path)] == [
        (Role.SOURCE, "a", False),
        (Role.DESTINATION, "b", True),
    ]
    found = find(tmp_path, FIRST, Role.DESTINATION)
    assert found is not None
    assert found.peer == "b"


def test_another_boot_is_noticed(tmp_path: Path) -> None:
    """A session that began before this host's last start says so; without a boot id nobody knows."""
    write(tmp_path, entry("start", boot="another"), entry("start", session=SECOND))
    first, second = records(tmp_path)
    assert (first.same_boot, second.same_boot) == (False, True)


OLD = [
    (["go", "report 0"], "arrived", "reported", 0, True),
    (["go", "report 3"], "failed: xl reported status 3", "reported", 3, False),
    (["go", "report 0"], "unknown: xl was killed, and its report of success came by the receiver's word", "cleared", 0, False),
    (["ready"], "failed: the receiver ended", "not cleared", None, False),
    (["go"], "unknown: xl was killed after the source had cleared the domain", "cleared", None, False),
    ([], "failed over: the source ended", "failed over", None, False),
]


@pytest.mark.parametrize(("events", "outcome", "state", "report", "well"), OLD)
def test_ends_of_before_states(tmp_path: Path, events: list[str], outcome: str, state: str, report: int | None, well: bool) -> None:
    """An `end` without a state gets it from its words and from what came before."""
    lines = [entry(event.split()[0], **({"status": int(event.split()[1])} if " " in event else {})) for event in events]
    write(tmp_path, entry("start"), *lines, entry("end", domain="web1", outcome=outcome, xl="exited with status 0", time="2026-07-01T12:00:02Z"))
    (record,) = records(tmp_path)
    assert (record.state, record.report, record.went_well) == (state, report, well)
    assert (record.seconds, record.xl) == (1.5, "exited with status 0")


def test_the_other_hosts_word_is_kept(tmp_path: Path) -> None:
    """The last word of the other host stands in the record, also when it came behind the end."""
    journal = Journal(tmp_path, Role.SOURCE)
    journal.append(FIRST, "end", outcome="unknown: no answer", state="cleared")
    journal.append(FIRST, "peer", state="going on", status=0, text="")
    journal.append(FIRST, "peer", state="reported", status=3, text="xl there said so")
    (record,) = records(tmp_path)
    assert record.peer_word is not None
    assert (record.peer_word.state, record.peer_word.status, record.peer_word.text) == ("reported", 3, "xl there said so")
    assert (record.state, record.report) == ("cleared", None)
