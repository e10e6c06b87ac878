"""Tests of the harness itself: the real xl at both ends of a trivial transport."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.xl.build import build
from tests.xl.fetch import ToolstackMissingError
from tests.xl.hosts import (
    Fault,
    Outcome,
    Point,
    Running,
    XenHost,
    alive,
    open_files,
    running_copies,
    wait_until,
)
from tests.xl.records import GO_MESSAGE, StreamReader
from tests.xl.stream import StreamSpec, make_stream

TRANSPORT = Path(__file__).with_name("xl") / "transport.sh"
MIDDLE = 1_500_000  # an offset inside a PAGE_DATA record of the 2 MiB stream


@dataclass
class Pair:
    """Two hosts, and the domain web1 on the first of them."""

    source: XenHost
    target: XenHost
    stream: Path

    @property
    def command(self) -> str:
        """What ``xl migrate -s`` gets."""
        return f"{TRANSPORT} {self.target.xl_wrapper()}"

    def start(self, *options: str, xl_options: tuple[str, ...] = ()) -> Running:
        """Start a migration of web1."""
        return self.source.migrate(self.command, "web1", "hv2", *options, xl_options=xl_options)

    def migrate(self, *options: str, xl_options: tuple[str, ...] = ()) -> Outcome:
        """Migrate web1 and wait for the end."""
        return self.start(*options, xl_options=xl_options).wait()

    def assert_resumed(self) -> None:
        """web1 runs on the source alone and the target has nothing left of it."""
        assert self.source.domains() == {"web1": "running"}
        assert self.target.domains() == {}


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small stream with two passes."""
    return make_stream(tmp_path_factory.mktemp("stream") / "web1.stream", StreamSpec(2, seed=5))


@pytest.fixture
def pair(tmp_path: Path, stream: Path) -> Iterator[Pair]:
    """Two hosts with nothing set to go wrong; no process is left after the test."""
    try:
        build()
    except ToolstackMissingError as error:
        pytest.skip(str(error))
    with XenHost(tmp_path / "hv1") as source, XenHost(tmp_path / "hv2") as target:
        source.create_domain("web1", stream)
        yield Pair(source, target, stream)
    assert not source.processes()
    assert not target.processes()


def test_migration_moves_the_domain(pair: Pair) -> None:
    """After a migration one copy runs, on the target, made from exactly the bytes sent."""
    done = pair.migrate()
    assert done.status == 0
    assert "Migration successful." in done.stderr
    assert running_copies("web1", pair.source, pair.target) == [pair.target]
    assert pair.source.domains() == {}
    assert pair.target.domains() == {"web1": "running"}
    assert pair.target.digest("web1") == hashlib.sha256(pair.stream.read_bytes()).hexdigest()
    assert pair.target.domain("web1").bytes == pair.stream.stat().st_size


def test_migration_there_and_back(pair: Pair) -> None:
    """A domain that came by migration can leave again, and its monitor daemon then ends."""
    assert pair.migrate().status == 0
    monitor = pair.target.wait_monitor()
    pair.target.set_stream("web1", pair.stream)
    command = f"{TRANSPORT} {pair.source.xl_wrapper()}"
    assert pair.target.migrate(command, "web1", "hv1").wait().status == 0
    assert pair.source.domains() == {"web1": "running"}
    wait_until(lambda: not alive(monitor), "the monitor to end")


def test_calls_are_in_xls_order(pair: Pair) -> None:
    """The books tell what xl did at each end, in order."""
    assert pair.migrate("-e").status == 0
    assert [call.name for call in pair.source.calls()] == [
        "libxl_retrieve_domain_configuration",
        "libxl_domain_suspend",
        "suspended",
        "sent",
        "libxl_domain_rename",
        "libxl_domain_destroy",
    ]
    assert [call.name for call in pair.target.calls()] == [
        "libxl_domain_create_restore",
        "received",
        "libxl_domain_rename",
        "libxl_domain_unpause",
    ]


def test_options_reach_the_target(pair: Pair) -> None:
    """-e makes no monitor, -p leaves the domain paused, --debug and -v reach both ends."""
    done = pair.migrate("-e", "-p", "--debug", xl_options=("-v",))
    assert done.status == 0
    assert pair.target.domains() == {"web1": "paused"}
    assert pair.target.calls("libxl_evenable_domain_death") == []
    assert pair.target.calls("libxl_domain_unpause") == []
    assert pair.source.calls("libxl_domain_suspend")[0].arguments["debug"] == "1"
    # With -d the receiving xl prints the configuration that it was given.
    assert '"c_info"' in done.stderr


def test_monitor_daemon_is_as_the_real_one(pair: Pair) -> None:
    """Without -e a daemon stays in its own session, holds no pipe, and ends with the domain."""
    assert pair.migrate().status == 0
    monitor = pair.target.wait_monitor()
    assert os.getsid(monitor) != os.getsid(0)
    log = str(pair.target.path / "log/xl-web1--incoming.log")
    wait_until(lambda: open_files(monitor).get(0) == "/dev/null", "the daemon's descriptors")
    assert open_files(monitor) == {0: "/dev/null", 1: log, 2: log, 3: log}
    pair.target.destroy("web1")
    wait_until(lambda: not alive(monitor), "the monitor to end")


def test_leaked_descriptor_is_seen(pair: Pair, tmp_path: Path) -> None:
    """A descriptor that a transport leaves open shows in the monitor daemon."""
    leak = tmp_path / "leak"
    command = f"exec 7>{leak}; {pair.command}"
    shell = tmp_path / "leaky"
    shell.write_text(f'#!/bin/sh\n{command} "$@"\n')
    shell.chmod(0o755)
    assert pair.source.migrate(str(shell), "web1", "hv2").wait().status == 0
    assert str(leak) in open_files(pair.target.wait_monitor()).values()


def test_transport_has_a_clean_environment(pair: Pair, tmp_path: Path) -> None:
    """What xl starts sees nothing of the stubs."""
    seen = tmp_path / "seen"
    shell = tmp_path / "env-transport"
    shell.write_text(f'#!/bin/sh\nenv >{seen}\nexec {pair.command} "$@"\n')
    shell.chmod(0o755)
    assert pair.source.migrate(str(shell), "web1", "hv2").wait().status == 0
    assert "XEN_STUB_HOST" not in seen.read_text()
    assert "LD_LIBRARY_PATH" not in seen.read_text()


def test_refused_restore(pair: Pair) -> None:
    """A target that refuses at once leaves the guest running on the source."""
    pair.target.set_fault(Fault.RESTORE_REFUSE)
    done = pair.migrate()
    assert done.status == 1
    assert "Migration failed, resuming at sender." in done.stderr
    pair.assert_resumed()


@pytest.mark.parametrize("offset", [0, 16, 100_000, MIDDLE])
def test_restore_fails_mid_stream(pair: Pair, offset: int) -> None:
    """A restore that fails at any byte leaves the guest running on the source."""
    pair.target.set_fault(Fault.RESTORE_FAIL_AT, offset)
    done = pair.migrate()
    assert done.status == 1
    assert "Domain creation failed (code -3)" in done.stderr
    pair.assert_resumed()


def test_source_fails_mid_stream(pair: Pair) -> None:
    """A source that fails in the stream keeps its guest; the target destroys what it has."""
    pair.source.set_fault(Fault.SUSPEND_FAIL_AT, MIDDLE)
    assert pair.migrate().status == 1
    wait_until(lambda: not pair.target.processes(), "the receiver to end")
    pair.assert_resumed()


@pytest.mark.parametrize(
    ("error", "words"), [(-3, "resuming at sender"), (-8, "failed to suspend at sender")]
)
def test_suspend_fails_at_once(pair: Pair, error: int, words: str) -> None:
    """A failed suspend is reported as libxl's error says."""
    pair.source.set_fault(Fault.SUSPEND_FAIL, error)
    done = pair.migrate()
    assert done.status == 1
    assert words in done.stderr
    pair.assert_resumed()


def test_unpause_fails(pair: Pair) -> None:
    """A target that can't start its copy destroys it, says so, and the source resumes."""
    pair.target.set_fault(Fault.UNPAUSE_FAIL)
    done = pair.migrate()
    assert done.status == 1
    assert "Target reports startup failure (status code 3)" in done.stderr
    assert "Resumed OK." in done.stderr
    pair.assert_resumed()


def test_receiver_killed_at_a_byte(pair: Pair) -> None:
    """The receiver's processes killed at a known byte: the source resumes, a stale copy stays."""
    pair.target.set_fault(Fault.RESTORE_AT, MIDDLE)
    pair.target.set_hold(Point.RESTORE)
    migration = pair.start()
    pair.target.wait_held(Point.RESTORE)
    for pid in pair.target.processes():
        os.kill(pid, signal.SIGKILL)
    assert migration.wait().status == 1
    assert pair.source.domains() == {"web1": "running"}
    assert pair.target.domains() == {"web1--incoming": "paused"}


def test_helper_outlives_its_xl(pair: Pair) -> None:
    """The receiving xl killed alone leaves its save helper reading, as on a real host."""
    pair.target.set_hold(Point.RESTORE)
    migration = pair.start()
    helper = pair.target.wait_held(Point.RESTORE)
    (receiver,) = [pid for pid in pair.target.processes() if pid != helper]
    os.kill(receiver, signal.SIGKILL)
    wait_until(lambda: not alive(receiver), "the receiver to end")
    assert alive(helper)
    pair.target.release(Point.RESTORE)
    assert migration.wait().status == 1
    assert pair.source.domains() == {"web1": "running"}
    assert pair.target.domains() == {"web1--incoming": "paused"}


def test_source_held_at_a_byte(pair: Pair) -> None:
    """A source held in the stream has sent so much; the guest runs until its last pass."""
    pair.source.set_fault(Fault.SUSPEND_AT, 1_000_000)
    pair.source.set_hold(Point.SUSPEND)
    migration = pair.start()
    pair.source.wait_held(Point.SUSPEND)
    assert pair.source.domains() == {"web1": "running"}
    assert pair.target.domains() == {"web1--incoming": "paused"}
    pair.source.release(Point.SUSPEND)
    assert migration.wait().status == 0


def test_source_held_before_go(pair: Pair) -> None:
    """Held at its rename the source has read "ready" and the guest runs nowhere yet."""
    pair.source.set_hold(Point.RENAME)
    migration = pair.start()
    pair.source.wait_held(Point.RENAME)
    assert running_copies("web1", pair.source, pair.target) == []
    assert pair.source.domains() == {"web1": "suspended"}
    pair.source.release(Point.RENAME)
    assert migration.wait().status == 0


def test_go_lost_on_the_way(pair: Pair, tmp_path: Path) -> None:
    """A transport that drops GO alone: the target gives up its copy, the source resumes."""
    config = (pair.source.path / "configs/1.json").stat().st_size
    size = 48 + 4 + config + 1 + pair.stream.stat().st_size  # xl header, configuration, stream
    shell = tmp_path / "no-go"
    take = "dd bs=64k iflag=count_bytes,fullblock status=none"
    cut = f"{{ {take} count={size}; {take} count={len(GO_MESSAGE)} of=/dev/null; }}"
    shell.write_text(f'#!/bin/sh\n{cut} | {pair.command} "$@"\n')
    shell.chmod(0o755)
    done = pair.source.migrate(str(shell), "web1", "hv2").wait()
    assert done.status == 1
    assert "Target reports startup failure (status code -1)" in done.stderr
    assert "migration target: Failure, destroying our copy." in done.stderr
    pair.assert_resumed()


def test_receiver_lost_before_go(pair: Pair) -> None:
    """GO that can't be written: xl leaves the guest suspended, as it does not know."""
    pair.source.set_hold(Point.RENAME)
    migration = pair.start()
    pair.source.wait_held(Point.RENAME)
    for pid in pair.target.processes():
        os.kill(pid, signal.SIGKILL)
    pair.source.release(Point.RENAME)
    done = migration.wait()
    assert done.status == 1
    assert "Please CHECK AT BOTH ENDS" in done.stderr
    assert pair.source.domains() == {"web1--migratedaway": "suspended"}
    assert pair.target.domains() == {"web1--incoming": "paused"}


def test_source_killed_after_go(pair: Pair) -> None:
    """A report that nobody reads: the guest runs on the target, the source's copy is suspended."""
    pair.target.set_hold(Point.UNPAUSE)
    migration = pair.start("-e")
    pair.target.wait_held(Point.UNPAUSE)
    migration.kill()
    pair.target.release(Point.UNPAUSE)
    wait_until(lambda: not pair.target.processes(), "the receiver to end")
    assert pair.source.domains() == {"web1--migratedaway": "suspended"}
    assert pair.target.domains() == {"web1": "running"}


def test_recorded_stream_migrates(pair: Pair, tmp_path: Path) -> None:
    """The stream of a real PV guest moves like a generated one."""
    recording = Path(__file__).with_name("data") / "migrate-pv-small.up.xz"
    whole = io.BytesIO(lzma.decompress(recording.read_bytes()))
    reader = StreamReader(whole)
    reader.xl_header()
    real = tmp_path / "real"
    real.write_bytes(whole.read().removesuffix(GO_MESSAGE))
    pair.source.create_domain("g128", real)
    assert pair.source.migrate(pair.command, "g128", "hv2").wait().status == 0
    assert pair.target.digest("g128") == hashlib.sha256(real.read_bytes()).hexdigest()


def test_delay_at_unpause(pair: Pair) -> None:
    """As xl has no time-out, a delay at the target only takes its time."""
    pair.target.set_sleep(Point.UNPAUSE, 0.3)
    begin = time.monotonic()
    assert pair.migrate("-e").status == 0
    assert time.monotonic() - begin >= 0.3


def test_source_rate(pair: Pair) -> None:
    """A source with a rate writes no faster."""
    pair.source.set_fault(Fault.SUSPEND_RATE, 8_000_000)
    begin = time.monotonic()
    assert pair.migrate("-e").status == 0
    assert time.monotonic() - begin >= pair.stream.stat().st_size / 8_000_000 * 0.9


def test_damaged_stream_is_refused(pair: Pair, tmp_path: Path) -> None:
    """The stub's restore parses: a record type that Xen does not know ends it."""
    data = bytearray(pair.stream.read_bytes())
    data[64] = 0x7F  # type of the first libxc record
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    pair.source.set_stream("web1", damaged)
    assert pair.migrate().status == 1
    pair.assert_resumed()


def test_autoballoon_lock(pair: Pair) -> None:
    """With autoballoon a second incoming stream waits for the whole of the first restore."""
    pair.source.create_domain("web2", pair.stream)
    pair.target.set_fault(Fault.AUTOBALLOON, "on")
    pair.target.set_hold(Point.RESTORE)
    first = pair.start("-e")
    pair.target.wait_held(Point.RESTORE)
    second = pair.source.migrate(pair.command, "web2", "hv2", "-e")
    wait_until(lambda: "Parsing config" in second.stderr(), "the second receiver")
    time.sleep(0.05)
    assert list(pair.target.domains()) == ["web1--incoming"]
    pair.target.release(Point.RESTORE)
    assert (first.wait().status, second.wait().status) == (0, 0)
    assert sorted(pair.target.running()) == ["web1", "web2"]


def test_two_migrations_at_once(pair: Pair) -> None:
    """Two domains can move at the same time."""
    pair.source.create_domain("web2", pair.stream)
    both = [pair.start(), pair.source.migrate(pair.command, "web2", "hv2")]
    assert [one.wait().status for one in both] == [0, 0]
    assert sorted(pair.target.running()) == ["web1", "web2"]
    assert pair.source.domains() == {}


def test_remus_fails_over(pair: Pair) -> None:
    """Remus that ends at a checkpoint leaves the target running with that checkpoint's bytes."""
    pair.source.set_fault(Fault.REMUS_CHECKPOINTS, 3)
    done = pair.source.remus(pair.command, "web1", "hv2", "-i", "10", "-e").wait()
    assert "Backup failed? resuming domain at primary." in done.stderr
    wait_until(pair.target.running, "the failover")
    last = pair.source.calls("checkpoint")[-1]
    assert last.arguments["number"] == "3"
    assert pair.target.digest("web1") == last.arguments["digest"]
    (call,) = pair.target.calls("libxl_domain_create_restore")
    assert call.arguments["checkpointed"] == "1"


def test_xl_list_and_unknown_domain(pair: Pair) -> None:
    """Other commands of xl see the same books."""
    assert "web1" in pair.source.xl("list").stderr
    done = pair.source.migrate(pair.command, "db9", "hv2").wait()
    assert done.status == 1
    assert "db9 is an invalid domain identifier" in done.stderr


def test_close_ends_what_is_left(tmp_path: Path, pair: Pair) -> None:
    """Closing a host ends a held receiver, by its process id."""
    with XenHost(tmp_path / "hv3") as third:
        third.set_hold(Point.READY)
        pair.source.migrate(f"{TRANSPORT} {third.xl_wrapper()}", "web1", "hv3")
        receiver = third.wait_held(Point.READY)
    wait_until(lambda: not alive(receiver), "the receiver to end")
