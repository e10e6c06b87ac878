"""What runs now: shown while its process lives, and not a moment longer."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from tests.pair import wait_for
from xensecure.link.hooks import Role
from xensecure.link.live import Live, live_sessions
from xensecure.proto.errors import StateError

SESSION = b"\1" * 16


def files(run: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in (run / "status").iterdir())


def test_a_session_is_shown_until_it_is_closed(tmp_path: Path) -> None:
    """Fields given by name are seen by readers; the folder and its files are their owner's alone; nothing stays."""
    live = Live(tmp_path, SESSION, role=Role.SOURCE, peer="hv2")
    (shown,) = live_sessions(tmp_path)
    assert (shown.session, shown.role, shown.peer, shown.domain) == (SESSION.hex(), Role.SOURCE, "hv2", "")
    assert (shown.state, shown.pid) == ("running", os.getpid())
    live.update(domain="web1", phase="memory", bytes=1 << 20, resumptions=1, state="reconnecting")
    (shown,) = live_sessions(tmp_path)
    assert (shown.domain, shown.phase, shown.bytes, shown.resumptions, shown.state) == ("web1", "memory", 1 << 20, 1, "reconnecting")
    assert shown.since < shown.state_since == shown.updated
    assert shown.rate > 0
    assert shown.updated >= shown.since
    assert stat.S_IMODE((tmp_path / "status").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "status").iterdir()} == {0o600}
    live.close()
    live.close()
    live.update(phase="nothing")
    assert files(tmp_path) == []
    assert live_sessions(tmp_path) == []


def test_both_roles_of_one_host(tmp_path: Path) -> None:
    """A host that sends to itself shows both ends, the older one first."""
    both = [Live(tmp_path, SESSION, role=role, peer="hv1", domain="web1") for role in (Role.SOURCE, Role.DESTINATION)]
    assert [shown.role for shown in live_sessions(tmp_path)] == [Role.SOURCE, Role.DESTINATION]
    for live in both:
        live.close()


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path) -> None:
    """A process that is killed is shown no more, and its files go."""
    child = os.fork()
    if child == 0:
        Live(tmp_path, SESSION, role=Role.DESTINATION, peer="hv1", domain="web1")
        signal.pause()
    wait_for(lambda: [shown.pid for shown in live_sessions(tmp_path)] == [child], "the session")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert live_sessions(tmp_path) == []
    assert files(tmp_path) == []


def test_readers_do_not_hide_a_session_that_begins(tmp_path: Path) -> None:
    """However often it is looked, a session that lives is found."""
    child = os.fork()
    if child == 0:
        while True:
            live_sessions(tmp_path)
    try:
        for number in range(200):
            live = Live(tmp_path, bytes([number]) * 16, role=Role.SOURCE, peer="hv2")
            assert len(live_sessions(tmp_path)) == 1
            live.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_damaged_files_are_passed_over(tmp_path: Path) -> None:
    """A file that is nonsense hides no other."""
    live = Live(tmp_path, SESSION, role=Role.SOURCE, peer="hv2")
    other = Live(tmp_path, b"\2" * 16, role=Role.SOURCE, peer="hv3")
    path = tmp_path / f"status/{SESSION.hex()}.source.json"
    good = json.loads(path.read_text())
    wrong = [json.dumps({**good, **change}) for change in ({"bytes": "x"}, {"role": "third"}, {"peer": 1})]
    for content in ("", "[]", "[" * 100000, "{}", *wrong):
        path.write_text(content)
        assert [shown.peer for shown in live_sessions(tmp_path)] == ["hv3"]
    path.write_text(json.dumps({**good, "of a later release": 1}))
    assert [shown.peer for shown in live_sessions(tmp_path)] == ["hv2", "hv3"]
    live.close()
    other.close()


def test_a_folder_that_cannot_be_used_fails_no_session(tmp_path: Path) -> None:
    """Where nothing can be shown, the session says why and goes on; whoever looks is told."""
    (tmp_path / "status").write_text("")
    live = Live(tmp_path, SESSION, role=Role.SOURCE, peer="hv2")
    assert "status" in live.problem
    live.update(phase="memory")
    live.close()
    with pytest.raises(StateError, match="Not a directory"):
        live_sessions(tmp_path)
    (tmp_path / "status").unlink()
    assert live_sessions(tmp_path) == []
