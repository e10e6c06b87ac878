"""xensecure as a pipe to a program: bytes, ends, exit statuses, signals, silence. Programs of a few lines stand in for xl."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Pair, command, wait_for
from tests.xl.hosts import alive

TRANSPORT_FAILURE = 255
SILENCE = 2  # seconds; the least that the configuration takes
SLACK = 2.0  # seconds that a loaded machine may add
QUICK = f"[defaults]\nkeepalive = 1\nsilence = {SILENCE}\n"
# No domain comes here, and none is to be judged.
NO_POLICY = '[policy]\ncheck = "off"\n'
CONTENT = random.Random(4).randbytes(3_000_001)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two hosts with short times; what the destination runs as xl is written by each test."""
    xl = tmp_path_factory.mktemp("xl") / "xl"
    xl.touch(mode=0o755)
    with Pair(source_extra=QUICK, destination_extra=QUICK + NO_POLICY, xl=xl) as made:
        yield made


@pytest.fixture
def pair(lasting: Pair) -> Iterator[Pair]:
    """The two hosts, without a domain; afterwards nothing of a session may be left."""
    lasting.reset()
    yield lasting
    lasting.expect_nothing_left()


def set_xl(pair: Pair, script: str) -> None:
    """Let the destination run these lines of shell as xl."""
    aside = pair.destination.xl.with_suffix(".new")
    aside.write_text(f"#!/bin/sh\n{script}\n")
    aside.chmod(0o755)
    aside.rename(pair.destination.xl)


def run(pair: Pair, script: str, data: bytes = b"") -> tuple[int, bytes, str]:
    """One session with that xl: exit status, stdout, stderr."""
    set_xl(pair, script)
    process = pair.pipe()
    stdout, stderr = process.communicate(data, timeout=30)
    assert b"Traceback" not in stderr
    return process.returncode, stdout, stderr.decode()


def started(pair: Pair, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A session with that xl, which has said "ready" on its stdout."""
    set_xl(pair, f"echo ready; {script}")
    process = pair.pipe(*arguments)
    assert process.stdout
    assert process.stdout.read(6) == b"ready\n"
    return process


ENDS = {"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -TERM $$": 128 + signal.SIGTERM, "kill -KILL $$": 128 + signal.SIGKILL}


@pytest.mark.parametrize(("script", "status"), ENDS.items())
def test_exit_status(pair: Pair, script: str, status: int) -> None:
    """The exit status is the remote xl's, and 128 and the signal's number where one killed it."""
    assert run(pair, f"cat >/dev/null; {script}")[0] == status


def test_both_ways_and_half_close(pair: Pair) -> None:
    """All of stdin reaches xl, then its end, and what xl answers after that comes back: nothing of ours is on stdout."""
    status, stdout, _ = run(pair, "cat; echo after the end", CONTENT)
    assert status == 0
    assert hashlib.sha256(stdout).digest() == hashlib.sha256(CONTENT + b"after the end\n").digest()


def test_remote_stderr(pair: Pair) -> None:
    """What the remote xl says on stderr arrives on ours as it is, and not on stdout."""
    status, stdout, stderr = run(pair, r"printf 'one\rtwo\n' >&2; echo out; cat >/dev/null; echo three >&2")
    assert (status, stdout) == (0, b"out\n")
    assert stderr.startswith("one\rtwo\nthree\n")


def test_one_summary_line(pair: Pair) -> None:
    """A session without xl's protocol still ends with one summary, one word on how xl ended, and no claim that anything moved."""
    _, _, stderr = run(pair, "cat >/dev/null; exit 1", b"x" * 2048)
    summary, end = stderr.splitlines()
    assert summary.startswith("xensecure: ? not moved to hv2: 2.0 KiB in ")
    assert end == "xensecure: xl there has ended (exit status 1) without a report; the domain stays on this host"


def test_much_stderr_blocks_nothing(pair: Pair) -> None:
    """An stderr that nobody reads at the source does not hold up stdout (F8)."""
    set_xl(pair, f"head -c {1 << 20} /dev/zero >&2 & cat; wait")
    process = pair.pipe()
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"through\n")
    assert process.stdout.read(8) == b"through\n"
    assert process.communicate(timeout=20)[1].startswith(bytes(1 << 20))


def test_xl_does_not_read(pair: Pair) -> None:
    """An xl that ends without reading its stdin ends the session with its status, though the source writes on."""
    set_xl(pair, "exit 4")
    process = pair.pipe()
    assert process.communicate(CONTENT, timeout=20)[0] == b""
    assert process.returncode == 4


def test_stdout_closed_early(pair: Pair) -> None:
    """Our stdout's reader gone: the session goes on to its end without a hang or a traceback."""
    process = started(pair, "cat")
    assert process.stdin
    assert process.stdout
    process.stdout.close()
    process.stdin.write(CONTENT)
    process.stdin.close()
    process.stdin = None
    assert process.stderr
    said = process.stderr.read()
    assert process.wait(20) == 0
    assert b"Traceback" not in said


def test_child_of_xl_keeps_the_output(pair: Pair) -> None:
    """A child of xl's that keeps its stdout open holds up neither the source nor a place at the destination for long."""
    set_xl(pair, "echo ready; sleep 30 & echo $!; exit 0")
    begin = time.monotonic()
    process = pair.pipe()
    stdout, _ = process.communicate(timeout=20)
    child = int(stdout.split()[1])
    try:
        assert process.returncode == 0
        wait_for(pair.quiet, "the session's processes to end", 12)
        assert time.monotonic() - begin < 12
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_idle_link_lives(pair: Pair) -> None:
    """A session in which nothing is said for longer than the silence that means a dead link stays alive by keepalives."""
    process = started(pair, "cat")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(SILENCE + 1)
    assert process.communicate(b"still here", timeout=10)[0] == b"still here"
    assert process.returncode == 0


def test_silent_destination(pair: Pair) -> None:
    """A destination that stands still is found within the silence allowed: 255, and one line that says so."""
    process = started(pair, "cat >/dev/null")
    session = pair.destination.session()
    begin = time.monotonic()
    os.kill(session.receiver, signal.SIGSTOP)
    try:
        assert process.wait(10) == TRANSPORT_FAILURE
        assert SILENCE - 1 <= time.monotonic() - begin <= SILENCE + SLACK
    finally:
        os.kill(session.receiver, signal.SIGCONT)
    assert b"xensecure: link lost: nothing came from the destination any more; the domain stays on this host" in process.communicate()[1]


def test_silent_source(pair: Pair) -> None:
    """A source that stands still is found within the silence allowed, xl's input ends, and the journal says why."""
    process = started(pair, "cat >/dev/null")
    session = pair.destination.session()
    begin = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    try:
        wait_for(session.gone, "the session's end", 10)
        assert SILENCE - 1 <= time.monotonic() - begin <= SILENCE + SLACK
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(10) == TRANSPORT_FAILURE
    assert pair.destination.last_end()["outcome"] == "failed: nothing came from the source any more"
    process.communicate()


def test_sigterm(pair: Pair) -> None:
    """SIGTERM ends a session with a clear line and 255; the destination's xl sees its input end, and its journal has the reason."""
    mark = pair.folder / "input-ended"
    mark.unlink(missing_ok=True)
    process = started(pair, f"cat >/dev/null; touch {mark}")
    process.terminate()
    assert process.wait(10) == TRANSPORT_FAILURE  # communicate() would have its input end as well
    _, stderr = process.communicate()
    assert b"xensecure: stopped by SIGTERM; the domain stays on this host\n" in stderr
    wait_for(mark.exists, "xl's input to end")
    assert pair.destination.last_end()["outcome"] == "failed: given up by the source: stopped by SIGTERM at the source"


def test_sigterm_while_connecting(pair: Pair) -> None:
    """SIGTERM while the other end says nothing yet ends xensecure at once, and not only when the time for a handshake is over."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = pair.pipe("-p", str(silent.getsockname()[1]), "hv2", "xl", "migrate-receive")
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            process.terminate()
            assert process.wait(3) == TRANSPORT_FAILURE
    assert process.communicate()[1] == b"xensecure: stopped by SIGTERM; the domain stays on this host\n"


def test_sigint_is_xls(pair: Pair) -> None:
    """SIGINT, which reaches us with xl from a terminal, ends nothing as long as stdin is open."""
    process = started(pair, "cat")
    process.send_signal(signal.SIGINT)
    assert process.communicate(b"on we go", timeout=10)[0] == b"on we go"
    assert process.returncode == 0


def test_terminal_line(pair: Pair) -> None:
    """On a terminal the moving line is cleared before the summary."""
    set_xl(pair, "cat >/dev/null")
    master, slave = pty.openpty()
    words = [command("xensecure"), "hv2", "xl", "migrate-receive"]
    process = subprocess.Popen(words, env=pair.source.environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    assert process.stdin
    seen = b""
    while b"\rxensecure: ? to hv2: " not in seen:
        seen += os.read(master, 4096)
    process.stdin.close()
    assert process.wait(10) == 0
    while b"without a report" not in seen:
        seen += os.read(master, 4096)
    os.close(master)
    moving, _, last = seen.replace(b"\r\n", b"\n").rpartition(b"\r")
    assert moving.rpartition(b"\r")[2].strip() == b""
    assert last.startswith(b"xensecure: ? not moved to hv2: ")


def test_refused_for_want_of_xl(pair: Pair, tmp_path: Path) -> None:
    """A destination whose xl is missing refuses with the reason, 255, and starts nothing."""
    xl = pair.destination.xl
    xl.rename(tmp_path / "xl")
    try:
        process = pair.pipe()
        stdout, stderr = process.communicate(timeout=10)
    finally:
        (tmp_path / "xl").rename(xl)
    assert process.returncode == TRANSPORT_FAILURE
    assert stdout == b""
    assert stderr.decode() == f"xensecure: the destination refuses: xl cannot be started there: {xl}: No such file or directory; see [receive] xl\n"
    assert pair.destination.last_end()["outcome"].startswith("failed: xl cannot be started")


def test_script_that_is_not_configured(pair: Pair) -> None:
    """A COLO script that the destination's configuration does not name is refused, and no xl starts."""
    mark = pair.folder / "started"
    set_xl(pair, f"touch {mark}")
    process = pair.pipe("hv2", "xl", "migrate-receive", "--colo", "--coloft-script", "/bin/sh")
    assert b"the script /bin/sh is not one that this host runs" in process.communicate(timeout=10)[1]
    assert process.returncode == TRANSPORT_FAILURE
    assert not mark.exists()


def test_too_many_sessions() -> None:
    """A destination with [receive] sessions = 1 refuses a second one while the first runs, and takes it afterwards."""
    with Pair(destination_extra="sessions = 1\n" + NO_POLICY) as pair:
        first = pair.pipe()
        assert first.stdout
        assert first.stdout.read(10)
        second = pair.pipe()
        assert b"the destination refuses: 1 migrations are arriving there already; try again later" in second.communicate(timeout=10)[1]
        assert second.returncode == TRANSPORT_FAILURE
        first.communicate(timeout=10)
        wait_for(pair.quiet, "the first session's end")
        third = pair.pipe()
        assert third.communicate(timeout=10)[0].startswith(b"xl migration receiver ready")
